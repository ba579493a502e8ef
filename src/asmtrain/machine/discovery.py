"""Functions of code that neither symbols nor unwind tables describe, from the code alone.

In goes a stripped section, out come the functions found: what is called directly, what data and code take the
address of, and what follows the end of another, if it saves its caller's registers before it uses them. A
function ends at the first return or jump away that no earlier jump of its own leads beyond; jumps through
tables, whose targets are not known, end none. `benchmarks/linked.py` prints how many
are found of those that an unstripped build names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from asmtrain.machine.capstones import disassemble
from asmtrain.machine.context import number


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
_LOOK = 6
"""Instructions looked at before a jump, and behind a function's first."""
Line = tuple[int, int, str, str]


@lru_cache(1 << 16)
def _step(isa: str, mnemonic: str, operands: str) -> Step:
    kind = next((kind for kind, pattern in _KINDS[isa].items() if pattern.fullmatch(mnemonic)), "")
    if isa == "riscv64" and kind == "indirect" and operands == "ra":
        kind = "end"
    if isa == "x86_64" and _X86_PADDING.fullmatch(f"{mnemonic} {operands}".strip()):
        kind = "padding"
    if kind in ("call", "branch", "jump"):
        target = number(operands.rpartition(" ")[2])
        if target is None:  # through a register or memory
            return Step("indirect", 0) if kind == "jump" else _NO_STEP
        return Step(kind, target)
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
        hints: addresses where functions may begin: what data points to, and the entry.
    """
    lines = list(disassemble(code, address, isa))
    steps = _steps(lines, isa)
    called = {target for _, _, kind, target in steps if kind == "call"}
    pointed = hints | _taken(lines, isa)
    looks = {
        at: _looks(lines[place : place + _LOOK], isa)
        for place, (at, _, _, _) in enumerate(lines)
        if at in pointed or steps[place - 1][2] not in ("", "call", "branch")
    }
    starts = called | known.keys() | {at for at in pointed if looks.get(at)} | _framed(lines, steps, isa)
    return _walk(steps, starts, known, looks)


def _steps(lines: list[Line], isa: str) -> list[tuple[int, int, str, int]]:
    """Address, size, kind and absolute target of each instruction; table jumps are of kind `table`."""
    steps = []
    for place, (at, size, mnemonic, operands) in enumerate(lines):
        kind, target = _step(isa, mnemonic, operands)
        if kind == "indirect" and _is_table(lines[max(0, place - _LOOK) : place], mnemonic, operands):
            kind = "table"
        steps.append((at, size, kind, target + at if isa == "riscv64" and target else target))
    return steps


def _is_table(before: list[Line], mnemonic: str, operands: str) -> bool:
    """Whether an indirect jump goes where a table says: its register was added to, or loaded by an index."""
    if mnemonic.startswith("notrack") or "," in operands:
        return True
    register = operands.lstrip("*")
    for _, _, writer, written in reversed(before):
        parts = written.split(", ")
        if register in (parts[0], parts[-1]) and not writer.startswith(("st", "cmp", "c.s", "s")):
            if writer.startswith(("ld", "c.ld", "c.lw", "lw")) and parts[0] == register:
                register = written.rpartition("(")[2].rstrip(")")  # what the load's address was made of
                if "[" in written:
                    return written.count(",") > 1
                continue
            return writer.startswith(("add", "c.add", "lea"))
    return False


_NOT_PASSED = {
    "aarch64": re.compile(r"\b[xw](?:19|2[0-8])\b"),
    "x86_64": re.compile(r"%(?:[re]b[xp]|b[lp]|bpl|r1[2-5][dwb]?)\b|%r1[01][dwb]?\b.*, "),
    "riscv64": re.compile(r"\bs(?:\d|10|11)\b"),
}
_FRAME = {
    "aarch64": re.compile(r"stp x29, x30, \[sp, #-|sub sp, sp, |paciasp|bti c"),
    "x86_64": re.compile(r"endbr64|subq? \$\w+, %rsp"),
    "riscv64": re.compile(r"(?:c\.)?addi(?:16sp)? sp, (?:sp, )?-"),
}
_SAVES = {
    "aarch64": re.compile("stp|str|sub"),
    "x86_64": re.compile("pushq?|subq?"),
    "riscv64": re.compile(r"(?:c\.)?(?:f?sdsp|f?sd|addi|addi16sp)"),
}


def _looks(lines: list[Line], isa: str) -> int:
    """How much like a function's beginning: 2 if it saves registers, 0 if it uses its caller's unsaved."""
    for _, _, mnemonic, operands in lines:
        if _FRAME[isa].match(f"{mnemonic} {operands}"):
            return 2
        if _NOT_PASSED[isa].search(operands):
            return 2 if _SAVES[isa].fullmatch(mnemonic) else 0
        if _step(isa, mnemonic, operands).kind not in ("", "branch"):
            return 1
    return 1


_NEW_FRAME = {
    "aarch64": re.compile(r"stp x29, x30, \[sp, #-|sub sp, sp, #|paciasp"),
    "x86_64": re.compile("endbr64"),
    "riscv64": _FRAME["riscv64"],
}


def _framed(lines: list[Line], steps: list[tuple[int, int, str, int]], isa: str) -> set[int]:
    """Where a frame is made right behind a call, which then does not return: a function has one frame."""
    found = set()
    before = ""
    for (at, _, mnemonic, operands), (_, _, kind, _) in zip(lines, steps, strict=True):
        if before == "call" and _NEW_FRAME[isa].match(f"{mnemonic} {operands}"):
            found.add(at)
        before = before if kind == "padding" else kind
    return found


_X86_LEA = re.compile(r"(-?(?:0x)?[0-9a-f]+)\(%rip\), ")


def _taken(lines: list[Line], isa: str) -> set[int]:
    """Addresses that the code itself takes, as of functions that it hands on."""
    found = set()
    pages: dict[str, int] = {}
    for at, size, mnemonic, operands in lines:
        if isa == "x86_64":
            if mnemonic == "leaq" and (match := _X86_LEA.match(operands)):
                found.add(at + size + (number(match[1]) or 0))
            continue
        if mnemonic in ("adrp", "auipc"):
            register, _, page = operands.partition(", ")
            high = number(page) or 0
            pages[register] = high if isa == "aarch64" else at + (_signed(high, 20) << 12)
        elif pages:
            register, base, *low = [*operands.split(", "), ""]
            if base in pages and mnemonic in ("add", "addi") and (offset := number(low[0])) is not None:
                found.add(pages[base] + offset)
            pages.pop(register, None)
    return found


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) & 1 else number


def _walk(
    steps: list[tuple[int, int, str, int]],
    starts: set[int],
    known: Mapping[int, int],
    looks: Mapping[int, int],
) -> dict[int, int]:
    """Cut a section at its starts and behind each function's end."""
    pieces: list[_Piece] = []
    piece: _Piece | None = None
    furthest = 0
    for at, size, kind, target in steps:
        if at in starts or (piece is None and kind not in ("padding", "trap")):
            is_sure = at in starts or not pieces
            # Behind a jump table what follows an apparent end is another case, if it saves no registers.
            looks_whole = looks.get(at, 2) >= (2 if pieces and pieces[-1].has_table else 1)
            if is_sure or looks_whole:
                pieces.append(_Piece(at, is_sure))
            piece, furthest = pieces[-1], at
        if piece is None:
            continue
        if kind != "padding":
            piece.end = at + size
        if kind in ("branch", "jump") and target not in starts:
            furthest = max(furthest, target)
            piece.lowest_target = min(piece.lowest_target, target)
        piece.has_table |= kind == "table"
        if kind in ("jump", "indirect", "end", "trap") and at + size > furthest:
            piece = None
    return {each.start: known.get(each.start, each.end - each.start) for each in _merged(pieces)}


@dataclass
class _Piece:
    """What looks like a function so far."""

    start: int
    is_sure: bool
    """Something else than the end of the function before it says that it begins here."""
    end: int = 0
    lowest_target: int = 1 << 64
    """Of its jumps, other than those to where functions are sure to begin."""
    has_table: bool = False


def _merged(pieces: list[_Piece]) -> list[_Piece]:
    """Pieces joined to the function before them where they jump into its middle."""
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and not piece.is_sure and merged[-1].start < piece.lowest_target < piece.start:
            merged[-1].end = piece.end
        else:
            merged.append(piece)
    return merged
