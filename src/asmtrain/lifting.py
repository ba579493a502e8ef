"""Instructions of three instruction sets as micro-operations: a line of a view in, `Micro`s out.

Not a semantics: an instruction is told by the kind of its operation, by its numbers, by the memory it reads
and writes and by the register it leaves a result in, which is what `events` needs to say the same of the same
source whatever compiled it. Lines are read one at a time, and remembered: functions share most of them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias


class Memory(NamedTuple):
    """A memory operand."""

    base: str
    offset: int
    scale: int
    """Of an index register; 0 without one."""
    is_symbol: bool


Operand: TypeAlias = "int | str | Memory"
"""A number, a register (or anything else, as text), memory."""


@dataclass(frozen=True)
class Micro:
    """One micro-operation."""

    op: str
    """`mov`, `add`, `mul`, `div`, `and`, `or`, `xor`, `shl`, `shr`, `cmp`, `call`, or `op` for others."""
    words: tuple[str, ...] = ()
    dest: str = ""
    """Register that it writes; empty for none."""
    sources: tuple[str, ...] = ()
    """Registers that it reads."""
    value: int | None = None
    """The number among its operands."""
    shift: int | None = None
    """Of a number that is inserted into `dest` (movk)."""

    @property
    def is_stateful(self) -> bool:
        """Whether it reads or writes a register, whose value `events` follows."""
        return bool(self.dest or self.sources)

    def result(self, constants: Mapping[str, int]) -> int | None:
        """What `dest` holds afterwards, where that is known."""
        if not self.dest:
            return None
        if self.value is None:
            is_copy = self.op == "mov" and len(self.sources) == 1
            return constants.get(self.sources[0]) if is_copy else None
        if self.shift is not None:
            before = constants.get(self.dest)
            kept = None if before is None else before & ((1 << 64) - 1) & ~(0xFFFF << self.shift)
            return None if kept is None else signed(kept | self.value << self.shift)
        if self.op == "mov":
            return self.value
        if self.op == "add" and len(self.sources) == 1 and self.sources[0] in constants:
            return signed(constants[self.sources[0]] + self.value)
        return None


def signed(value: int) -> int:
    """One number for what 32 and 64 bits, signed or not, write in different ways."""
    value &= (1 << 64) - 1
    if value >= 1 << 63:
        return value - (1 << 64)
    return value - (1 << 32) if 1 << 31 <= value < 1 << 32 else value


@dataclass(frozen=True)
class Reader:
    """How one instruction set is read."""

    read: Callable[[str, str, list[Operand], frozenset[str]], Iterator[Micro]]
    """Mnemonic, operand text, operands and the frame's registers to micro-operations."""
    operand: Callable[[str], Operand]
    arguments: tuple[str, ...]
    saved: frozenset[str]
    """Registers that a function gives back as it found them."""
    frame: frozenset[str]
    """Registers whose memory is the function's own frame."""


def reader_of(view: str) -> Reader:
    """The reader of a view's instruction set, with its frame pointer where the function has one."""
    if "%" in view:
        return _X86_FRAMED if "movq %rsp, %rbp" in view else _X86
    if _IS_AARCH64.search(view):
        return _AARCH64_FRAMED if _AARCH64_FRAME.search(view) else _AARCH64
    return _RISCV_FRAMED if "addi s0, sp" in view else _RISCV


def lift(reader: Reader, line: str) -> tuple[Micro, ...]:
    """The micro-operations of a line."""
    return _lift(reader.read, reader.operand, reader.frame, line)


@lru_cache(maxsize=1 << 16)
def _lift(
    read: Callable[[str, str, list[Operand], frozenset[str]], Iterator[Micro]],
    operand: Callable[[str], Operand],
    frame: frozenset[str],
    line: str,
) -> tuple[Micro, ...]:
    mnemonic, _, text = line.partition(" ")
    operands = [operand(part) for part in _SPLIT.split(text)] if text else []
    return (Micro("op", (f"m:{mnemonic}",)), *read(mnemonic, text, operands, frame))


