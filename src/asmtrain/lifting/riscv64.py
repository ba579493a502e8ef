"""RISC-V's instructions as micro-operations."""

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
    computed,
    number_in,
    operation_of,
    signed,
)

_MEMORY = re.compile(r"([^(]*)\((\w+)\)")
_JUMPS = ("beqz", "bnez", "blez", "bgez", "bltz", "bgtz")


@lru_cache(maxsize=1 << 12)
def _operand(text: str) -> Operand:
    match = _MEMORY.fullmatch(text)
    if match:
        offset = number_in(match[1]) if match[1] else 0
        return Memory(match[2], offset or 0, 0, offset is None)
    if text == "zero":
        return 0
    number = number_in(text)
    return text if number is None else number


def _read(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    if mnemonic in ("call", "jalr", "jal", "tail"):
        yield Micro("call")
        return
    if len(operands) == 2 and isinstance(operands[1], Memory):
        yield from _access(mnemonic, operands, operands[1], frame)
        return
    dest = operands[0] if operands and isinstance(operands[0], str) else ""
    if mnemonic in ("j", "jr", "ret") or dest == "sp":
        return
    if mnemonic in ("la", "lla", "auipc") or "SYM" in text:
        yield address("symbol", dest)
    elif mnemonic in _JUMPS or mnemonic in ("seqz", "snez"):
        yield computed("cmp", [dest, 0], dest=dest if mnemonic.startswith("s") else "")
    elif mnemonic.startswith("b") and len(operands) == 3:
        yield computed("cmp", operands[:2])
    elif len(operands) > 1 and operands[1] in frame:
        yield address("frame", dest)
    elif mnemonic == "lui" and len(operands) > 1 and isinstance(operands[1], int):
        yield computed("mov", [signed((operands[1] << 12) & 0xFFFFFFFF)], dest=dest)
    else:
        yield computed(operation_of(mnemonic), operands[1:], dest=dest)


def _access(mnemonic: str, operands: list[Operand], memory: Memory, frame: frozenset[str]) -> Iterator[Micro]:
    is_store = mnemonic.lstrip("f").startswith("s")
    width = WIDTHS.get(mnemonic.rstrip("u")[-1:], 8)
    first = operands[0]
    if is_store:
        yield access("st", memory, width, frame, stored=first if not isinstance(first, Memory) else "")
    else:
        yield access("ld", memory, width, frame, dest=first if isinstance(first, str) else "")
    if is_store and first == 0 and memory.base not in frame:
        yield computed("mov", [0])


def reader_of(view: str) -> Reader:
    """The reader of a view."""
    return _WITH_POINTER if "addi s0, sp" in view else _READER


_READER = Reader(
    _read,
    _operand,
    arguments=tuple(f"a{number}" for number in range(8)),
    result="a0",
    saved=frozenset(f"s{number}" for number in range(12)),
    frame=frozenset({"sp"}),
)
_WITH_POINTER = _READER.framed("s0")
