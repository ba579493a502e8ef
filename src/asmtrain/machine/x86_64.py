"""x86-64 instructions of capstone (AT&T) with symbols where the linker filled in or will fill in."""

import re
from collections.abc import Mapping
from functools import lru_cache

from asmtrain.machine.capstones import immediate_offset
from asmtrain.machine.context import OUTSIDE, SYMBOL, Context, Decoded, Relocation, Written, number

_JUMP = re.compile(r"(?:\w+ )*(?:callq?|jmpq?|j[a-z]{1,4}|loopn?e?|xbegin)")
_RIP = re.compile(r"[-\w]*\(%rip\)")
_IMMEDIATE = re.compile(r"\$-?\w+")
_MEMORY = re.compile(r"(?<![$\w%])-?(?:0x[0-9a-f]+|\d+)?(?=\()|(?<![$\w%(])(?:0x[0-9a-f]+|\d+)(?![\w)(])")
_ADDRESS = re.compile(r"(?<![\w%(,-])(\$?)(0x[0-9a-f]{5,9})(?![\w)])")
_PADDING = re.compile(r"(?:data16 |cs )*nop|xchgw %ax, %ax")
"""What assemblers align loops with; compilers never wrote it. `view` drops plain nops."""
_PC_RELATIVE = frozenset((2, 4, 9, 22, 41, 42))
"""R_X86_64_PC32, PLT32, GOTPCREL, GOTTPOFF, GOTPCRELX, REX_GOTPCRELX."""


@lru_cache(1 << 16)
def _spelled(mnemonic: str, operands: str) -> tuple[str, int | None]:
    """Text and target of an instruction that needs no relocation."""
    if _JUMP.fullmatch(mnemonic) and (target := number(operands)) is not None:
        return f"{mnemonic.removeprefix('addr32 ')} ", target
    if "%rip" in operands:
        operands = _RIP.sub(f"{SYMBOL}(%rip)", operands)
    text = f"{mnemonic} {operands}"
    return "" if _PADDING.match(text) else text, None


def written(instructions: Decoded, code: bytes, address: int, context: Context) -> Written:
    """The instructions of one function; `code` are its bytes, `address` where they lie."""
    low, high = context.absolute
    relocations = context.relocations
    for at, size, mnemonic, operands in instructions:
        if relocations and (inside := _relocated(relocations, at, size)):
            yield at, *_with_relocations(code[at - address :][:size], at, mnemonic, operands, inside)
            continue
        text, target = _spelled(mnemonic, operands)
        if high and target is None and "0x" in text:
            text = _ADDRESS.sub(
                lambda match: f"{match[1]}{SYMBOL}" if low <= int(match[2], 16) < high else match[0], text
            )
        yield at, text, target


def _relocated(known: Mapping[int, Relocation], at: int, size: int) -> list[tuple[int, Relocation]]:
    """Relocations within an instruction, with the offsets that they change."""
    return [(offset, known[offset]) for offset in range(at + 1, at + size) if offset in known]


def _with_relocations(
    code: bytes, at: int, mnemonic: str, operands: str, inside: list[tuple[int, Relocation]]
) -> tuple[str, int | None]:
    if _JUMP.fullmatch(mnemonic) and not operands.startswith("*"):
        offset, relocation = inside[-1]
        target = _displaced(relocation, offset, at + len(code))
        return f"{mnemonic} ", OUTSIDE if target is None else target
    immediate = at + immediate_offset(code) if "$" in operands else 0
    for offset, _ in inside:
        if offset == immediate:
            operands = _IMMEDIATE.sub(f"${SYMBOL}", operands, count=1)
        elif "(%rip)" not in operands:
            operands = _MEMORY.sub(SYMBOL, operands, count=1)
    return f"{mnemonic} {_RIP.sub(f'{SYMBOL}(%rip)', operands)}", None


def _displaced(relocation: Relocation, offset: int, next_address: int) -> int | None:
    """Where a relocated PC-relative operand points: its addend counts from the operand, not from the end."""
    if relocation.target is None:
        return None
    return relocation.target + (next_address - offset if relocation.kind in _PC_RELATIVE else 0)
