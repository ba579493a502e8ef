"""Assembler text of gcc and clang: split it into functions, and bring functions into two plain forms.

In goes what `gcc -S` or `clang -S` wrote (AT&T syntax for x86-64), or what a disassembler printed; out come
strings. `split_functions` cuts a unit's text into raw functions; `clean` keeps their instructions and labels,
for language models; `view` keeps what a stripped binary shows, for retrieval and for finding equal bodies.

Invariants: clean(clean(x)) == clean(x), view(view(x)) == view(x), view(clean(x)) == view(x); clean(x)
assembles to the code bytes and relocations of x. Both forms hold one statement a line and end with a newline.
Local labels are L0, L1.. in the order they are defined, which is the order of their addresses in a section;
labels at one address are one label.

Cost: splitting is two `str.find` a function (a lazy regex over whole units took 11 % of the compilers' CPU);
see `forms` for the rest, and benchmarks/parsing.py.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

from corpus_builder.forms import CLEAN, VIEW, Code, Form, Special, code_of, from_label, visible, write
from corpus_builder.statements import (
    INSTRUCTION,
    LABEL,
    SECTION,
    Sections,
    home_of,
    parse_line,
    without_block_comments,
)

ISAS = ("aarch64", "x86_64", "riscv64")

_CFI_END = "\t.cfi_endproc\n"


def split_functions(text: bytes | str) -> dict[str, str]:
    """Cut a unit's assembler text into functions, symbol to raw text from its `.type` line to its `.size`.

    A `.cfi_endproc` behind the `.size` belongs to it, so that each text assembles on its own.
    A function's `.cold` part stands inside its text, where gcc puts it. Clones (`origin`) and aliases, which
    have no text of their own, are left out.
    """
    return {symbol: body for symbol, body in split_symbols(text).items() if origin(symbol) == symbol}


def split_symbols(text: bytes | str) -> dict[str, str]:
    """The same with the clones that a compiler made (`f.isra.0`, `f.part.0`), in the order of the text."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    functions = {}
    start = text.find("\t.type\t")
    while start >= 0:
        line_end = text.find("\n", start)
        symbol, _, kind = text[start + 7 : line_end].partition(",")
        after = line_end
        if kind.lstrip().startswith(("@function", "%function")):
            size = text.find(f"\t.size\t{symbol},", line_end)
            if size >= 0 and text.find(f"\n{symbol}:", line_end, size) >= 0:
                after = text.find("\n", size)
                if text.startswith(_CFI_END, after + 1):  # clang ends its unwind information behind .size
                    after += len(_CFI_END)
                functions[symbol] = text[start : after + 1]
        start = text.find("\t.type\t", after) if after >= 0 else -1
    return functions


class Emitted(NamedTuple):
    """What a compiler made of one C function."""

    symbol: str
    """What the text is of: the function's name, or its clone's where only clones are left."""
    text: str
    clones: dict[str, str]
    """The function's other symbols and their texts, in the order of the unit."""


def join_clones(symbols: Mapping[str, str]) -> dict[str, Emitted]:
    """C function to its text and its clones, from what `split_symbols` found.

    Where the function itself is gone, the first clone with the whole body stands for it: no `.part`, if
    there is another.
    """
    families: dict[str, dict[str, str]] = {}
    for symbol, text in symbols.items():
        families.setdefault(origin(symbol), {})[symbol] = text
    joined = {}
    for name, family in families.items():
        main = name if name in family else min(family, key=lambda symbol: ".part." in symbol)
        clones = {symbol: text for symbol, text in family.items() if symbol != main}
        joined[name] = Emitted(main, family[main], clones)
    return joined


def origin(symbol: str) -> str:
    """The C function that a symbol was made from: `f` for `f.isra.0`, `f.part.0.cold` and for `f` itself.

    C names hold no dot, so whatever follows one was added by a compiler.
    """
    return symbol.partition(".")[0] or symbol