_SPLIT = re.compile(r", (?![^(\[]*[)\]])")
"""Between operands, not inside a memory operand's brackets."""


def _number(text: str) -> int | None:
    try:
        return signed(int(text.lstrip("#$"), 0))
    except ValueError:
        return None


def _micro(op: str, operands: list[Operand], *, dest: str = "") -> Micro:
    """An operation on numbers and registers."""
    sources = tuple(o for o in operands if isinstance(o, str))
    numbers = [o for o in operands if isinstance(o, int)]
    if not numbers:
        return Micro(op, (), dest, sources)
    value = numbers[-1]
    if op == "mov":  # `events` tells it when it follows the register
        return Micro(op, () if dest else (f"#{value}", f"mov#{value}"), dest, (), value)
    words = (f"#{abs(value) if op == 'add' else value}", f"{op}#{value}")
    return Micro(op, words, dest, sources, value)


def _access(memory: Memory, width: int, direction: str, frame: frozenset[str], *, dest: str = "") -> Micro:
    """A load or store."""
    if memory.base in frame:
        return Micro("op", ("frame",), dest)
    words = ["symbol"] if memory.is_symbol else []
    if memory.base:
        if memory.scale:
            words.append(f"index{memory.scale}")
        at = memory.offset
        words += [f"@{at}", f"@{at}.{width}", f"{direction}@{at}.{width}"]
    return Micro("op", tuple(words), dest)


_OPS = (
    ("cmp", re.compile(r"cm[pn]|f?cmp|test|u?comis|ccmp|slti?u?$|s(?:eq|ne|lt|gt)z|b(?:eq|ne|lt|ge|gt|le)")),
    ("and", re.compile(r"and|tst|bic|bt")),
    ("or", re.compile(r"or")),
    ("xor", re.compile(r"xor|eo[rn]")),
    ("shl", re.compile(r"lsl|sll|shl|sal")),
    ("shr", re.compile(r"lsr|asr|shr|sar|srl|sra")),
    ("mul", re.compile(r"i?mul|madd|msub|[su]mull|mneg")),
    ("div", re.compile(r"[iu]?div|sdiv|rem")),
    ("add", re.compile(r"add|sub|inc|dec|lea")),
    ("mov", re.compile(r"mov(?!k)|li$|mv$")),
)


@lru_cache(maxsize=1 << 12)
def _op(mnemonic: str) -> str:
    return next((name for name, pattern in _OPS if pattern.match(mnemonic)), "op")


# AArch64.

_IS_AARCH64 = re.compile(r"\b(?:[wx]\d+|[wx]zr|bl CALL|b CALL)\b")
_AARCH64_FRAME = re.compile(r"^(?:mov x29, sp|add x29, sp)", re.MULTILINE)
_SHIFTED = re.compile(r"(lsl|lsr|asr|[su]xtw) (\d+)")


@lru_cache(maxsize=1 << 12)
def _aarch64_operand(text: str) -> Operand:
    if text.startswith("["):
        base, *rest = text.strip("[]!").split(", ")
        shift = _SHIFTED.search(text)
        offset = _number(rest[0]) if rest else 0
        scale = 0 if offset is not None or "SYM" in text else 1 << int(shift[2]) if shift else 1
        return Memory(str(_aarch64_operand(base)), offset or 0, scale, "SYM" in text)
    if text in ("wzr", "xzr"):
        return 0
    number = _number(text)
    if number is not None:
        return number
    return f"r{text[1:]}" if text[:1] in "wx" and text[1:].isdigit() else text


_PAIRED = ("ldp", "stp", "ldpsw", "ldnp", "stnp")
_WIDTHS = {"b": 1, "h": 2, "w": 4, "s": 4, "x": 8, "d": 8, "q": 16, "v": 16}


