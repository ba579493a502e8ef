"""Functions of code that neither symbols nor unwind tables describe, from the code alone.

In goes a stripped section, out come the functions found: what is called directly, what data points to, and
what follows the end of another. A function ends at the first return or jump away that no earlier jump of its
own leads beyond; jump tables, whose targets are not known, end none. `benchmarks/linked.py` prints how many
are found of those that an unstripped build names.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from asmtrain.machine.capstones import disassemble


class Step(NamedTuple):
    """What an instruction does to the flow of control."""

    kind: str
    """`call`, `branch` (may go on), `jump`, `indirect`, `end`, `trap` (ends a function, begins none),
    `padding`, or empty."""
    target: int
    """Of a direct call, branch or jump; relative on RISC-V."""


_KINDS = {
    "aarch64": {
        "call": re.compile("bl"),
        "branch": re.compile(r"b\.\w+|cbn?z|tbn?z"),
        "jump": re.compile("b"),
        "indirect": re.compile("bra?a?"),
        "end": re.compile("ret(aa|ab)?|brk"),
        "trap": re.compile("udf"),
        "padding": re.compile("nop"),
    },
    "x86_64": {
        "call": re.compile("callq?"),
        "branch": re.compile(r"j(?!mp)[a-z]{1,5}|loopn?e?"),
        "jump": re.compile(r"(?:bnd )?jmpq?"),
        "indirect": re.compile(r"notrack jmpq?"),
        "end": re.compile(r"(?:repz? |bnd )?retq?"),
        "trap": re.compile("ud2|hlt"),
        "padding": re.compile(r"nop[wl]?|int3"),
    },
    "riscv64": {
        "call": re.compile("jal"),
        "branch": re.compile(r"(?:c\.)?b\w+"),
        "jump": re.compile(r"(?:c\.)?j"),
        "indirect": re.compile(r"(?:c\.)?jr"),
        "end": re.compile(r"ret|(?:c\.)?ebreak"),
        "trap": re.compile(r"(?:c\.)?unimp"),
        "padding": re.compile(r"(?:c\.)?nop"),
    },
}
_X86_PADDING = re.compile(r"(?:data16 |cs )*nop[wl]?|xchgw %ax, %ax|int3")
_NO_STEP = Step("", 0)


@lru_cache(1 << 16)
def _step(isa: str, mnemonic: str, operands: str) -> Step:
    kind = next((kind for kind, pattern in _KINDS[isa].items() if pattern.fullmatch(mnemonic)), "")
    if isa == "riscv64" and kind == "indirect" and operands == "ra":
        kind = "end"
    if isa == "x86_64" and _X86_PADDING.fullmatch(f"{mnemonic} {operands}".strip()):
        kind = "padding"
    if kind in ("call", "branch", "jump"):
        last = operands.rpartition(" ")[2].removeprefix("#")
        try:
            return Step(kind, int(last, 0))
        except ValueError:  # through a register or memory
            return Step("indirect", 0) if kind == "jump" else _NO_STEP
    return Step(kind, 0) if kind else _NO_STEP


def discover(
    code: bytes, address: int, isa: str, *, known: Mapping[int, int], hints: set[int]
) -> dict[int, int]:
    """Address to size of each function, those of `known` (address to size) among them.

    Args:
        code: a section's bytes.
        address: where it is loaded.
        isa: of the code.
        known: functions that something else describes.
        hints: addresses where functions are likely to begin: what data points to, and the entry.
    """
    steps = []
    adds_before = False
    for at, size, mnemonic, operands in disassemble(code, address, isa):
        kind, target = _step(isa, mnemonic, operands)
        if kind == "indirect" and (adds_before or mnemonic.startswith("notrack")):
            kind = "table"
        if isa == "riscv64" and target:
            target += at
        steps.append((at, size, kind, target))
        adds_before = mnemonic.startswith(("add", "c.add"))
    starts = {target for _, _, kind, target in steps if kind == "call"} | hints | known.keys()
    return _walk(steps, starts, known)


def _walk(
    steps: list[tuple[int, int, str, int]], starts: set[int], known: Mapping[int, int]
) -> dict[int, int]:
    """Cut a section at its starts and behind each function's end."""
    found: dict[int, int] = {}
    start, end, furthest = -1, 0, 0
    for at, size, kind, target in steps:
        if start in known and at < start + known[start]:
            continue
        if at in starts or (start < 0 and kind not in ("padding", "trap")):
            if start >= 0:
                found[start] = end - start
            start, furthest = at, at
        if start < 0:
            continue
        if kind != "padding":
            end = at + size
        if kind in ("branch", "jump") and target not in starts:
            furthest = max(furthest, target)
        goes_on = kind not in ("jump", "indirect", "end", "trap") or at + size <= furthest
        if not goes_on:
            found[start] = end - start
            start = -1
    if start >= 0:
        found[start] = end - start
    found.update({at: size for at, size in known.items() if at in found})
    return found
