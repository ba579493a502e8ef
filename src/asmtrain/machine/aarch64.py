"""AArch64 instructions of capstone with symbols where the linker filled in or will fill in."""

import re
from functools import lru_cache
from typing import NamedTuple

from asmtrain.machine.context import OUTSIDE, SYMBOL, Context, Decoded, Written, number

_JUMP = re.compile(r"b|bl|b\.\w+|cbn?z|tbn?z|adr")
_BASE = re.compile(r"\[(x\d+|sp)(?:, #-?\w+)?\]")
_WRAPPED = re.compile(r"#0x(f[0-9a-f]{15})\b")
"""A negative number as capstone prints some of them."""
_TLS_CALL = 569
"""R_AARCH64_TLSDESC_CALL changes nothing."""


class _Spelled(NamedTuple):
    """An instruction without its relocation."""

    head: str
    """Its text; for a jump or a literal's address, what precedes the target."""
    target: int | None
    destination: str
    """The register that it writes; empty if it writes none."""
    base: str
    """The register whose page it may complete: of its address, or of an addition of a constant."""
    operands: str


@lru_cache(1 << 16)
def _spelled(mnemonic: str, operands: str) -> _Spelled:
    if "#0xf" in operands:
        operands = _WRAPPED.sub(lambda match: f"#{int(match[1], 16) - (1 << 64)}", operands)
    destination = operands.partition(",")[0]
    if mnemonic.startswith(("st", "cmp", "tst")) or (mnemonic in ("ldp", "ldr") and "[sp" in operands):
        destination = ""  # an epilogue's loads: code behind its return has the registers as they were
    if _JUMP.fullmatch(mnemonic) or (mnemonic in ("ldr", "ldrsw") and "[" not in operands):
        head, _, last = f"{mnemonic} {operands}".rpartition(" ")
        target = number(last)
        if target is not None:  # else it is a vector's `adr`
            return _Spelled(f"{head} ", target, destination, "", operands)
    return _Spelled(f"{mnemonic} {operands}", None, destination, _base(mnemonic, operands), operands)


def _base(mnemonic: str, operands: str) -> str:
    if base := _BASE.search(operands):
        return base[1]
    parts = operands.split(", ")
    return parts[1] if mnemonic == "add" and len(parts) == 3 and parts[2].startswith("#") else ""


def written(instructions: Decoded, code: bytes, address: int, context: Context) -> Written:
    """The instructions of one function; `code` are its bytes, `address` where they lie."""
    pages: set[str] = set()  # registers that hold a symbol's page, in a linked file
    relocations = context.relocations
    for at, _, mnemonic, operands in instructions:
        head, target, destination, base, operands = _spelled(mnemonic, operands)
        relocation = relocations.get(at) if relocations else None
        if target is not None:
            if relocation:
                target = OUTSIDE if relocation.target is None else relocation.target
            yield at, head, target
        elif mnemonic == "adrp":
            if context.is_linked:
                pages.add(destination)
            yield at, f"adrp {destination}, {SYMBOL}", None
            continue
        elif (relocation and relocation.kind != _TLS_CALL) or (pages and base in pages):
            yield at, f"{mnemonic} {_low_12_bits(operands)}", None
        else:
            yield at, head, None
        pages.discard(destination)


@lru_cache(1 << 12)
def _low_12_bits(operands: str) -> str:
    """The operands with the symbol in place of the offset: `x0, [x0, :lo12:SYM]`, `x0, x0, :lo12:SYM`."""
    reference = f":lo12:{SYMBOL}"
    if "[" in operands:
        return _BASE.sub(lambda base: f"[{base[1]}, {reference}]", operands)
    head, comma, shift = operands.partition(", lsl")
    return f"{head.rpartition(', ')[0]}, {reference}{comma}{shift}"
