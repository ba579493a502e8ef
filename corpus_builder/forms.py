"""A function's text in one of its two forms: what `asm.clean` and `asm.view` share.

In go a function's lines, out come items (statements in the spelling of one form), and from items a text with
its labels numbered L0, L1.. in the order they are defined.
Cost: compilers write the same lines again and again, so a line is parsed once and then looked up, in a table
of bounded size; a line that differs from a known one in its labels alone is not parsed either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import NamedTuple, cast

from corpus_builder.spelling import VIEW_TEMPLATES, Template, gaps
from corpus_builder.statements import (
    DIRECTIVE,
    HOME,
    INSTRUCTION,
    LABEL,
    SECTION,
    Sections,
    Statement,
    home_of,
    parse_line,
    plain_instruction,
    resolve_numbers,
    without_block_comments,
)

NOP = 4
"""Kind of an instruction that a view does not show."""

_LINES_REMEMBERED = 1 << 16


class Special(NamedTuple):
    """What is no line that stays as it is."""

    kind: int
    text: str
    """A label's name, what leads to a section, or a whole line."""
    template: Template | None = None
    """That line's gaps."""


Item = str | Special
"""A line of the form with its line end, or something special."""

Entry = str | Special | list[Item]
"""What became of a line of assembler: one item, several, or the empty string for none."""

_LABEL_ALONE = {
    isa: re.compile(rf"(\.L[\w.$]*):(?:\s*{comment}.*)?")
    for isa, comment in (("aarch64", "//"), ("x86_64", "#"), ("riscv64", "#"))
}
_LOCAL_REFERENCE = re.compile(r"(?<![\w.%@])(?<!\w\$)(\.L[\w.$]*|L\d+(?![\w.$]))")
_LOCAL_LABEL = re.compile(r"\.L.*|L\d+")
_BLOCK_LABEL = re.compile(r"\.L\d+|\.LBB\d+_\d+|L\d+")


class Form(dict[str, Entry]):
    """Lines of one ISA in one form, as they were met."""

    def __init__(self, isa: str, *, is_view: bool) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.isa = isa
        self.is_view = is_view
        self._template = VIEW_TEMPLATES[isa] if is_view else _clean_template

    def __missing__(self, line: str) -> Entry:
        """Parse a new line."""
        if len(self) >= _LINES_REMEMBERED:
            self.clear()
        entry = self._relabelled(line) if ".L" in line else None
        if entry is None:
            instruction = plain_instruction(line, self.isa)
            entry = self._item(INSTRUCTION, instruction) if instruction else self._entry(line)
        self[line] = entry
        return entry

    def _entry(self, line: str) -> Entry:
        items = self.formed(parse_line(line, self.isa))
        return "" if not items else items[0] if len(items) == 1 else items

    def formed(self, statements: Iterable[Statement]) -> list[Item]:
        """Some statements in this form."""
        return [
            self._item(kind, value) for kind, value in statements if kind != DIRECTIVE or not self.is_view
        ]

    def _item(self, kind: int, value: str) -> Item:
        if kind in (LABEL, SECTION):
            return Special(kind, value)
        if self.is_view and value == "nop":
            return Special(NOP, value)  # in machine code it cannot be told from the padding before a loop
        template = self._template(value)
        line = f"{template.pieces[0]}\n"
        if template.names or kind == DIRECTIVE:
            return Special(kind, line, template if template.names else None)
        return line

    def _relabelled(self, line: str) -> Entry | None:
        """What becomes of a label or a jump to one, without parsing it; nothing if that fails."""
        head, _, tail = line.partition(".L")
        if not head:
            label = _LABEL_ALONE[self.isa].fullmatch(line)
            return Special(LABEL, label[1]) if label else None
        if tail == "0":
            return None  # the line that others are read by
        if head[-1] in "\t ," and f"L{tail}".isidentifier():
            known = self[f"{head}.L0"]
            if isinstance(known, Special):
                kind, text, template = known  # _replace would take longer than all else here
                if template and template.names == (".L0",):
                    return Special(kind, text, template.with_name(f".L{tail}"))
        return None


def _clean_template(text: str) -> Template:
    return gaps(text, _LOCAL_REFERENCE) if "L" in text else Template((text,))


CLEAN = {isa: Form(isa, is_view=False) for isa in VIEW_TEMPLATES}
VIEW = {isa: Form(isa, is_view=True) for isa in VIEW_TEMPLATES}


class Code(NamedTuple):
    """The code of a text in one form."""

    items: list[Item]
    specials: list[tuple[int, Special]]
    """Those among the items that are no whole lines, with their places."""

    def of_kinds(self, *kinds: int) -> int:
        """How many items there are of some kinds other than plain lines."""
        return sum([special.kind in kinds for _, special in self.specials])

    def num_instructions(self) -> int:
        """Those that the form does not show included."""
        return len(self.items) - self.of_kinds(LABEL, SECTION, DIRECTIVE)