def clean(text: str, isa: str) -> str:
    """A function's instructions and labels, symbols kept: `name:`, then `ldr w0, [sp, 12]`..

    Unwind and debug information, alignment, symbol types and sizes, comments and data (jump tables) are gone.
    Directives stay that code depends on: bytes between instructions, `.arch_extension`, `.option`, and
    `.section .text.unlikely` before a cold part, with `.text` where the code comes back to the function's own
    section. Labels that only a jump table refers to are kept.

    Assembled with the same options, it gives the code bytes and relocations of the raw text without its
    alignment directives; jump tables are then undefined symbols.
    """
    name, code = _function(text, CLEAN, isa)
    written = write(code, name, is_view=False)
    return written if not name or written.startswith(f"{name}:") else f"{name}:\n{written}"


def view(text: str, isa: str) -> str:
    """What a stripped binary shows of a function: no name, and one spelling for what assembles alike.

    Targets of calls and of jumps out of the function read `CALL`, other symbols `SYM` without any offset;
    constants stay, in decimal. Labels stay where an instruction refers to them; nops, which align loops, go.
    A `.cold` part is left out, as is all code in other sections: it lies elsewhere in a binary, and jumps to
    it leave the function. gcc's and clang's spellings of one instruction become one (`beq` `b.eq`, `retq`
    `ret`, `sall` `shll`, `ldur` `ldr`).
    """
    name, code = _function(text, VIEW, isa)
    return write(visible(code), name, is_view=True)


class Body(NamedTuple):
    """What a record says of a function's text."""

    sha256: str
    """Of its `view`: equal for bodies that differ in names alone."""
    num_instructions: int
    """In its `clean` text, cold parts included."""


def body(text: str, isa: str) -> Body:
    """The hash and the length of a function's body, in one pass."""
    name, code = _function(text, VIEW, isa)
    written = write(visible(code), name, is_view=True)
    return Body(hashlib.sha256(written.encode()).hexdigest(), code.num_instructions())


def view_sha256(text: str, isa: str) -> str:
    """The sha256 of the function's `view`: equal for bodies that differ in names alone."""
    return hashlib.sha256(view(text, isa).encode()).hexdigest()


_NUMBER = re.compile(r"(?<![\w.])-?(?:0x[0-9a-f]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.])")


def constants(view_text: str) -> list[str]:
    """The numbers of a view, offsets included, in order."""
    return _NUMBER.findall(view_text)


def masked(view_text: str) -> str:
    """A view with `N` in place of every number."""
    return _NUMBER.sub("N", view_text)


def line_numbers(text: str, isa: str) -> list[tuple[int, int]]:
    """File number and line of each instruction of `clean(text)`, from the `.loc` lines that -g1 gives.

    (0, 0) stands before the first of them.
    """
    lines = without_block_comments(text).split("\n")
    parsed = [parse_line(line, isa) for line in lines]
    sections = Sections(home_of(chain.from_iterable(parsed), text))
    numbers: list[tuple[int, int]] = []
    place = (0, 0)
    for line, statements in zip(lines, parsed, strict=True):
        if loc := _LOC.match(line):
            place = (int(loc[1]), int(loc[2]))
        for kind, value in statements:
            if kind == SECTION:
                sections.follow(value)
            elif kind == INSTRUCTION and sections.current[1]:
                numbers.append(place)
    return numbers


def num_instructions(clean_text: str) -> int:
    """Instructions in a `clean` or `view` text."""
    return sum(1 for line in clean_text.split("\n") if line and line[0] != "." and line[-1] != ":")


_TYPE = re.compile(r'\s*\.type\s+"?([^,\s"]+)"?\s*,\s*[@%]function')
_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_LOCAL_LABEL = re.compile(r"\.L.*|L\d+")


def _function(text: str, remembered: Mapping[str, Form], isa: str) -> tuple[str, Code]:
    """A function's name (empty where the text has none), and its code from the name's label on."""
    if isa not in ISAS:
        raise ValueError(f"unknown ISA {isa!r}; known are {', '.join(ISAS)}")
    code = code_of(text, remembered[isa])
    if typed := _TYPE.match(text):
        return typed[1], from_label(code, Special(LABEL, typed[1]))
    if code.specials and code.specials[0][0] == 0:
        kind, label, _ = code.specials[0][1]
        if kind == LABEL and not _LOCAL_LABEL.fullmatch(label):
            return label, code
    return "", code
