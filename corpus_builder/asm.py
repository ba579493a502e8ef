"""Assembler text of gcc and clang: split it into functions, and bring functions into two plain forms.

In goes what `gcc -S` or `clang -S` wrote (AT&T syntax for x86-64), or what a disassembler printed; out come
strings. `split_functions` cuts a unit's text into raw functions; `clean` keeps their instructions and labels,
for language models; `view` keeps what a stripped binary shows, for retrieval and for finding equal bodies.

Invariants: clean(clean(x)) == clean(x), view(view(x)) == view(x), view(clean(x)) == view(x). Both forms hold
one instruction or label a line and end with a newline. Local labels are L0, L1.. in the order they are
defined, which is the order of their addresses; labels at one address are one label.

Cost: splitting is two `str.find` a function (a lazy regex over whole units took 11 % of the compilers' CPU).
The two forms remember the lines they met: compilers write the same lines again and again, so most lines cost
one lookup in a bounded table, and only new ones meet the regular expressions.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from corpus_builder.spelling import VIEW_TEMPLATES, Template, gaps

ISAS = ("aarch64", "x86_64", "riscv64")

_CFI_END = "\t.cfi_endproc\n"
_LINES_REMEMBERED = 1 << 16
_LABEL, _INSTRUCTION, _SECTION = range(3)

Statement = tuple[int, str]
"""Kind and text: a label's name, an instruction with canonical spacing, or `code` / `data` for a section."""


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
    """A function's instructions and labels alone, symbols kept: `name:`, then `ldr w0, [sp, 12]`..

    Directives, debug information, comments and data (jump tables) are gone. Labels that only a jump table
    refers to are kept.
    """
    name, statements = _function(text, isa)
    return _write(
        statements,
        header=name,
        template=_clean_template,
        is_numbered=lambda label: bool(_LOCAL_LABEL.fullmatch(label)),
        is_kept=lambda label: bool(_BLOCK_LABEL.fullmatch(label)),
    )


def view(text: str, isa: str) -> str:
    """What a stripped binary shows of a function: no name, and one spelling for what assembles alike.

    Targets of calls and of jumps out of the function read `CALL`, other symbols `SYM` without any offset;
    constants stay, in decimal. Labels stay where an instruction refers to them; nops, which align loops, go.
    A `.cold` part is left out: it lies elsewhere in a binary, and jumps to it leave the function. gcc's and
    clang's spellings of one instruction become one (`beq` `b.eq`, `retq` `ret`, `sall` `shll`, `ldur` `ldr`).
    """
    _, statements = _function(text, isa)
    for index, (kind, value) in enumerate(statements):
        if kind == _LABEL and ".cold" in value:
            statements = statements[:index]
            break
    # In machine code a compiler's own nop cannot be told from the padding before a loop.
    statements = [statement for statement in statements if statement != (_INSTRUCTION, "nop")]
    return _write(statements, template=_REMEMBERED_VIEWS[isa])


def view_sha256(text: str, isa: str) -> str:
    """The sha256 of the function's `view`: equal for bodies that differ in names alone."""
    return hashlib.sha256(view(text, isa).encode()).hexdigest()


def line_numbers(text: str, isa: str) -> list[tuple[int, int]]:
    """File number and line of each instruction of `clean(text)`, from the `.loc` lines that -g1 gives.

    (0, 0) stands before the first of them.
    """
    numbers: list[tuple[int, int]] = []
    place = (0, 0)
    in_code = True
    for line in _without_block_comments(text).split("\n"):
        if loc := _LOC.match(line):
            place = (int(loc[1]), int(loc[2]))
            continue
        for kind, value in _parse_line(line, isa):
            if kind == _SECTION:
                in_code = value == "code"
            elif in_code and kind == _INSTRUCTION:
                numbers.append(place)
    return numbers


def num_instructions(clean_text: str) -> int:
    """Instructions in a `clean` or `view` text."""
    return sum(1 for line in clean_text.split("\n") if line and not line.endswith(":"))


# From raw text to statements.

