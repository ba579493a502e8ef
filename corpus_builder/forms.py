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

from corpus_builder.spelling import VIEW_TEMPLATES, Template, gaps
from corpus_builder.statements import (
    DIRECTIVE,
    HOME,
    LABEL,
    SECTION,
    Sections,
    Statement,
    home_of,
    parse_line,
    resolve_numbers,
    without_block_comments,
)

NOP = 4
"""Kind of an instruction that a view does not show."""

_LINES_REMEMBERED = 1 << 16

Item = tuple[int, str, Template | None]
"""Kind; a label's name, what leads to a section, or a whole line; that line's gaps, if it has any."""

_LABEL_USED = re.compile(r"(?<![\w.$@%])\.L[\w.$]*")
_LOCAL_REFERENCE = re.compile(r"(?<![\w.%@])(?<!\w\$)(\.L[\w.$]*|L\d+(?![\w.$]))")
_LOCAL_LABEL = re.compile(r"\.L.*|L\d+")
_BLOCK_LABEL = re.compile(r"\.L\d+|\.LBB\d+_\d+|L\d+")


class Form(dict[str, tuple[Item, ...]]):
    """Lines of one ISA in one form, as they were met."""

    def __init__(self, isa: str, *, is_view: bool) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.isa = isa
        self.is_view = is_view
        self._template = VIEW_TEMPLATES[isa] if is_view else _clean_template

    def __missing__(self, line: str) -> tuple[Item, ...]:
        """Parse a new line."""
        if len(self) >= _LINES_REMEMBERED:
            self.clear()
        found = self._relabelled(line) if ".L" in line else None
        if found is None:
            found = self.formed(parse_line(line, self.isa))
        self[line] = found
        return found

    def formed(self, statements: Iterable[Statement]) -> tuple[Item, ...]:
        """Some statements in this form."""
        return tuple(
            [self._item(kind, value) for kind, value in statements if kind != DIRECTIVE or not self.is_view]
        )

    def _item(self, kind: int, value: str) -> Item:
        if kind in (LABEL, SECTION):
            return kind, value, None
        if self.is_view and value == "nop":
            return NOP, value, None  # in machine code it cannot be told from the padding before a loop
        template = self._template(value)
        return kind, f"{template.pieces[0]}\n", template if template.names else None

    def _relabelled(self, line: str) -> tuple[Item, ...] | None:
        """The items of the line with its labels called .L0, .L1.., labels put back; nothing if that fails."""
        head, _, tail = line.partition(".L")
        if not head and tail[-1:] == ":" and f"L{tail[:-1]}".isidentifier():
            return ((LABEL, line[:-1], None),)
        if tail == "0":
            return None  # the line that others are read by
        if head[-1:] in ("\t", " ", ",") and f"L{tail}".isidentifier():
            jump = _with_label(self[f"{head}.L0"], f".L{tail}")
            if jump is not None:
                return jump
        labels = _LABEL_USED.findall(line)
        numbers = count()
        plain = _LABEL_USED.sub(lambda match: f".L{next(numbers)}", line)
        if plain == line:
            return None
        names = {f".L{number}": label for number, label in enumerate(labels)}
        relabelled = []
        for kind, value, template in self[plain]:
            if template is None and ".L" in value:
                return None
            if template is not None:
                if any(".L" in piece for piece in template.pieces):
                    return None
                template = template.renamed(names)
            relabelled.append((kind, value, template))
        return tuple(relabelled)


def _with_label(items: tuple[Item, ...], label: str) -> tuple[Item, ...] | None:
    """The items of a jump to .L0 as those of a jump to another label; nothing if they are no such jump."""
    if len(items) != 1:
        return None
    kind, value, template = items[0]
    if template is None or template.names != (".L0",):
        return None
    fallbacks = (label,) if template.fallbacks == (".L0",) else template.fallbacks
    return ((kind, value, Template(template.pieces, (label,), fallbacks)),)


def _clean_template(text: str) -> Template:
    return gaps(text, _LOCAL_REFERENCE) if "L" in text else Template((text,))


CLEAN = {isa: Form(isa, is_view=False) for isa in VIEW_TEMPLATES}
VIEW = {isa: Form(isa, is_view=True) for isa in VIEW_TEMPLATES}


def items_of(text: str, form: Form) -> list[Item]:
    """The items of a text's code, with a `SECTION` item wherever code goes on in another section."""
    lines = without_block_comments(text).split("\n")
    items = list(chain.from_iterable(map(form.__getitem__, lines)))
    if any([item[1].isdigit() for item in items if item[0] == LABEL]):
        statements = chain.from_iterable([parse_line(line, form.isa) for line in lines])
        items = list(form.formed(resolve_numbers(list(statements))))
    if any([item[0] == SECTION for item in items]):
        items = list(_placed(items, home_of(((item[0], item[1]) for item in items), text)))
    return items


def _placed(items: list[Item], home: str) -> Iterator[Item]:
    sections = Sections(home)
    where = HOME
    for item in items:
        if item[0] == SECTION:
            sections.follow(item[1])
        elif sections.current[1]:
            if sections.current[0] != where:
                where = sections.current[0]
                yield SECTION, where, None
            yield item


def visible(items: list[Item]) -> list[Item]:
    """What a view shows: the code of the function's own section, without a `.cold` part and without nops."""
    shown = []
    is_home = True
    for item in items:
        kind = item[0]
        if kind == SECTION:
            is_home = item[1] == HOME
        elif kind == LABEL and ".cold" in item[1]:
            break
        elif is_home and kind != NOP:
            shown.append(item)
    return shown


def write(items: list[Item], header: str = "", *, keeps_blocks: bool = False) -> str:
    """Number the labels that are referred to, fill the gaps, join the lines.

    With `keeps_blocks` labels of blocks stay even if nothing refers to them, and labels that are no local
    ones keep their names.
    """
    referred, names = _references(items)
    numbers: dict[str, str] = {}
    lines = [f"{header}:\n"] if header else []
    gapped: list[tuple[int, Template]] = []
    here, where, written = "", HOME, HOME
    elsewhere: dict[str, str] = {}
    for kind, value, template in items:
        line = value
        if kind == LABEL:
            if keeps_blocks and not _LOCAL_LABEL.fullmatch(value):
                line = f"{value}:\n"
            elif value in numbers or not (
                value in referred or (keeps_blocks and _BLOCK_LABEL.fullmatch(value))
            ):
                continue
            elif here:  # another label of the same address
                numbers[value] = here
                continue
            else:
                numbers[value] = here = next(names)
                line = f"{here}:\n"
        elif kind == SECTION:
            elsewhere[where], where = here, value
            here = elsewhere.get(where, "")
            continue
        else:
            here = ""
            if template is not None:
                gapped.append((len(lines) + (where != written), template))
        if where != written:
            lines.append(f"{where or '.text'}\n")
            written = where
        lines.append(line)
    for index, template in gapped:
        lines[index] = template.filled(numbers)
    return "".join(lines)


def _references(items: list[Item]) -> tuple[set[str], Iterator[str]]:
    """The names that gaps refer to; and L0, L1.. without those that are symbols in these items."""
    templates = [item[2] for item in items if item[2] is not None]
    referred = {name for template in templates for name in template.names}
    outside = referred.difference([item[1] for item in items if item[0] == LABEL])
    taken: set[str] = set()
    if any([name[0] == "L" for name in outside if name]):
        for template in templates:
            taken.update(f for n, f in zip(template.names, template.fallbacks, strict=True) if n in outside)
    return referred, (name for name in map("L{}".format, count()) if name not in taken)
