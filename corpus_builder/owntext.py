"""A unit's preprocessed text: which of it is the project's own, and where each line of it comes from.

In goes the output of `gcc -E` or `clang -E`; out come the text of files inside the project's root, the file
and line of each of its lines, and which parts of it includes gave. Cost: a search for line markers.
"""

import hashlib
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

_NAMES_REMEMBERED = 4096


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
