"""What the readers of all instruction sets share: micro-operations, operands, and how they are made."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
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
    """`mov`, `add`, `mul`, `div`, `and`, `or`, `xor`, `shl`, `shr`, `cmp`, `call`, `ld`, `st`,
    `frame` and `symbol` for their addresses, or `op` for others."""
    words: tuple[str, ...] = ()
    dest: str = ""
    """Register that it writes; empty for none."""
    sources: tuple[str, ...] = ()
    """Registers that it reads."""
    value: int | None = None
    """The number among its operands."""
    shift: int | None = None
    """Of a number that is inserted into `dest` (movk)."""
    memory: Memory | None = None
    """Where `ld` and `st` reach."""
    width: int = 0
    """Bytes that they move."""
    stored: str = ""
    """Register, or `#` and a number, that `st` writes."""

    @cached_property
    def is_stateful(self) -> bool:
        """Whether it reads or writes what `events` follows."""
        return bool(self.dest or self.sources or self.memory or self.op == "call")

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


@dataclass(frozen=True, eq=False)  # `lift` remembers lines by the reader itself
class Reader:
    """How one instruction set is read."""

    read: Callable[[str, str, list[Operand], frozenset[str]], Iterator[Micro]]
    """Mnemonic, operand text, operands and the frame's registers to micro-operations."""
    operand: Callable[[str], Operand]
    arguments: tuple[str, ...]
    result: str
    """Register in which a call gives back a value."""
    saved: frozenset[str]
    """Registers that a function gives back as it found them."""
    frame: frozenset[str]
    """Registers whose memory is the function's own frame."""

    def framed(self, pointer: str) -> "Reader":
        """The same with a frame pointer."""
        return replace(self, frame=self.frame | {pointer})


def bit(number: int) -> int:
    """2 to a number that registers have bits for, whatever a text claims."""
    return 1 << (number & 63)


def number_in(text: str) -> int | None:
    """The number that an operand writes."""
    try:
        return signed(int(text.lstrip("#$"), 0))
    except ValueError:
        return None


WIDTHS = {"b": 1, "h": 2, "w": 4, "s": 4, "x": 8, "d": 8, "q": 16, "v": 16}
"""Bytes by the letter that names them, in AArch64's and RISC-V's registers and mnemonics."""


def computed(op: str, operands: list[Operand], *, dest: str = "") -> Micro:
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


def access(
    op: str, memory: Memory, width: int, frame: frozenset[str], *, dest: str = "", stored: Operand = ""
) -> Micro:
    """A load or store."""
    where = Memory("SYM", 0, memory.scale, True) if memory.is_symbol else memory if memory.base else None
    what = f"#{stored}" if isinstance(stored, int) else str(stored)
    return Micro(op, _words(op, memory, width, frame), dest, memory=where, width=width, stored=what)


def address(of: str, dest: str) -> Micro:
    """The address of a `symbol` or of something in the `frame`."""
    return Micro(of, (of,), dest)


def _words(op: str, memory: Memory, width: int, frame: frozenset[str]) -> tuple[str, ...]:
    if memory.base in frame:
        return ("frame",)
    words = ["symbol"] if memory.is_symbol else []
    if memory.base:
        if memory.scale:
            words.append(f"index{memory.scale}")
        at = memory.offset
        words += [f"@{at}", f"@{at}.{width}", f"{op}@{at}.{width}"]
    return tuple(words)


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
    ("mov", re.compile(r"mov(?!k)|li$|mv$|[su]xt[bhw]$|[sz]ext\.")),
)


@lru_cache(maxsize=1 << 12)
def operation_of(mnemonic: str) -> str:
    """`Micro.op` of a mnemonic."""
    return next((name for name, pattern in _OPS if pattern.match(mnemonic)), "op")
