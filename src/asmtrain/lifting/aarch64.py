"""AArch64's instructions as micro-operations."""

import re
from collections.abc import Iterator
from functools import lru_cache

from asmtrain.lifting.micro import (
    WIDTHS,
    Memory,
    Micro,
    Operand,
    Reader,
    access,
    address,
    bit,
    computed,
    number_in,
    operation_of,
    signed,
)

_IS_AARCH64 = re.compile(r"\b(?:[wx]\d+|[wx]zr|bl CALL|b CALL)\b")
_FRAME = re.compile(r"^(?:mov x29, sp|add x29, sp)", re.MULTILINE)
_SHIFTED = re.compile(r"(lsl|lsr|asr|[su]xtw) (\d+)")


@lru_cache(maxsize=1 << 12)
def _operand(text: str) -> Operand:
    if text.startswith("["):
        base, *rest = text.strip("[]!").split(", ")
        shift = _SHIFTED.search(text)
        offset = number_in(rest[0]) if rest else 0
        scale = 0 if offset is not None or "SYM" in text else bit(_amount(shift)) if shift else 1
        return Memory(str(_operand(base)), offset or 0, scale, "SYM" in text)
    if text in ("wzr", "xzr"):
        return 0
    number = number_in(text)
    if number is not None:
        return number
    return f"r{text[1:]}" if text[:1] in "wx" and text[1:].isdigit() else text


def _amount(shift: re.Match[str]) -> int:
    return (number_in(shift[2]) or 0) & 63


_PAIRED = ("ldp", "stp", "ldpsw", "ldnp", "stnp")


def _width(mnemonic: str, register: str) -> int:
    """Bytes of an access: by the mnemonic's last letter (ldrb, ldpsw), or else by the register."""
    if mnemonic[-1] in "bhw" and (mnemonic[2:3] == "r" or mnemonic[-2] == "s"):
        return WIDTHS[mnemonic[-1]]
    return WIDTHS.get(register[:1], 8)


def _read(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    if mnemonic in ("bl", "blr") or (mnemonic == "b" and text == "CALL"):
        yield Micro("call")
        return
    if mnemonic[:2] in ("ld", "st", "pr") and any(isinstance(o, Memory) for o in operands):
        yield from _access(mnemonic, text, operands, frame)
        return
    dest = operands[0] if operands and isinstance(operands[0], str) else ""
    if mnemonic in ("cbz", "cbnz"):
        yield computed("cmp", [dest, 0])
    elif mnemonic in ("tbz", "tbnz"):
        yield computed("and", [bit(number) for number in operands[1:2] if isinstance(number, int)])
    elif mnemonic in ("adr", "adrp"):
        yield address("symbol", dest)
    elif mnemonic.startswith("b") and mnemonic not in _BIT_FIELDS and not mnemonic.startswith("bic"):
        return
    elif "sp" in operands[:2] or (len(operands) > 1 and operands[1] in frame):
        if dest != "sp":
            yield address("frame", dest)
    elif mnemonic in _BIT_FIELDS:
        yield from _bit_field(operands, dest)
    else:
        yield from _computed(mnemonic, text, operands, dest)


_BIT_FIELDS = ("ubfx", "sbfx", "ubfiz", "sbfiz", "bfi", "bfxil")


def _bit_field(operands: list[Operand], dest: str) -> Iterator[Micro]:
    """x86-64 and RISC-V write a shift and a mask for it."""
    low, width = operands[-2:] if len(operands) > 2 else ("", "")
    if isinstance(low, int) and isinstance(width, int):
        yield computed("and", [bit(width) - 1], dest=dest)
        if low:
            yield computed("shr", [low])


def _computed(mnemonic: str, text: str, operands: list[Operand], dest: str) -> Iterator[Micro]:
    shift = _SHIFTED.search(text)
    by = _amount(shift) if shift else 0
    numbers = [o for o in operands[1:] if isinstance(o, int)]
    if mnemonic == "movk":
        yield Micro("mov", (), dest, (), numbers[0] if numbers else None, by)
        return
    op = operation_of(mnemonic)
    value = signed(numbers[0] << by) if numbers and by else numbers[0] if numbers else None
    sources: list[Operand] = [o for o in operands[1:] if isinstance(o, str) and "ls" not in o]
    if value is None and by and shift and shift[1] in ("lsl", "lsr", "asr"):
        yield computed("shl" if shift[1] == "lsl" else "shr", [by])  # of the second register
    if value is not None:
        sources.append(-value if mnemonic.startswith(("sub", "cmn")) else value)
    if op == "cmp":
        yield computed(op, [*operands[:1], *sources])
        return
    if mnemonic == "subs" and value is not None:
        yield computed("cmp", [value])
    if op == "mov" and mnemonic == "movn" and value is not None:
        sources = [signed(~value)]
    yield computed(op, sources, dest=dest)


def _access(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    memory = next(o for o in operands if isinstance(o, Memory))
    first = text.partition(",")[0]
    op = "st" if mnemonic.startswith("st") else "ld"
    width = _width(mnemonic, first)
    registers = operands[: 2 if mnemonic in _PAIRED else 1]
    for at, register in enumerate(registers):
        place = memory._replace(offset=memory.offset + at * width)
        dest = register if op == "ld" and isinstance(register, str) else ""
        stored = register if op == "st" else ""
        yield access(op, place, width, frame, dest=dest, stored=stored)
        if op == "st" and register == 0 and memory.base not in frame:
            yield computed("mov", [0])
    if isinstance(operands[-1], int) and memory.base != "sp" and len(operands) > len(registers):
        yield computed("add", [operands[-1]], dest=memory.base)


def reader_of(view: str) -> Reader | None:
    """The reader of a view, if it is of this instruction set."""
    if not _IS_AARCH64.search(view):
        return None
    return _WITH_POINTER if _FRAME.search(view) else _READER


_READER = Reader(
    _read,
    _operand,
    arguments=tuple(f"r{number}" for number in range(8)),
    result="r0",
    saved=frozenset(f"r{number}" for number in range(19, 30)),
    frame=frozenset({"sp"}),
)
_WITH_POINTER = _READER.framed("r29")
