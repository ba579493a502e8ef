"""Instructions as capstone prints them; the only importer of capstone.

Cost: a million instructions a second on one core; operand details are ten times slower, and are asked for
where a relocation of x86-64 may lie in two places alone.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from asmtrain.errors import BinaryError


@cache
def _engine(isa: str, *, detail: bool) -> Any:
    try:
        import capstone as cs
    except ImportError:
        raise BinaryError(
            "capstone is not installed, which reads machine code", remedy="pip install 'asmtrain[eval]'"
        ) from None
    architecture, mode = {
        "aarch64": (cs.CS_ARCH_ARM64, cs.CS_MODE_ARM),
        "x86_64": (cs.CS_ARCH_X86, cs.CS_MODE_64),
        "riscv64": (cs.CS_ARCH_RISCV, cs.CS_MODE_RISCV64 | cs.CS_MODE_RISCVC),
    }[isa]
    engine = cs.Cs(architecture, mode)
    if isa == "x86_64":
        engine.syntax = cs.CS_OPT_SYNTAX_ATT
    engine.detail = detail
    engine.skipdata = not detail  # bytes that are no instruction become .byte, which `view` passes over
    return engine


def disassemble(code: bytes, address: int, isa: str) -> Iterable[tuple[int, int, str, str]]:
    """Address, size, mnemonic and operands of each instruction; what is none reads `.byte`."""
    found: Iterable[tuple[int, int, str, str]] = _engine(isa, detail=False).disasm_lite(code, address)
    return found


def immediate_offset(code: bytes) -> int:
    """Where the immediate of an x86-64 instruction lies in its bytes; 0 for none."""
    detail = next(_engine("x86_64", detail=True).disasm(code, 0, 1), None)
    return detail.imm_offset if detail is not None else 0
