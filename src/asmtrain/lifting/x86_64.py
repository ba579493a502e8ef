"""x86-64's instructions, in AT&T syntax, as micro-operations."""

import re
from collections.abc import Iterator
from functools import lru_cache

from asmtrain.lifting.micro import (
    Memory,
    Micro,
    Operand,
    Reader,
    access,
    address,
    computed,
    number_in,
    operation_of,
)

_MEMORY = re.compile(r"\*?(?:%\ws:)?([^(]*)\(([^)]*)\)")
_WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
_LOADS = (("movzb", 1), ("movsb", 1), ("movzw", 2), ("movsw", 2), ("movslq", 4))
_LOADED = "loaded"
"""What an instruction that computes has read from memory, as if in a register."""
_REGISTER = re.compile(r"%(?:(r\d+)[dwb]?|[re]?([abcd])[xlh]|[re]?(si|di|bp|sp)l?)$")


@lru_cache(maxsize=1 << 14)
def _operand(text: str) -> Operand:
    if "(" in text:
        match = _MEMORY.match(text)
        if match is None:
            return text
        base, *rest = (part.strip() for part in match[2].split(","))
        scale = (number_in(rest[1]) if len(rest) > 1 else 1) or 1 if rest else 0
        offset = number_in(match[1]) if match[1] else 0
        is_symbol = offset is None or base == "%rip"
        return Memory("" if base == "%rip" else str(_operand(base)), offset or 0, scale, is_symbol)
    if text.startswith("$"):
        number = number_in(text)
        return text if number is None else number
    match = _REGISTER.match(text)
    return next((f"{name}" for name in match.groups() if name), text) if match else text


def _width(mnemonic: str) -> int:
    for start, width in _LOADS:
        if mnemonic.startswith(start):
            return width
    if mnemonic.endswith("ss") and len(mnemonic) > 3:
        return 4
    if mnemonic.endswith("sd"):
        return 8
    if mnemonic.startswith(("mova", "movu", "movdq")):
        return 16
    return _WIDTHS.get(mnemonic[-1:], 0)


def _read(mnemonic: str, text: str, operands: list[Operand], frame: frozenset[str]) -> Iterator[Micro]:
    if mnemonic.startswith("call") or (mnemonic == "jmp" and text == "CALL"):
        yield Micro("call")
        return
    if mnemonic.startswith(("push", "pop")):
        is_pop = mnemonic.startswith("pop") and operands
        yield Micro("op", ("frame",), str(operands[0]) if is_pop else "")
        return
    if mnemonic.startswith(("j", "leave")) or not operands:
        return
    last, op = operands[-1], operation_of(mnemonic)
    dest = last if isinstance(last, str) and op != "cmp" else ""
    if dest == "sp":
        return
    if mnemonic.startswith("lea"):
        yield from _address(operands[0], dest, frame)
        return
    is_store = isinstance(last, Memory) and len(operands) > 1 and op in ("mov", "op")
    for operand in operands:
        if isinstance(operand, Memory) and is_store:
            first = operands[0]
            stored = first if not isinstance(first, Memory) else ""
            yield access("st", operand, _width(mnemonic), frame, stored=stored)
        elif isinstance(operand, Memory):
            yield access("ld", operand, _width(mnemonic), frame, dest=dest if op == "mov" else _LOADED)
    yield from _computed(mnemonic, op, operands, dest)


def _address(memory: Operand, dest: str, frame: frozenset[str]) -> Iterator[Micro]:
    """`lea` computes: an address in the frame or of a symbol, or a sum."""
    if not isinstance(memory, Memory) or memory.base in frame:
        yield address("frame", dest)
    elif memory.is_symbol:
        yield address("symbol", dest)
    else:
        if memory.scale:
            yield Micro("op", (f"index{memory.scale}",))
        sources: list[Operand] = [memory.base] if not memory.scale else []
        yield computed("add", [*sources, memory.offset] if memory.offset else sources, dest=dest)


def _computed(mnemonic: str, op: str, operands: list[Operand], dest: str) -> Iterator[Micro]:
    first = operands[0]
    if len(operands) == 2 and first == operands[1] and isinstance(first, str):
        if mnemonic.startswith("test"):
            yield computed("cmp", [first, 0])
            return
        if op == "xor":
            yield computed("mov", [0], dest=dest)
            return
    if mnemonic.startswith("test"):
        op = "and"
    reads = [_LOADED if isinstance(o, Memory) else o for o in operands]
    if mnemonic.startswith("sub") and isinstance(first, int):
        reads = [-first, *reads[1:]]
    if op == "mov":
        reads = [o for o in operands[:1] if not isinstance(o, Memory)]
    if reads:
        yield computed(op, [str(o) if isinstance(o, str) else o for o in reads], dest=dest)


def reader_of(view: str) -> Reader | None:
    """The reader of a view, if it is of this instruction set."""
    if "%" not in view:
        return None
    return _WITH_POINTER if "movq %rsp, %rbp" in view else _READER


_READER = Reader(
    _read,
    _operand,
    arguments=("di", "si", "d", "c", "r8", "r9"),
    result="a",
    saved=frozenset(("b", "bp", "r12", "r13", "r14", "r15")),
    frame=frozenset({"sp"}),
)
_WITH_POINTER = _READER.framed("bp")