_TYPE = re.compile(r'\s*\.type\s+"?([^,\s"]+)"?\s*,\s*[@%]function')
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/', re.DOTALL)
_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_STRING_TO_HIDE = re.compile("[;#/:]")
_LINE_COMMENT = {
    "aarch64": re.compile(r"//.*|^\s*#.*"),
    "x86_64": re.compile(r"#.*"),
    "riscv64": re.compile(r"#.*"),
}
_X86_PREFIX_ALONE = re.compile(r"\b(lock|rep\w*)\s*;")
_ASSIGNMENT = re.compile(r"[\w.$]+\s*=")
_COMMA = re.compile(r" ?, ?")
_BRACKET_SPACE = re.compile(r"(?<=[\[({]) | (?=[\])}])")
_COMMA_IN_ADDRESS = re.compile(r", (?=[^()]*\))")
_LABEL_DEFINITION = re.compile(r'\s*(?:([\w.$]+)|"([^"]*)")\s*:(?!:)\s*')
_LOCAL_LABEL = re.compile(r"\.L.*|L\d+")
_BLOCK_LABEL = re.compile(r"\.L\d+|\.LBB\d+_\d+|L\d+")
_NUMBERED_REFERENCE = re.compile(r"(?<![\w.$%])(\d+)([bf])(?![\w.$])")
_SECTION_DIRECTIVE = re.compile(r'\.section\s+"?([^\s,"]+)"?(?:\s*,\s*"([^"]*)")?')
_DATA_SECTION = re.compile(
    r"\.(?:s?rodata|t?data|s?data|[ts]?bss|debug|note|comment|eh_frame|gcc_except_table|init_array|fini_array)"
)
_TO_CODE = frozenset((".text", ".previous", ".popsection"))
_TO_DATA = frozenset((".data", ".bss", ".rodata", ".pushsection"))


def _function(text: str, isa: str) -> tuple[str, list[Statement]]:
    """A function's name (empty where the text has none), and its statements without the name's label."""
    statements = _statements(text, isa)
    typed = _TYPE.match(text)
    if typed:
        name = typed[1]
    elif statements and statements[0][0] == _LABEL and not _LOCAL_LABEL.fullmatch(statements[0][1]):
        name = statements[0][1]
    else:
        return "", statements
    return name, [statement for statement in statements if statement != (_LABEL, name)]


def _statements(text: str, isa: str) -> list[Statement]:
    if isa not in ISAS:
        raise ValueError(f"unknown ISA {isa!r}; known are {', '.join(ISAS)}")
    found: list[Statement] = []
    in_code = True
    has_numbers = False
    for line in _without_block_comments(text).split("\n"):
        for statement in _parse_line(line, isa):
            kind, value = statement
            if kind == _SECTION:
                in_code = value == "code"
            elif in_code:
                found.append(statement)
                if kind == _LABEL and value.isdigit():
                    has_numbers = True
    return _resolve_numbers(found) if has_numbers else found


def _without_block_comments(text: str) -> str:
    if "/*" not in text:
        return text
    return _STRING_OR_COMMENT.sub(lambda match: match[0] if match[0][0] == '"' else " ", text)


@lru_cache(_LINES_REMEMBERED)
def _parse_line(line: str, isa: str) -> tuple[Statement, ...]:
    if '"' in line:
        # Nothing in a string may look like the end of a statement or a comment.
        line = _STRING.sub(lambda match: '""' if _STRING_TO_HIDE.search(match[0]) else match[0], line)
    line = _LINE_COMMENT[isa].sub("", line)
    if isa == "x86_64" and ";" in line:
        line = _X86_PREFIX_ALONE.sub(r"\1 ", line)  # a prefix belongs to what follows
    found: list[Statement] = []
    for part in line.split(";"):
        while label := _LABEL_DEFINITION.match(part):
            found.append((_LABEL, label[1] or label[2]))
            part = part[label.end() :]
        found += _parse_statement(part.strip(), isa)
    return tuple(found)


def _parse_statement(text: str, isa: str) -> Iterable[Statement]:
    if not text or _ASSIGNMENT.match(text):  # empty, or an assignment to a symbol
        return ()
    if text[0] != ".":
        return ((_INSTRUCTION, _spaced(text, isa)),)
    directive = text.split(None, 1)[0]
    if directive in _TO_CODE:
        return ((_SECTION, "code"),)
    if directive in _TO_DATA:
        return ((_SECTION, "data"),)
    section = _SECTION_DIRECTIVE.match(text)
    if not section:
        return ()
    name, flags = section.groups()
    is_data = "x" not in flags if flags is not None else bool(_DATA_SECTION.match(name))
    return ((_SECTION, "data" if is_data else "code"),)


