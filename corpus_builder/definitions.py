"""A unit's preprocessed text: which of it is the project's own, and where its functions are defined.

In goes the output of `gcc -E` or `clang -E`; out come the text of files inside the project's root with the
file and line each of its lines comes from, and the byte ranges of the definitions in it.

tree-sitter reads the text. Where it stumbles (old-style parameters, implicit int, extensions it does not
know), a scan of brackets alone takes its place: with all macros expanded, brackets and semicolons are enough
to tell where a definition begins and ends. On text that tree-sitter reads without an error the two agree.
Text from other files never reaches the parser, whose time is the cost that matters; what units include alike
reaches it once.
"""

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_NAMES_REMEMBERED = 4096
_PARTS_REMEMBERED = 32
"""Each holds its text, some 100 KB."""


class Run(NamedTuple):
    """Lines of a text that stand one after the other in a file, up to the next run."""

    row: int
    """The first of them in the text, counted from 0."""
    file: str
    line: int
    """The first of them in the file, counted from 1."""


class Part(NamedTuple):
    """A piece of a text, as byte offsets: the unit's file between two includes, or what one include gave."""

    start: int
    end: int
    is_included: bool


@dataclass(frozen=True)
class OwnText:
    """The preprocessed text of the project's own files, and where each line of it comes from."""

    text: bytes
    runs: list[Run]
    """All lines, in their order."""
    parts: list[Part]
    """The whole text, in its order."""

    @property
    def sha256(self) -> str:
        """Equal for units of which the parser sees the same."""
        return hashlib.sha256(self.text).hexdigest()

    def place(self, first: int, last: int) -> tuple[str, int, int]:
        """The file that a row comes from, its line there, and the file's last line up to another row."""
        start = bisect_right(self.runs, first, key=itemgetter(0)) - 1
        end = bisect_right(self.runs, last, key=itemgetter(0))
        row, file, line = self.runs[start]
        ends = [*(run.row - 1 for run in self.runs[start + 1 : end]), last]
        touched = zip(self.runs[start:end], ends, strict=True)
        lines = [run.line + end - run.row for run, end in touched if run.file == file]
        return file, line + first - row, max(lines)


class Definition(NamedTuple):
    """A function definition as byte offsets: declaration, opening brace, what follows the closing one."""

    name: str
    start: int
    body: int
    end: int


# From preprocessed text to the project's own.

_MARKER = re.compile(rb'(?:line)? (\d+)(?: "([^"\\]*+(?:\\.[^"\\]*+)*+)"([ \d]*))?')
_LINE_DIRECTIVE = re.compile(rb'^\s*#\s*(?:line)?\s*(\d+)\s+"((?:[^"\\]|\\.)*)"', re.MULTILINE)


def own_text(preprocessed: bytes, root: Path, cwd: str = ".") -> OwnText:
    """Leave out of a preprocessed text what does not come from files inside `root`.

    Files named by relative paths in the line markers are taken from `root/cwd`, where the compiler ran.
    A generator's `#line` leads to its input (`parser.y`) if that is in the tree, else to the generated file.
    """
    places = _Places(root, cwd)
    collected = _Collected()
    # Each piece is a directive and the lines behind it; there are far fewer of them than lines.
    for piece in (b"\n" + preprocessed).split(b"\n#")[1:]:
        directive, end, lines = piece.partition(b"\n")
        if marker := _MARKER.match(directive):
            number, name, flags = marker.groups(b"")
            places.follow(int(number), name, flags)
            if not end:
                continue
        else:  # a pragma, or a definition that -fdirectives-only left: an empty line
            lines = b"\n" + lines if end else b""
        if places.file is not None:  # else the next marker tells the number as well
            collected.add(lines, places.file, places.number, is_included=places.depth > 1)
            places.number += lines.count(b"\n") + 1
    return collected.text()