def _aarch64_width(mnemonic: str, register: str) -> int:
    if mnemonic[2:3] == "r" or mnemonic.endswith(("sw", "sb", "sh")):
        suffix = mnemonic.rstrip("rs")[-1:] if mnemonic.endswith(("b", "h", "w")) else ""
        if suffix in ("b", "h", "w"):
            return _WIDTHS[suffix]
    return _WIDTHS.get(register[:1], 8)


def _read_aarch64(
    mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]
) -> Iterator[Micro]:
    if mnemonic in ("bl", "blr"):
        yield Micro("call")
        return
    if mnemonic[:2] in ("ld", "st", "pr") and any(isinstance(o, Memory) for o in operands):
        yield from _aarch64_access(mnemonic, text, operands, frame)
        return
    dest = operands[0] if operands and isinstance(operands[0], str) else ""
    if mnemonic in ("cbz", "cbnz"):
        yield _micro("cmp", [dest, 0])
    elif mnemonic in ("tbz", "tbnz"):
        yield _micro("and", [1 << operands[1]] if isinstance(operands[1], int) else [])
    elif mnemonic in ("adr", "adrp"):
        yield Micro("op", ("symbol",), dest)
    elif mnemonic.startswith("b") and mnemonic not in _BIT_FIELDS and not mnemonic.startswith("bic"):
        return
    elif "sp" in operands[:2] or (len(operands) > 1 and operands[1] in frame):
        yield Micro("op", ("frame",) if dest != "sp" else (), dest)
    elif mnemonic in _BIT_FIELDS:
        yield from _bit_field(operands, dest)
    else:
        yield from _aarch64_computed(mnemonic, text, operands, dest)


_BIT_FIELDS = ("ubfx", "sbfx", "ubfiz", "sbfiz", "bfi", "bfxil")


def _bit_field(operands: list[Operand], dest: str) -> Iterator[Micro]:
    """x86-64 and RISC-V write a shift and a mask for it."""
    low, width = operands[-2:]
    if isinstance(low, int) and isinstance(width, int):
        yield _micro("and", [(1 << width) - 1], dest=dest)
        if low:
            yield _micro("shr", [low])


def _aarch64_computed(mnemonic: str, text: str, operands: list[Operand], dest: str) -> Iterator[Micro]:
    shift = _SHIFTED.search(text)
    by = int(shift[2]) if shift else 0
    numbers = [o for o in operands[1:] if isinstance(o, int)]
    if mnemonic == "movk":
        yield Micro("mov", (), dest, (), numbers[0] if numbers else None, by)
        return
    op = _op(mnemonic)
    value = signed(numbers[0] << by) if numbers and by else numbers[0] if numbers else None
    sources: list[Operand] = [o for o in operands[1:] if isinstance(o, str) and "ls" not in o]
    if value is None and by and shift and shift[1] in ("lsl", "lsr", "asr"):
        yield _micro("shl" if shift[1] == "lsl" else "shr", [by])  # of the second register
    if value is not None:
        sources.append(-value if mnemonic.startswith(("sub", "cmn")) else value)
    if op == "cmp":
        yield _micro(op, [*operands[:1], *sources])
        return
    if mnemonic == "subs" and value is not None:
        yield _micro("cmp", [value])
    if op == "mov" and mnemonic == "movn" and value is not None:
        sources = [signed(~value)]
    yield _micro(op, sources, dest=dest)


def _aarch64_access(
    mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]
) -> Iterator[Micro]:
    memory = next(o for o in operands if isinstance(o, Memory))
    first = text.partition(",")[0]
    direction = "st" if mnemonic.startswith("st") else "ld"
    width = _aarch64_width(mnemonic, first)
    registers = operands[: 2 if mnemonic in _PAIRED else 1]
    for at, register in enumerate(registers):
        place = memory._replace(offset=memory.offset + at * width)
        dest = register if direction == "ld" and isinstance(register, str) else ""
        yield _access(place, width, direction, frame, dest=dest)
        if direction == "st" and register == 0 and memory.base not in frame:
            yield _micro("mov", [0])
    if isinstance(operands[-1], int) and memory.base != "sp" and len(operands) > len(registers):
        yield _micro("add", [operands[-1]], dest=memory.base)


