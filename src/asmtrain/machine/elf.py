"""The tables of a 64-bit little-endian ELF file that nobody vouches for.

In go bytes, out come sections, symbols and relocations. Invariant: whatever the bytes are, a damaged table
gives `Damaged` and nothing else, and all that is read takes time and memory linear in the file's size:
tables may not hand out more than `_MOST_READ` times its bytes, however their headers overlap, and nothing is
decompressed. pyelftools reads the same (`tests/train/test_elf.py` compares) twenty times slower, and a
damaged file leads it into a dozen kinds of exceptions and into decompression.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

MACHINES = {183: "aarch64", 62: "x86_64", 243: "riscv64"}
"""EM_AARCH64, EM_X86_64, EM_RISCV."""

PROGBITS, SYMTAB, RELA, DYNSYM = 1, 2, 4, 11
ALLOCATED, EXECUTABLE, _COMPRESSED = 2, 4, 0x800
FUNC, IFUNC = 2, 10
RELOCATABLE, FIXED, SHARED = 1, 2, 3
"""ET_REL, ET_EXEC, ET_DYN."""
_LOAD, _EH_FRAME_HEADER = 1, 0x6474E550

_FILE = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")
_MOST_READ = 4
_LONGEST_NAME = 1024
_MOST_SEGMENTS = 256


class Damaged(Exception):
    """A file whose tables contradict each other or themselves."""


class Foreign(Exception):
    """A file for another machine, width or byte order; says for which."""


class Section(NamedTuple):
    """A section header."""

    number: int
    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def is_code(self) -> bool:
        """Whether it holds instructions, in the file."""
        return self.kind == PROGBITS and bool(self.flags & EXECUTABLE) and not self.flags & _COMPRESSED


class Symbol(NamedTuple):
    """What a symbol table says of one name."""

    name_at: int
    kind: int
    section: int
    value: int
    size: int


class Rela(NamedTuple):
    """One entry of a relocation section."""

    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass
class Elf:
    """A file's header, and readers of its tables."""

    content: bytes
    isa: str
    kind: int
    entry: int
    sections: list[Section] = field(default_factory=list)
    _read: int = 0

    @property
    def is_linked(self) -> bool:
        """Whether addresses are final."""
        return self.kind != RELOCATABLE

    def data(self, section: Section) -> bytes:
        """A section's bytes in the file.

        Raises:
            Damaged: they are not all there, or sections hand out the same bytes again and again.
        """
        end = section.offset + section.size
        if end > len(self.content):
            raise Damaged(f"section {section.name or section.number} ends behind the file")
        self._read += section.size
        if self._read > _MOST_READ * len(self.content):
            raise Damaged("its sections overlap")
        return self.content[section.offset : end]

    def named(self, name: str) -> Section | None:
        """The first section of a name that has bytes in the file."""
        return next((each for each in self.sections if each.name == name and each.kind != 8), None)

    @cached_property
    def symbols(self) -> list[Symbol]:
        """Of `.symtab`, or where that is stripped of `.dynsym`."""
        table = self.symbol_table
        if table is None:
            return []
        raw = self.data(table)
        entries = _SYMBOL.iter_unpack(raw[: len(raw) // _SYMBOL.size * _SYMBOL.size])
        return [Symbol(name, info & 15, where, value, size) for name, info, _, where, value, size in entries]

    @cached_property
    def symbol_table(self) -> Section | None:
        """The section of `symbols`."""
        tables = {section.kind: section for section in reversed(self.sections)}
        return tables.get(SYMTAB) or tables.get(DYNSYM)

    def symbol_name(self, symbol: Symbol) -> str:
        """The name of one of `symbols`."""
        table = self.symbol_table
        if table is None or table.link >= len(self.sections):
            return ""
        strings = self.sections[table.link]
        return _string(self.content, strings.offset + symbol.name_at, strings.offset + strings.size)

    @cached_property
    def relocation_sections(self) -> dict[int, list[Section]]:
        """Relocation sections by the section they change (0 where linked)."""
        found: dict[int, list[Section]] = {}
        for section in self.sections:
            if section.kind == RELA:
                found.setdefault(section.info if not self.is_linked else 0, []).append(section)
        return found

    def relocations(self, changed: int) -> Iterator[Rela]:
        """The entries of all relocation sections that change one section; of all, with 0, where linked."""
        for section in self.relocation_sections.get(changed, ()):
            raw = self.data(section)
            for offset, kind, symbol, addend in _RELA.iter_unpack(raw[: len(raw) // _RELA.size * _RELA.size]):
                yield Rela(offset, kind, symbol, addend)


def read_elf(content: bytes) -> Elf:
    """Read a file's header and section headers; where there are none, segments stand for sections.

    Raises:
        Damaged: a header lies outside the file.
        Foreign: it is for another machine, width or byte order.
    """
    if len(content) < _FILE.size:
        raise Damaged("it ends within its header")
    _, width, order, kind, machine, _, entry, *places = _FILE.unpack_from(content)
    segments, sections, _, _, _, num_segments, size, count, names = places
    if (width, order) != (2, 1) or machine not in MACHINES:
        bits = {1: "32 bits", 2: "64 bits"}.get(width, f"width {width}")
        raise Foreign(f"machine {_known(machine)}, {bits}, {'little' if order == 1 else 'big'}-endian")
    elf = Elf(content, MACHINES[machine], kind, entry)
    if sections and (count or size):
        elf.sections = _sections(content, sections, size, count, names)
    if not elf.sections and elf.is_linked:
        elf.sections = _from_segments(content, segments, num_segments)
    return elf


def _known(machine: int) -> str:
    """A few machines by their names in elf.h."""
    names = {3: "EM_386", 8: "EM_MIPS", 20: "EM_PPC", 21: "EM_PPC64", 22: "EM_S390", 40: "EM_ARM"}
    return names.get(machine, str(machine))


def _sections(content: bytes, start: int, size: int, count: int, names: int) -> list[Section]:
    if size != _SECTION.size:
        raise Damaged(f"section headers of {size} bytes, not {_SECTION.size}")
    if start + size > len(content):
        raise Damaged("its section headers lie behind its end")
    if count == 0:  # more than the header has room for
        count = _SECTION.unpack_from(content, start)[5]
    if names == 0xFFFF:
        names = _SECTION.unpack_from(content, start)[6]
    if start + count * size > len(content):
        raise Damaged(f"{count} section headers end behind it")
    raw = list(_SECTION.iter_unpack(content[start : start + count * size]))
    if names >= count:
        raise Damaged("no section holds its sections' names")
    begin, end = raw[names][4], raw[names][4] + raw[names][5]
    return [
        Section(number, _string(content, begin + name, end), kind, flags, address, offset, length, link, info)
        for number, (name, kind, flags, address, offset, length, link, info, _, _) in enumerate(raw)
    ]


def _string(content: bytes, start: int, end: int) -> str:
    """A string of a table, cut at its end and at the longest name anyone gives."""
    end = min(end, start + _LONGEST_NAME, len(content))
    if start >= end:
        return ""
    zero = content.find(b"\0", start, end)
    return content[start : zero if zero >= 0 else end].decode("utf-8", "replace")


def _from_segments(content: bytes, start: int, count: int) -> list[Section]:
    """What a loader sees of a file without section headers: executable segments, and `.eh_frame`."""
    if start + count * _SEGMENT.size > len(content):
        raise Damaged(f"{count} program headers end behind it")
    count = min(count, _MOST_SEGMENTS)
    segments = list(_SEGMENT.iter_unpack(content[start : start + count * _SEGMENT.size]))
    found: list[Section] = []

    def add(name: str, flags: int, address: int, offset: int, size: int) -> None:
        found.append(Section(len(found) + 1, name, PROGBITS, flags, address, offset, size, 0, 0))

    for kind, flags, offset, address, _, size, _, _ in segments:
        if kind == _LOAD and flags & 1:
            add(".text", ALLOCATED | EXECUTABLE, address, offset, size)
        elif kind == _EH_FRAME_HEADER and offset + 8 <= len(content) and content[offset + 1] == 0x1B:
            (displacement,) = struct.unpack_from("<i", content, offset + 4)
            frames = address + 4 + displacement
            for other, _, at, low, _, length, _, _ in segments:
                if other == _LOAD and low <= frames < low + length:
                    add(".eh_frame", ALLOCATED, frames, at + frames - low, length - (frames - low))
    return found