class _Collected:
    """Own text while it is put together."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._runs: list[Run] = []
        self._parts: list[Part] = []
        self._row = 0
        self._end = 0

    def add(self, lines: bytes, file: str, number: int, *, is_included: bool) -> None:
        """Take some lines, without the end of the last, from a line of a file on."""
        self._texts.append(lines)
        self._runs.append(Run(self._row, file, number))
        if not self._parts or self._parts[-1].is_included != is_included:
            self._parts.append(Part(self._end, self._end, is_included))
        self._row += lines.count(b"\n") + 1
        self._end += len(lines) + 1
        self._parts[-1] = self._parts[-1]._replace(end=self._end)

    def text(self) -> OwnText:
        return OwnText(b"\n".join(self._texts), self._runs, self._parts)


@dataclass
class _Level:
    """A file that is being included, whatever a `#line` in it says."""

    file: str | None
    name: bytes
    shift: int | None = None
    """From the line numbers of its latest `#line` to its own."""


class _Places:
    """The file and line that line markers lead to."""

    def __init__(self, root: Path, cwd: str) -> None:
        self.file: str | None = None
        """Relative to the root; nothing outside of it."""
        self.number = 0
        self._root = root
        lexical = os.path.normpath(root.absolute())
        self._start = os.path.join(lexical, cwd)
        self._bases = tuple(f"{base}{os.sep}" for base in (lexical, os.path.realpath(root)))
        self._inside = cache(partial(_inside, self._start, self._bases))
        self._input = cache(self._find_input)
        self._directives = cache(self._read_directives)
        self._levels: list[_Level] = []

    @property
    def depth(self) -> int:
        """1 in the unit's own file, more in what it includes."""
        return len(self._levels)

    def follow(self, number: int, name: bytes, flags: bytes) -> None:
        """Take one line marker; one without a name stays in the file."""
        self.number = number
        if not name:
            return
        self.file = self._inside(name)
        if b"1" in flags or not self._levels:
            self._levels.append(_Level(self.file, name))
        elif b"2" in flags and len(self._levels) > 1:
            del self._levels[-1]
        level = self._levels[-1]
        if level.file is not None and name != level.name and not name.startswith(b"<"):
            self._follow_directive(level, level.file, number, name)

    def _follow_directive(self, level: _Level, generated: str, number: int, name: bytes) -> None:
        """Go to a generator's input; where that is not in the tree stay in the generated file."""
        self.file = self._input(name, generated)
        if self.file is None:
            line = self._directives(generated).get((number, name))
            if line is not None:
                level.shift = line + 1 - number
            if level.shift is not None:
                self.file, self.number = generated, number + level.shift

    def _find_input(self, name: bytes, generated: str) -> str | None:
        """The file that a `#line` names: from where the compiler ran, or beside the generated file."""
        named = os.path.basename(os.fsdecode(name))
        if named == os.path.basename(generated):
            return None
        beside = os.path.join(os.path.dirname(generated), named)
        files = (file for file in (self._inside(name), beside) if file is not None)
        return next((file for file in files if (self._root / file).is_file()), None)

    def _read_directives(self, file: str) -> dict[tuple[int, bytes], int]:
        """The line at which each `#line` stands in a file."""
        try:
            text = (self._root / file).read_bytes()
        except OSError:
            return {}
        return {
            (int(match[1]), match[2]): text.count(b"\n", 0, match.start(1)) + 1
            for match in _LINE_DIRECTIVE.finditer(text)
        }


@lru_cache(_NAMES_REMEMBERED)
def _inside(start: str, bases: tuple[str, ...], name: bytes) -> str | None:
    """A file that a line marker names, relative to one of the bases; nothing for any other."""
    text = re.sub(rb"\\(.)", rb"\1", name).decode("utf-8", "surrogateescape")
    if text.startswith("<"):
        return None
    path = os.path.normpath(os.path.join(start, text))
    return next((path[len(base) :] for base in bases if path.startswith(base)), None)


# From text to definitions, by tree-sitter.


def definitions(text: bytes) -> list[Definition]:
    """The function definitions of a text at file level, in their order."""
    return _mended(text, _read(text))


