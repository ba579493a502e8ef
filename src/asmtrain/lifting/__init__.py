"""Instructions of three instruction sets as micro-operations: a line of a view in, `Micro`s out.

Not a semantics: an instruction is told by the kind of its operation, by its numbers, by the memory it reads
and writes and by the register it leaves a result in, which is what `events` needs to say the same of the same
source whatever compiled it. Lines are read one at a time, and remembered: functions share most of them.
"""

import re
from functools import lru_cache

from asmtrain.lifting import aarch64, riscv64, x86_64
from asmtrain.lifting.micro import Micro, Reader, signed

__all__ = ["Micro", "Reader", "lift", "reader_of", "signed"]

_SPLIT = re.compile(r", (?![^(\[]*[)\]])")
"""Between operands, not inside a memory operand's brackets."""


def reader_of(view: str) -> Reader:
    """The reader of a view's instruction set, with its frame pointer where the function has one."""
    return x86_64.reader_of(view) or aarch64.reader_of(view) or riscv64.reader_of(view)


@lru_cache(maxsize=1 << 16)
def lift(reader: Reader, line: str) -> tuple[Micro, ...]:
    """The micro-operations of a line."""
    mnemonic, _, text = line.partition(" ")
    operands = [reader.operand(part) for part in _SPLIT.split(text)] if text else []
    return (Micro("op", (f"m:{mnemonic}",)), *reader.read(mnemonic, text, operands, reader.frame))
