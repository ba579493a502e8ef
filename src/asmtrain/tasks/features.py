"""What can be counted in a view text: mnemonics, constants, blocks, and 14 numbers.

In go view texts (`corpus_builder.asm.view`) of any of the three ISAs, out come tokens and numbers. Pure.
What a mnemonic does is told by its name, once a name: 3,000 functions a second.
"""

import re
from functools import lru_cache
from typing import Literal

from corpus_builder.asm import constants

NUMERIC = (
    *("instructions", "blocks", "calls", "jumps", "branches", "returns", "compares", "moves"),
    *("arithmetic", "logic", "memory", "symbols", "constants", "distinct_constants"),
)
"""What `numbers` counts. `branches` are conditional, `memory` are operands in memory."""

Kind = Literal["calls", "jumps", "branches", "returns", "compares", "moves", "arithmetic", "logic", "other"]

_KINDS: dict[Kind, re.Pattern[str]] = {
    "calls": re.compile(r"(?:bl|blr|call\w*|jalr?)$"),
    "returns": re.compile(r"ret\w*$"),
    "jumps": re.compile(r"(?:br?|jmp\w*|jr?|tail)$"),
    "branches": re.compile(r"(?:b\.\w+|[ct]bn?z|j\w+|b(?:eq|ne|ge|lt|gt|le)[uz]*)$"),
    "compares": re.compile(r"f?c?c?cm[pn]\w*|te?st|u?comis|slti?u?$|s(?:eq|ne|lt|gt)z|set|cset|bt[lq]?$"),
    "moves": re.compile(
        r"v?f?mov|cmov|mv$|fmv|li$|lui$|la$|auipc|adrp?$|lea|push|pop|ldu?[rp]|stu?[rp]|f?[ls][bhwd]u?$|csel|fcsel"
    ),
    "arithmetic": re.compile(r"\w*(?:add|sub|mul|div|neg|sqrt|inc|dec|abs|rem|min|max)"),
    "logic": re.compile(
        r"\w*(?:and|or|not|sh[lr]|sa[lr]|ls[lr]|asr|ro[lr]|s[lr]l|sra|bic|mvn|bf|[su]xt|ext|rev)"
    ),
}


@lru_cache(maxsize=1 << 14)
def kind_of(mnemonic: str) -> Kind:
    """What an instruction does, by its name."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(mnemonic)), "other")


def instructions(view: str) -> list[str]:
    """The lines of a view that are no labels."""
    return [line for line in view.splitlines() if line and not line.endswith(":")]


def opcodes(view: str) -> list[str]:
    """The mnemonics of a view, in order."""
    return [line.split(" ", 1)[0] for line in instructions(view)]


def num_blocks(view: str) -> int:
    """Basic blocks: runs of instructions that begin at a label or behind a jump, branch or return."""
    blocks, starts_here = 0, True
    for line in view.splitlines():
        if line.endswith(":"):
            starts_here = True
        elif line:
            blocks += starts_here
            starts_here = kind_of(line.split(" ", 1)[0]) in ("jumps", "branches", "returns")
    return blocks


def numbers(view: str) -> list[int]:
    """The 14 numbers of `NUMERIC`."""
    lines = instructions(view)
    found = constants(view)
    counts = dict.fromkeys(NUMERIC, 0)
    for line in lines:
        kind = kind_of(line.split(" ", 1)[0])
        if kind != "other":
            counts[kind] += 1
        counts["memory"] += "[" in line or "(" in line
        counts["symbols"] += "SYM" in line
    counts |= {"instructions": len(lines), "blocks": num_blocks(view)}
    counts |= {"constants": len(found), "distinct_constants": len(set(found))}
    return list(counts.values())