def own_definitions(own: OwnText) -> list[Definition]:
    """The definitions of a unit's own text.

    What an include gave is read once for all units that include it alike: where each part ends a declaration
    and holds no error, the parts give what the whole text does.
    """
    found: list[Definition] = []
    for start, end, is_included in own.parts:
        part = own.text[start:end]
        if part.isspace():
            continue
        reading = _read_again(part) if is_included else _read(part)
        if not reading.is_sound or part.rstrip()[-1:] not in (b";", b"}"):
            return _mended(own.text, reading if len(part) == len(own.text) else _read(own.text))
        found += (_moved(definition, start) for definition in reading.found)
    return found


def _moved(definition: Definition, by: int) -> Definition:
    name, start, body, end = definition
    return Definition(name, start + by, body + by, end + by)


class _Reading(NamedTuple):
    """What tree-sitter made of a text."""

    found: tuple[Definition, ...]
    is_sound: bool
    """Whether it read all of it."""


def _read(text: bytes) -> _Reading:
    tree = _parser().parse(_readable(text)).root_node
    found = tuple(definition for node in _nodes(tree) if (definition := _definition(node)).name)
    # A block at file level is the body of an old-style function, taken for one without a head.
    is_sound = not tree.has_error and not any(child.type == "compound_statement" for child in tree.children)
    return _Reading(found, is_sound)


_read_again = lru_cache(_PARTS_REMEMBERED)(_read)


def _mended(text: bytes, reading: _Reading) -> list[Definition]:
    """The definitions of a text, by its brackets where it was not all read."""
    if reading.is_sound:
        return list(reading.found)
    scanned = scanned_definitions(text)
    more = [item for item in reading.found if not any(_overlap(item, other) for other in scanned)]
    return sorted(scanned + more, key=lambda definition: definition.start)


def _overlap(one: Definition, other: Definition) -> bool:
    return one.start < other.end and other.start < one.end


_NESTED = rb"\([^()]*+(?:%b[^()]*+)*+\)"
_PARENTHESES = _NESTED % (_NESTED % rb"\([^()]*+\)")
_UNREADABLE = re.compile(
    rb"(\b(?:__)?typeof(?:__)?)\s*%b" % _PARENTHESES
    + rb"|(?:__attribute(?:__)?\s*%b\s*)++(?=[=;,])" % _PARENTHESES
)
_NOT_LINE_END = re.compile(rb"[^\n]")


def _readable(text: bytes) -> bytes:
    """The text without what leads the parser astray: expressions in `typeof (...)`, attributes of variables.

    Spaces replace them, so every byte stays in its place.
    """
    return _UNREADABLE.sub(_blanked, text)


def _blanked(match: re.Match[bytes]) -> bytes:
    keyword = match[1] or b""
    return keyword + _NOT_LINE_END.sub(b" ", match[0][len(keyword) :])


@cache
def _parser() -> "Parser":
    import tree_sitter_c
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_c.language()))


def _nodes(node: "Node") -> Iterator["Node"]:
    """The definitions at file level, those among what the parser could not read included."""
    for child in node.children:
        if child.type == "function_definition":
            yield child
        elif child.has_error and child.type != "compound_statement":
            yield from _nodes(child)


def _definition(node: "Node") -> Definition:
    body = node.child_by_field_name("body")
    start = body.start_byte if body else node.end_byte
    return Definition(_name(node), node.start_byte, start, node.end_byte)


def _name(definition: "Node") -> str:
    """The declared name, through pointers, parentheses and the parameters of a returned function."""
    node = definition.child_by_field_name("declarator")
    while node is not None and node.type != "identifier":
        inner = (child for child in node.named_children if child.type.endswith(("declarator", "identifier")))
        node = node.child_by_field_name("declarator") or next(inner, None)
    return (node.text or b"").decode("utf-8", "replace") if node is not None else ""


# From text to definitions, by brackets.

