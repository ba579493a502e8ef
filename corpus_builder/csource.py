"""C source: the functions of a preprocessed unit, with their text as the programmer wrote it.

In goes the output of `gcc -E` or `clang -E`, out come functions with file, lines, signature, text, comment.
The preprocessed text is what gets parsed (`definitions`), so each `#if` branch is as the compiler saw it and
no macro can hide a function; its line markers lead back to the original file, where the texts are read.

Invariant: only functions of files inside the project's root, each with the whole lines it occupies there.
Cost: benchmarks/parsing.py.
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from corpus_builder.definitions import Definition, OwnText, definitions, own_text

__all__ = ["OwnText", "SourceFunction", "functions_in", "functions_of", "own_text", "source_tokens"]


@dataclass(frozen=True)
class SourceFunction:
    """One function definition of a project."""

    name: str
    file: str
    """Relative to the project's root."""
    lines: tuple[int, int]
    """First and last line in `file`, counted from 1, both inclusive."""
    signature: str
    """In one line, macros as written; macros expanded where a macro made the function."""
    text: str
    """The lines as they stand in `file`, macros as written."""
    comment: str
    """The comment directly above, markers included; empty without one."""
    source_sha256: str
    """Of `tokens`."""
    tokens: tuple[str, ...]
    """Of the text; of the expanded definition where a macro made the function."""


def functions_of(preprocessed: bytes, root: Path, cwd: str = ".") -> dict[str, SourceFunction]:
    """Find the function definitions of a unit in its preprocessed text, by name.

    Files named by relative paths in the line markers are taken from `root/cwd`, where the compiler ran.
    """
    return functions_in(own_text(preprocessed, root, cwd), root)


def functions_in(own: OwnText, root: Path) -> dict[str, SourceFunction]:
    """The same from what `own_text` gave."""
    read = cache(lambda file: _read_lines(root / file))
    rows = list(accumulate(map(len, own.text.split(b"\n")), lambda start, size: start + size + 1, initial=0))
    functions: dict[str, SourceFunction] = {}
    for definition in definitions(own.text):
        if definition.name not in functions:
            first = bisect_right(rows, definition.start) - 1
            last = bisect_left(rows, definition.end) - 1
            function = _located(definition, own, own.origins[first : last + 1], read)
            if function:
                functions[definition.name] = function
    return functions


def source_tokens(text: str) -> list[str]:
    """The C tokens of a text, without comments and white space; works on any text."""
    return [match[0] for match in _tokens(text)]


# From definitions to the original text.


def _located(
    definition: Definition,
    own: OwnText,
    origins: list[tuple[str, int]],
    read: Callable[[str], list[str] | None],
) -> SourceFunction | None:
    """Describe a definition by its original file; nothing if that file is not there as it was compiled."""
    name, start, body, end = definition
    file, first = origins[0]
    last = max(number for other, number in origins if other == file)
    lines = read(file)
    if lines is None or last > len(lines):
        return None
    first, last = _with_whole_conditionals(lines, first, last)
    first = _with_bare_macros(lines, first)
    text = "\n".join(lines[first - 1 : last])
    expanded = own.text[start:end].decode("utf-8", "replace")
    written = _written(name, text)
    if written and first == last:
        text = text[written.start : _closing(text, written.brace)]  # others may stand on the same line
        signature = text[: written.brace - written.start]
    elif written and not written.has_directive:
        signature = text[written.start : written.brace]
    else:
        signature = own.text[start:body].decode("utf-8", "replace")
    tokens = tuple(source_tokens(text if written else expanded))
    return SourceFunction(
        name=name,
        file=file,
        lines=(first, last),
        signature=_one_line(signature),
        text=text,
        comment=_comment_above(lines, first),
        source_sha256=hashlib.sha256("\0".join(tokens).encode("utf-8", "surrogatepass")).hexdigest(),
        tokens=tokens,
    )


def _read_lines(path: Path) -> list[str] | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    # Not splitlines: compilers count a form feed as a space.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


_CONDITIONAL = re.compile(r"\s*#\s*(if|el|endif)")


