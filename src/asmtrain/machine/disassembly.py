"""One function's machine code to assembler text that `asm.view` reads like a compiler's.

Labels are put where jumps go, and what relocations, or in a linked file addresses, stand for turns back into
symbols: `aarch64`, `x86_64` and `riscv64` write the instructions. Cost: see benchmarks/embed_speed.py.
"""

from asmtrain.machine import aarch64, riscv64, x86_64
from asmtrain.machine.capstones import disassemble
from asmtrain.machine.context import SYMBOL, Context

_WRITERS = {"aarch64": aarch64.written, "x86_64": x86_64.written, "riscv64": riscv64.written}


def function_text(code: bytes, address: int, isa: str, context: Context) -> str:
    """The text of one function.

    Args:
        code: its bytes.
        address: where they lie in their section (object file) or in memory (linked).
        isa: of the code.
        context: what is known of its file.
    """
    end = address + len(code)
    lines: list[tuple[int, str]] = []
    labels: set[int] = set()
    for at, text, target in _WRITERS[isa](disassemble(code, address, isa), code, address, context):
        if target is None:
            lines.append((at, text))
        elif address <= target < end:
            labels.add(target)
            lines.append((at, f"{text}.L{target}"))
        else:
            lines.append((at, text + SYMBOL))
    if not labels:
        return "\t" + "\n\t".join([text for _, text in lines]) + "\n"
    return "".join(_labelled(lines, labels))


def _labelled(lines: list[tuple[int, str]], labels: set[int]) -> list[str]:
    written = []
    for at, text in lines:
        if at in labels:
            labels.remove(at)
            written.append(f".L{at}:\n\t{text}\n")
        else:
            written.append(f"\t{text}\n")
    return written