def _spaced(text: str, isa: str) -> str:
    """An instruction with one spacing: `add x0, x1, x2, lsl 3`, `movl 8(%rax,%rdx,4), %eax`."""
    mnemonic, _, operands = " ".join(text.split()).partition(" ")
    operands = _COMMA.sub(", ", operands)
    operands = _BRACKET_SPACE.sub("", operands)
    if isa == "aarch64":
        operands = operands.replace("#", "")
    elif isa == "x86_64":
        operands = _COMMA_IN_ADDRESS.sub(",", operands)
    return f"{mnemonic.lower()} {operands}".rstrip()


def _resolve_numbers(statements: list[Statement]) -> list[Statement]:
    """Give the labels `1:` of inline assembly, which may be defined again and again, names of their own."""
    places: dict[str, list[int]] = {}
    for index, (kind, value) in enumerate(statements):
        if kind == _LABEL and value.isdigit():
            places.setdefault(value, []).append(index)

    def name_at(index: int) -> Callable[[re.Match[str]], str]:
        def name(match: re.Match[str]) -> str:
            number, direction = match.groups()
            before = [place for place in places.get(number, ()) if place < index]
            after = [place for place in places.get(number, ()) if place > index]
            if direction == "b":
                return f".Lnumber${before[-1]}" if before else match[0]
            return f".Lnumber${after[0]}" if after else match[0]

        return name

    resolved = []
    for index, (kind, value) in enumerate(statements):
        if kind == _LABEL:
            resolved.append((kind, f".Lnumber${index}" if value.isdigit() else value))
        else:
            resolved.append((kind, _NUMBERED_REFERENCE.sub(name_at(index), value)))
    return resolved


# From statements to text.


def _write(
    statements: list[Statement],
    *,
    template: Callable[[str], Template],
    header: str = "",
    is_numbered: Callable[[str], bool] = lambda label: True,
    is_kept: Callable[[str], bool] = lambda label: False,
) -> str:
    """Number the labels that are referred to or kept, fill the gaps, join the lines."""
    templates = [template(value) if kind == _INSTRUCTION else None for kind, value in statements]
    defined = {value for kind, value in statements if kind == _LABEL}
    referred = {name for item in templates if item for name in item.names}
    names = _free_names(
        item for item in templates if item and item.names and not defined.issuperset(item.names)
    )
    numbers: dict[str, str] = {}
    lines: list[str | Template] = [f"{header}:"] if header else []
    here = ""
    for (_, value), item in zip(statements, templates, strict=True):
        if item:
            lines.append(item)
            here = ""
        elif not is_numbered(value):
            lines.append(f"{value}:")
        elif value not in numbers and (value in referred or is_kept(value)):
            if not here:
                here = next(names)
                lines.append(f"{here}:")
            numbers[value] = here
    return "".join([f"{item if isinstance(item, str) else _fill(item, numbers)}\n" for item in lines])


def _free_names(templates: Iterable[Template]) -> Iterator[str]:
    """L0, L1.. without those that are symbols in these instructions."""
    taken = {name for item in templates for name in item.fallbacks}
    return (name for name in map("L{}".format, count()) if name not in taken)


def _fill(item: Template, numbers: dict[str, str]) -> str:
    if not item.names:
        return item.pieces[0]
    text = item.pieces[0]
    for name, fallback, piece in zip(item.names, item.fallbacks, item.pieces[1:], strict=True):
        text += numbers.get(name, fallback) + piece
    return text


_LOCAL_REFERENCE = re.compile(r"(?<![\w.%@])(?<!\w\$)(\.L[\w.$]*|L\d+(?![\w.$]))")


@lru_cache(_LINES_REMEMBERED)
def _clean_template(instruction: str) -> Template:
    return gaps(instruction, _LOCAL_REFERENCE)


_REMEMBERED_VIEWS = {isa: lru_cache(_LINES_REMEMBERED)(template) for isa, template in VIEW_TEMPLATES.items()}
