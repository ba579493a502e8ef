"""What instructions are read with: the relocations of their section, and facts of their file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SYMBOL = "SYM"
"""Stands for every symbol: `view` hides their names in any case."""
OUTSIDE = -1
"""A jump's target that is no address of the function's own section."""

Decoded = Iterable[tuple[int, int, str, str]]
"""Address, size, mnemonic and operands of instructions, in capstone's spelling."""

Written = Iterable[tuple[int, str, int | None]]
"""Address, text, and the address of the label that the text ends with; None where it is whole."""


def number(text: str) -> int | None:
    """The number that an operand is, if it is one: capstone prints `0x10`, `-16`, `#-0x10`."""
    try:
        return int(text.removeprefix("#"), 0)
    except ValueError:
        return None


class Relocation(NamedTuple):
    """What the linker is to write into an instruction."""

    kind: int
    """Type number of the ELF machine."""
    target: int | None
    """Address in the same section, where the symbol lies there; None elsewhere."""


@dataclass(frozen=True)
class Context:
    """What is known of a function's file and section."""

    relocations: Mapping[int, Relocation] = field(default_factory=dict)
    """Of the section, by the offset they change; empty for a linked file."""
    is_linked: bool = False
    """Addresses are final, so that page addresses stand for symbols."""
    absolute: tuple[int, int] = (0, 0)
    """Addresses that constants may stand for: those of a program linked to a fixed place."""
    offsets: tuple[int, int] = (0, 0)
    """The global offset table, whose entries stand for the symbols they point to."""
    is_clang: bool = False
    """clang made it; elsewhere gcc. They write some instructions of RISC-V differently."""