def _code(items: list[Item]) -> Code:
    specials = [(place, item) for place, item in enumerate(items) if item.__class__ is not str]
    return Code(items, cast(list[tuple[int, Special]], specials))


def code_of(text: str, form: Form) -> Code:
    """The code in a text, with a `SECTION` item wherever it goes on in another section."""
    lines = without_block_comments(text).split("\n")
    entries = list(filter(None, map(form.__getitem__, lines)))
    if list in set(map(type, entries)):
        entries = [item for entry in entries for item in (entry if isinstance(entry, list) else (entry,))]
    code = _code(cast(list[Item], entries))
    if any([special.kind == LABEL and special.text.isdigit() for _, special in code.specials]):
        statements = chain.from_iterable([parse_line(line, form.isa) for line in lines])
        code = _code(form.formed(resolve_numbers(list(statements))))
    return _code(list(_placed(code, text))) if code.of_kinds(SECTION) else code


def _placed(code: Code, text: str) -> Iterator[Item]:
    sections = Sections(home_of((special[:2] for _, special in code.specials), text))
    where = HOME
    for item in code.items:
        if isinstance(item, Special) and item.kind == SECTION:
            sections.follow(item.text)
        elif sections.current[1]:
            if sections.current[0] != where:
                where = sections.current[0]
                yield Special(SECTION, where)
            yield item


def from_label(code: Code, label: Special) -> Code:
    """The code behind what precedes a label; all of it without that label."""
    place = next((place for place, special in code.specials if special == label), 0)
    return _code(code.items[place:]) if place else code


def visible(code: Code) -> Code:
    """What a view shows: the code of the function's own section, without a `.cold` part and without nops."""
    if not any(
        [
            kind in (SECTION, NOP) or (kind == LABEL and ".cold" in text)
            for _, (kind, text, _) in code.specials
        ]
    ):
        return code
    shown = []
    is_home = True
    for item in code.items:
        kind = item.kind if isinstance(item, Special) else INSTRUCTION
        if kind == SECTION:
            is_home = item[1] == HOME
        elif kind == LABEL and ".cold" in item[1]:
            break
        elif is_home and kind != NOP:
            shown.append(item)
    return _code(shown)


def write(code: Code, name: str, *, is_view: bool) -> str:
    """Number the labels that are referred to, fill the gaps, join the lines.

    A view loses the function's own label and numbers all others. Otherwise labels of blocks stay even if
    nothing refers to them, and labels that are no local ones keep their names.
    """
    referred, names = _references(code, name)
    lines = cast(list[str], code.items.copy())
    numbers: dict[str, str] = {}
    sections: list[tuple[int, str]] = []
    here, where, next_place = "", HOME, 0
    elsewhere: dict[str, str] = {}
    for place, (kind, text, _) in code.specials:
        if place != next_place:
            here = ""  # an instruction stands between
        next_place = place + 1
        lines[place] = ""
        if kind == SECTION:
            elsewhere[where], where = here, text
            here = elsewhere.get(where, "")
            sections.append((place, text))
        elif kind != LABEL:
            lines[place] = text
            here = ""
        elif text == name or not (is_view or _LOCAL_LABEL.fullmatch(text)):
            lines[place] = "" if is_view else f"{text}:\n"
        elif text not in numbers and (text in referred or not (is_view or not _BLOCK_LABEL.fullmatch(text))):
            if not here:  # else it is another label of the same address
                here = next(names)
                lines[place] = f"{here}:\n"
            numbers[text] = here
    for place, (_, _, template) in code.specials:
        if template is not None:
            lines[place] = template.filled(numbers)
    _write_sections(lines, sections)
    return "".join(lines)


def _write_sections(lines: list[str], sections: list[tuple[int, str]]) -> None:
    """Say where code goes on in another section, if there is any left in it."""
    written = HOME
    ends = [*(place for place, _ in sections[1:]), len(lines)]
    for (place, where), end in zip(sections, ends, strict=bool(sections)):
        if where != written and any(lines[place + 1 : end]):
            lines[place] = f"{where or '.text'}\n"
            written = where


def _references(code: Code, name: str) -> tuple[set[str], Iterator[str]]:
    """The names that gaps refer to; and L0, L1.. without those that are symbols in this code."""
    templates = [special.template for _, special in code.specials if special.template is not None]
    referred = {used for template in templates for used in template.names}
    outside = referred.difference([special.text for _, special in code.specials if special.kind == LABEL])
    if name in referred:
        outside.add(name)
    taken: set[str] = set()
    if any([used[:1] == "L" for used in outside]):
        for template in templates:
            taken.update(f for n, f in zip(template.names, template.fallbacks, strict=True) if n in outside)
    return referred, (label for label in map("L{}".format, count()) if label not in taken)