# x86-64, AT&T syntax.

_X86_MEMORY = re.compile(r"\*?(?:%\ws:)?([^(]*)\(([^)]*)\)")
_X86_WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
_X86_LOADS = (("movzb", 1), ("movsb", 1), ("movzw", 2), ("movsw", 2), ("movslq", 4))
_X86_REGISTER = re.compile(r"%(?:(r\d+)[dwb]?|[re]?([abcd])[xlh]|[re]?(si|di|bp|sp)l?)$")


@lru_cache(maxsize=1 << 14)
def _x86_operand(text: str) -> Operand:
    if "(" in text:
        match = _X86_MEMORY.match(text)
        if match is None:
            return text
        base, *rest = (part.strip() for part in match[2].split(","))
        scale = 0 if not rest else int(rest[1]) if len(rest) > 1 and rest[1].isdigit() else 1
        offset = _number(match[1]) if match[1] else 0
        is_symbol = offset is None or base == "%rip"
        return Memory("" if base == "%rip" else str(_x86_operand(base)), offset or 0, scale, is_symbol)
    if text.startswith("$"):
        number = _number(text)
        return text if number is None else number
    match = _X86_REGISTER.match(text)
    return next((f"{name}" for name in match.groups() if name), text) if match else text


def _x86_width(mnemonic: str) -> int:
    for start, width in _X86_LOADS:
        if mnemonic.startswith(start):
            return width
    if mnemonic.endswith("ss") and len(mnemonic) > 3:
        return 4
    if mnemonic.endswith("sd"):
        return 8
    if mnemonic.startswith(("mova", "movu", "movdq")):
        return 16
    return _X86_WIDTHS.get(mnemonic[-1], 0)