_LITERAL = rb'"(?:\\.|[^"\\\n])*+"|\'(?:\\.|[^\'\\\n])*+\''
_TOKEN = re.compile(_LITERAL + rb"|[^\W\d][\w$]*+|[^\s\w]|\d[\w.]*+", re.DOTALL)
_BRACKETS = {
    opening: re.compile(_LITERAL + rb"|[%b%b]" % (re.escape(opening), re.escape(closing)), re.DOTALL)
    for opening, closing in ((b"{", b"}"), (b"(", b")"), (b"[", b"]"))
}
_GROUP, _BRACES = b"()", b"{}"
_TAKES_GROUP = frozenset(
    b"__attribute__ __attribute __asm__ __asm asm __declspec _Alignas _Atomic".split()
    + b"__typeof__ __typeof typeof".split()
)
_NO_FUNCTION = frozenset(b"if for while switch return sizeof struct union enum".split())
_WORD = re.compile(rb"[^\W\d][\w$]*")
_NAMES = re.compile(rb"\(\s*[^\W\d][\w$]*(?:\s*,\s*[^\W\d][\w$]*)*\s*\)")
_QUALIFIERS = frozenset(b"const volatile restrict __restrict __const".split())

Piece = tuple[bytes, int, int]
"""A token between declarations' brackets, or `()` and `{}` for a whole group; with its offsets."""


def scanned_definitions(text: bytes) -> list[Definition]:
    """The function definitions of a text at file level, told by its brackets alone."""
    found: list[Definition] = []
    pieces: list[Piece] = []
    end = 0
    while match := _TOKEN.search(text, end):
        token, start, end = match[0], match.start(), match.end()
        if token in _BRACKETS:
            end = _closing(text, end, token)
        if token == b"{":
            name = _function_name(pieces, text)
            if name:
                found.append(Definition(name, pieces[0][1], start, end))
                pieces = []
            else:
                pieces.append((_BRACES, start, end))
        elif token == b";" and not _has_old_style(pieces, text):
            pieces = []
        else:
            pieces.append((_GROUP if token == b"(" else token, start, end))
    return found


def _closing(text: bytes, start: int, opening: bytes) -> int:
    """The offset behind the bracket that closes one before `start`."""
    depth = 1
    for match in _BRACKETS[opening].finditer(text, start):
        if match[0] == opening:
            depth += 1
        elif len(match[0]) == 1:
            depth -= 1
            if not depth:
                return match.end()
    return len(text)


def _parameters(pieces: list[Piece]) -> int:
    """The place of a declared function's parameters, the last group of its declarator; -1 without one."""
    for place in range(1, len(pieces)):
        before, token = pieces[place - 1][0], pieces[place][0]
        if token == _GROUP and _WORD.fullmatch(before) and before not in _TAKES_GROUP:
            follows = place + 1 < len(pieces) and pieces[place + 1][0] == _GROUP
            return place + 1 if follows else place
        if token == _GROUP and before == b"*" and place + 1 < len(pieces) and pieces[place + 1][0] == _GROUP:
            return place + 1
    return -1


def _has_old_style(pieces: list[Piece], text: bytes) -> bool:
    """Whether declarations of a definition's parameters have begun: `f(a, b) int a`."""
    place = _parameters(pieces)
    if place < 0 or any(token == b"=" for token, _, _ in pieces):
        return False
    _, start, end = pieces[place]
    names = text[start:end]
    rest = [token for token, _, _ in pieces[place + 1 :]]
    if not rest or not _NAMES.fullmatch(names) or rest.count(b";") >= names.count(b",") + 1:
        return False
    return bool(_WORD.fullmatch(rest[0])) and rest[0] not in _TAKES_GROUP


def _function_name(pieces: list[Piece], text: bytes) -> str:
    """The name of the function whose body follows; empty if what follows is no body."""
    place = _parameters(pieces)
    if place < 0 or any(token == b"=" for token, _, _ in pieces):
        return ""
    rest = [token for token, _, _ in pieces[place + 1 :]]
    is_attribute = bool(rest) and rest[0] in _TAKES_GROUP and rest[-1] == _GROUP
    if rest and not is_attribute and rest[-1] != b";":
        return ""
    word = pieces[place - 1]
    if word[0] == _GROUP:  # `(*name(int))(void)`, `(name)(void)`
        words = _WORD.findall(text, word[1], word[2])
        name = next((found for found in words if found not in _QUALIFIERS), b"")
    else:
        name = word[0]
    return "" if name in _NO_FUNCTION else name.decode("utf-8", "replace")
