"""C source: the functions of a preprocessed unit, with their text as the programmer wrote it.

In goes the output of `gcc -E` or `clang -E`, out come functions with file, lines, signature, text, comment.
The preprocessed text is what gets parsed (`definitions`), so each `#if` branch is as the compiler saw it and
no macro can hide a function; its line markers lead back to the original file, where the texts are read.

Invariant: only functions of files inside the project's root, each with the whole lines it occupies there.
Cost: benchmarks/parsing.py.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from corpus_builder.definitions import own_definitions
from corpus_builder.owntext import OwnText, own_text

__all__ = ["OwnText", "SourceFunction", "functions_in", "functions_of", "own_text", "source_tokens"]

_FUNCTIONS_REMEMBERED = 2048
_FILES_REMEMBERED = 32


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
    """Of the tokens of the text; of the expanded definition where a macro made the function."""


def functions_of(preprocessed: bytes, root: Path, cwd: str = ".") -> dict[str, SourceFunction]:
    """Find the function definitions of a unit in its preprocessed text, by name.

    Files named by relative paths in the line markers are taken from `root/cwd`, where the compiler ran.
    """
    return functions_in(own_text(preprocessed, root, cwd), root)


def functions_in(own: OwnText, root: Path) -> dict[str, SourceFunction]:
    """The same from what `own_text` gave."""
    functions: dict[str, SourceFunction] = {}
    row = offset = 0
    for name, start, body, end in own_definitions(own):
        row += own.text.count(b"\n", offset, start)
        offset = start
        if name not in functions:
            last_row = row + own.text.count(b"\n", start, end - 1)
            place = _Place(root, *own.place(row, last_row))
            expanded = _Expanded(name, own.text[start:end], body - start)
            function = _located(expanded, place, _stamp(root / place.file))
            if function:
                functions[name] = function
    return functions


def source_tokens(text: str) -> list[str]:
    """The C tokens of a text, without comments and white space; works on any text."""
    return [token for token in _TOKEN.findall(text) if token]


# From definitions to the original text.


class _Expanded(NamedTuple):
    """A definition with macros expanded."""

    name: str
    text: bytes
    brace: int
    """The offset of its body's opening brace."""


class _Place(NamedTuple):
    """Where a definition comes from: the first line of it, and the last that its file has in it."""

    root: Path
    file: str
    first: int
    last: int


_Stamp = tuple[int, int]
"""Time and size of a file: what is remembered of it holds as long as they do."""


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(_FUNCTIONS_REMEMBERED)
def _located(expanded: _Expanded, place: _Place, stamp: _Stamp | None) -> SourceFunction | None:
    """Describe a definition by its original file; nothing if that file is not there as it was compiled.

    What a header defines is met again in every unit that includes it.
    """
    name, definition, brace = expanded
    root, file, first, last = place
    lines = _read_lines(root / file, stamp)
    if lines is None or last > len(lines):
        return None
    first, last = _with_whole_conditionals(lines, first, last)
    first = _with_bare_macros(lines, first)
    text = "\n".join(lines[first - 1 : last])
    written = _written(name, text)
    if written and first == last:
        text = text[written.start : _closing(text, written.brace)]  # others may stand on the same line
        signature = text[: written.brace - written.start]
    elif written and not written.has_directive:
        signature = text[written.start : written.brace]
    else:
        signature = definition[:brace].decode("utf-8", "replace")
    tokens = source_tokens(text if written else definition.decode("utf-8", "replace"))
    return SourceFunction(
        name=name,
        file=file,
        lines=(first, last),
        signature=_one_line(signature),
        text=text,
        comment=_comment_above(lines, first),
        source_sha256=hashlib.sha256("\0".join(tokens).encode("utf-8", "surrogatepass")).hexdigest(),
    )


@lru_cache(_FILES_REMEMBERED)
def _read_lines(path: Path, stamp: _Stamp | None) -> list[str] | None:
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
    rf"""{_COMMENT.pattern}|\\\n
    |((?:u8|[uUL])?"(?:[^"\\\n]|\\.)*"
    |[uUL]?'(?:[^'\\\n]|\\.)*'
    |[^\W\d][\w$]*
    |\.?\d(?:[eEpP][-+]|[\w.])*
    |\.\.\.|<<=|>>=|->|\+\+|--|<<|>>|&&|\|\||\#\#|[-+*/%&^|<>=!]=
    |\S)""",
    re.DOTALL | re.VERBOSE,
)
"""What is no comment and no broken line end is group 1."""


def _tokens(text: str) -> Iterator[re.Match[str]]:
    return (match for match in _TOKEN.finditer(text) if match[1])
