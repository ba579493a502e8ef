"""Where functions are defined in a unit's own text, as byte ranges.

tree-sitter reads the text. Where it stumbles (old-style parameters, implicit int, extensions it does not
know), a scan of brackets alone takes its place: with all macros expanded, brackets and semicolons are enough
to tell where a definition begins and ends. On text that tree-sitter reads without an error the two agree.
Text from other files never reaches the parser, whose time is the cost that matters; what units include alike
reaches it once.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from corpus_builder.owntext import OwnText

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_PARTS_REMEMBERED = 32
"""Each holds its text, some 100 KB."""


class Definition(NamedTuple):
    """A function definition as byte offsets: declaration, opening brace, what follows the closing one."""

    name: str
    start: int
    body: int
    end: int


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