def _with_whole_conditionals(lines: list[str], first: int, last: int) -> tuple[int, int]:
    """Extend a span that begins or ends within an `#if` to the whole of it: its branches share the rest."""
    depth = lowest = 0
    for line in lines[first - 1 : last]:
        conditional = _CONDITIONAL.match(line)
        if conditional:
            kind = conditional[1]
            lowest = min(lowest, depth - (kind != "if"))
            depth += (kind == "if") - (kind == "endif")
    for _ in range(-lowest):
        first = _matching_if(lines, first)
    unclosed = depth - lowest
    while unclosed > 0 and last < len(lines):
        last += 1
        conditional = _CONDITIONAL.match(lines[last - 1])
        if conditional:
            unclosed += (conditional[1] == "if") - (conditional[1] == "endif")
    return first, last


def _matching_if(lines: list[str], first: int) -> int:
    """The line of the `#if` that is open above the line `first`; `first` itself if there is none."""
    depth = 0
    for number in range(first - 1, 0, -1):
        conditional = _CONDITIONAL.match(lines[number - 1])
        if conditional and conditional[1] == "if":
            if not depth:
                return number
            depth -= 1
        elif conditional and conditional[1] == "endif":
            depth += 1
    return first


def _with_bare_macros(lines: list[str], first: int) -> int:
    """Include the lines above that hold one macro alone, such as `API_EXPORT`, which expanded to nothing."""
    while first > 1 and re.fullmatch(r"[A-Z_][A-Z0-9_]{2,}", lines[first - 2].strip()):
        if first > 2 and lines[first - 3].rstrip().endswith("\\"):
            break  # the end of a macro's definition
        first -= 1
    return first


class _Written(NamedTuple):
    """Offsets of a definition in its original text."""

    start: int
    brace: int
    """Of the body's opening brace."""
    has_directive: bool
    """An #if or the like stands within the signature."""


def _written(name: str, text: str) -> _Written | None:
    """Find the definition of `name`; nothing if a macro hides its name or its body."""
    start = parentheses = braces = 0
    is_named = has_directive = is_body = is_over = False
    before = ""
    for match in _tokens(text):
        token = match[0]
        if is_over:
            start, is_over = match.start(), False
        if token == "{":
            if is_named and not braces and not parentheses:
                return _Written(start, match.start(), has_directive)
            is_body = before in (")", ";") if not braces else is_body
            braces += 1
        elif token == "}":
            braces -= 1
            is_over = is_body and not braces
        elif token == ";" and not braces:
            is_over = not is_named
        elif not braces:
            parentheses += (token == "(") - (token == ")")
            is_named = is_named or token == name
            has_directive = has_directive or token == "#"
        before = token
    return None


def _closing(text: str, brace: int) -> int:
    """The offset after the brace that closes the one at `brace`; the end of the text if none does."""
    depth = 0
    for match in _tokens(text[brace:]):
        depth += (match[0] == "{") - (match[0] == "}")
        if not depth:
            return brace + match.end()
    return len(text)


def _one_line(signature: str) -> str:
    text = " ".join(_COMMENT.sub(" ", signature).split())
    text = re.sub(r"(?<=\() | (?=[),;\[])", "", text)
    return re.sub(r",(?=\S)", ", ", text)


def _comment_above(lines: list[str], first: int) -> str:
    """The block comments and groups of line comments that end in the line before `first`."""
    top = first - 1
    while top > 0:
        line = lines[top - 1].strip()
        if line.startswith("//"):
            top -= 1
            continue
        if line.find("*/") < 0 or line.find("*/") != len(line) - 2:
            break
        start = next((i for i in range(top - 1, -1, -1) if "/*" in lines[i]), None)
        if start is None or not lines[start].lstrip().startswith("/*"):
            break
        top = start
    return "\n".join(lines[top : first - 1]).strip()


# Tokens.

_COMMENT = re.compile(r"/\*.*?\*/|//(?:[^\n\\]|\\.)*", re.DOTALL)
_TOKEN = re.compile(
    rf"""(?P<skip>{_COMMENT.pattern}|\\\n)
    |(?:u8|[uUL])?"(?:[^"\\\n]|\\.)*"
    |[uUL]?'(?:[^'\\\n]|\\.)*'
    |[^\W\d][\w$]*
    |\.?\d(?:[eEpP][-+]|[\w.])*
    |\.\.\.|<<=|>>=|->|\+\+|--|<<|>>|&&|\|\||\#\#|[-+*/%&^|<>=!]=
    |\S""",
    re.DOTALL | re.VERBOSE,
)


def _tokens(text: str) -> Iterator[re.Match[str]]:
    return (match for match in _TOKEN.finditer(text) if match.lastgroup != "skip")