def _read_x86(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    if mnemonic.startswith("call"):
        yield Micro("call")
        return
    if mnemonic.startswith(("push", "pop")):
        yield Micro("op", ("frame",), str(operands[0]) if mnemonic.startswith("pop") else "")
        return
    if mnemonic.startswith(("j", "leave")) or not operands:
        return
    last, op = operands[-1], _op(mnemonic)
    dest = last if isinstance(last, str) and op != "cmp" else ""
    if dest == "sp":
        return
    if mnemonic.startswith("lea"):
        yield from _x86_address(operands[0], dest, frame)
        return
    is_store = isinstance(last, Memory) and len(operands) > 1 and op in ("mov", "op")
    for operand in operands:
        if isinstance(operand, Memory):
            direction = "st" if is_store else "ld"
            yield _access(operand, _x86_width(mnemonic), direction, frame, dest="" if is_store else dest)
    yield from _x86_computed(mnemonic, op, operands, dest)


def _x86_address(memory: Operand, dest: str, frame: frozenset[str]) -> Iterator[Micro]:
    """`lea` computes: an address in the frame or of a symbol, or a sum."""
    if not isinstance(memory, Memory) or memory.base in frame:
        yield Micro("op", ("frame",), dest)
    elif memory.is_symbol:
        yield Micro("op", ("symbol",), dest)
    else:
        if memory.scale:
            yield Micro("op", (f"index{memory.scale}",))
        sources: list[Operand] = [memory.base] if not memory.scale else []
        yield _micro("add", [*sources, memory.offset] if memory.offset else sources, dest=dest)


def _x86_computed(mnemonic: str, op: str, operands: list[Operand], dest: str) -> Iterator[Micro]:
    first = operands[0]
    if len(operands) == 2 and first == operands[1] and isinstance(first, str):
        if mnemonic.startswith("test"):
            yield _micro("cmp", [first, 0])
            return
        if op == "xor":
            yield _micro("mov", [0], dest=dest)
            return
    if mnemonic.startswith("test"):
        op = "and"
    reads = [o for o in operands if not isinstance(o, Memory)]
    if mnemonic.startswith("sub") and isinstance(first, int):
        reads = [-first, *reads[1:]]
    if op == "mov":
        reads = [o for o in operands[:1] if not isinstance(o, Memory)]
    if reads:
        yield _micro(op, [str(o) if isinstance(o, str) else o for o in reads], dest=dest)


# RISC-V 64.

_RISCV_MEMORY = re.compile(r"([^(]*)\((\w+)\)")
_RISCV_JUMPS = ("beqz", "bnez", "blez", "bgez", "bltz", "bgtz")


@lru_cache(maxsize=1 << 12)
def _riscv_operand(text: str) -> Operand:
    match = _RISCV_MEMORY.fullmatch(text)
    if match:
        offset = _number(match[1]) if match[1] else 0
        return Memory(match[2], offset or 0, 0, offset is None)
    if text == "zero":
        return 0
    number = _number(text)
    return text if number is None else number


def _read_riscv(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    if mnemonic in ("call", "jalr", "jal"):
        yield Micro("call")
        return
    if len(operands) == 2 and isinstance(operands[1], Memory):
        yield from _riscv_access(mnemonic, operands, operands[1], frame)
        return
    dest = operands[0] if operands and isinstance(operands[0], str) else ""
    if mnemonic in ("j", "jr", "ret", "tail") or dest == "sp":
        return
    if mnemonic in ("la", "lla", "auipc") or "SYM" in text:
        yield Micro("op", ("symbol",), dest)
    elif mnemonic in _RISCV_JUMPS or mnemonic in ("seqz", "snez"):
        yield _micro("cmp", [dest, 0], dest=dest if mnemonic.startswith("s") else "")
    elif mnemonic.startswith("b") and len(operands) == 3:
        yield _micro("cmp", operands[:2])
    elif len(operands) > 1 and operands[1] in frame:
        yield Micro("op", ("frame",), dest)
    elif mnemonic == "lui" and isinstance(operands[1], int):
        yield _micro("mov", [signed((operands[1] << 12) & 0xFFFFFFFF)], dest=dest)
    else:
        yield _micro(_op(mnemonic), operands[1:], dest=dest)


def _riscv_access(
    mnemonic: str, operands: list[Operand], memory: Memory, frame: frozenset[str]
) -> Iterator[Micro]:
    is_store = mnemonic.lstrip("f").startswith("s")
    width = _WIDTHS.get(mnemonic.rstrip("u")[-1], 8)
    first = operands[0]
    dest = first if isinstance(first, str) and not is_store else ""
    yield _access(memory, width, "st" if is_store else "ld", frame, dest=dest)
    if is_store and first == 0 and memory.base not in frame:
        yield _micro("mov", [0])


_FRAME = frozenset({"sp"})
_AARCH64 = Reader(
    _read_aarch64,
    _aarch64_operand,
    tuple(f"r{n}" for n in range(8)),
    frozenset(f"r{n}" for n in range(19, 30)),
    _FRAME,
)
_X86 = Reader(
    _read_x86,
    _x86_operand,
    ("di", "si", "d", "c", "r8", "r9"),
    frozenset(("b", "bp", "r12", "r13", "r14", "r15")),
    _FRAME,
)
_RISCV = Reader(
    _read_riscv,
    _riscv_operand,
    tuple(f"a{n}" for n in range(8)),
    frozenset(f"s{n}" for n in range(12)),
    _FRAME,
)


def _framed(reader: Reader, pointer: str) -> Reader:
    return replace(reader, frame=reader.frame | {pointer})


_AARCH64_FRAMED = _framed(_AARCH64, "r29")
_X86_FRAMED = _framed(_X86, "bp")
_RISCV_FRAMED = _framed(_RISCV, "s0")
