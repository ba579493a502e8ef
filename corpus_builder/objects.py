"""What a compiler tells of a unit besides its assembly text: object code, inlining, LLVM IR, source lines.

In go one unit's ELF object (64-bit, little-endian), its inlining report, its `.ll` text, or its assembly
compiled with -g1; out come plain values by function. Nothing here runs a compiler; `inlining_flags` are
those that make one report, and they never change the assembly (tests/corpus/test_objects.py).

Cost: an object's tables are read by numpy, all symbols at once, where pyelftools took longer than the
assembler. gcc's report adds 0.7 % to its CPU time at -O2, clang's 3.4 % (36 files of lua and libuv, four
rounds): it tracks source positions for it.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corpus_builder import asm

# Object code.

_HEADER = np.dtype(
    [
        *(("ident", "S16"), ("type", "<u2"), ("machine", "<u2"), ("version", "<u4"), ("entry", "<u8")),
        *(("phoff", "<u8"), ("shoff", "<u8"), ("flags", "<u4"), ("ehsize", "<u2"), ("phentsize", "<u2")),
        *(("phnum", "<u2"), ("shentsize", "<u2"), ("shnum", "<u2"), ("shstrndx", "<u2")),
    ]
)
_SECTION = np.dtype(
    [
        *(("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("addr", "<u8"), ("offset", "<u8")),
        *(("size", "<u8"), ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entsize", "<u8")),
    ]
)
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SHT_SYMTAB, _SHT_RELA, _SHT_SYMTAB_SHNDX = 2, 4, 18
_STT_FUNC, _STT_SECTION = 2, 3
_EM_X86_64, _EM_AARCH64, _EM_RISCV = 62, 183, 243
_SHN_XINDEX = 0xFFFF

Table = npt.NDArray[Any]


class Relocation(NamedTuple):
    """What the linker is to fill in."""

    offset: int
    """From the function's first byte."""
    type: str
    """`R_AARCH64_CALL26`.."""
    symbol: str
    """A section's name where the object refers to one, such as `.rodata.str1.1`; empty for none."""
    addend: int


class Code(NamedTuple):
    """One symbol's machine code, as it stands in the object."""

    data: bytes
    relocations: tuple[Relocation, ...]
    """In the order of their offsets."""


class ObjectFile:
    """The tables of one object.

    Raises:
        ValueError: the bytes are no 64-bit little-endian ELF file.
    """

    def __init__(self, content: bytes) -> None:
        """Read the section headers and the symbol table."""
        if len(content) < _HEADER.itemsize or content[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        self._content = content
        header = np.frombuffer(content, _HEADER, 1)[0]
        offset, count = int(header["shoff"]), int(header["shnum"])
        self.machine = int(header["machine"])
        if offset and not count:  # more than 65,279 sections, as -ffunction-sections may give
            count = int(np.frombuffer(content, _SECTION, 1, offset)[0]["size"])
        self._sections = np.frombuffer(content, _SECTION, count, offset)
        tables = np.flatnonzero(self._sections["type"] == _SHT_SYMTAB)
        self._symtab = int(tables[0]) if len(tables) else -1
        self._symbols = self._table(self._symtab, _SYMBOL) if len(tables) else np.empty(0, _SYMBOL)
        self._names = self._data(int(self._sections[self._symtab]["link"])) if len(tables) else b""
        link = int(header["shstrndx"])
        self._section_names = self._data(link if link != _SHN_XINDEX else int(self._sections[0]["link"]))

    def function_sizes(self) -> dict[str, int]:
        """Name and size in bytes of every function."""
        functions = self._symbols[self._symbols["info"] & 0xF == _STT_FUNC]
        return {
            _string(self._names, start): size
            for start, size in zip(functions["name"].tolist(), functions["size"].tolist(), strict=True)
        }

    def codes(self, symbols: Iterable[str]) -> dict[str, Code]:
        """Machine code and relocations of those functions that the object defines."""
        wanted = set(symbols)
        places = np.flatnonzero(self._symbols["info"] & 0xF == _STT_FUNC).tolist()
        named = ((_string(self._names, int(self._symbols[place]["name"])), place) for place in places)
        relocations = cache(self._relocations)
        return {name: self._code(place, relocations) for name, place in named if name in wanted}

    def _code(self, place: int, relocations: Any) -> Code:
        symbol = self._symbols[place]
        start, size = int(symbol["value"]), int(symbol["size"])
        section = self._section_of(place)
        data = self._data(section)[start : start + size]
        table = relocations(section)
        first, last = np.searchsorted(table["offset"], (start, start + size)).tolist()
        types = _relocation_types(self.machine)
        return Code(
            data,
            tuple(
                Relocation(offset - start, types.get(kind, f"R_{kind}"), self._symbol_name(other), addend)
                for offset, kind, other, addend in table[first:last].tolist()
            ),
        )

    def _relocations(self, section: int) -> Table:
        is_its = (self._sections["type"] == _SHT_RELA) & (self._sections["info"] == section)
        tables = [self._table(int(number), _RELA) for number in np.flatnonzero(is_its)]
        table = np.concatenate(tables) if tables else np.empty(0, _RELA)
        return table[np.argsort(table["offset"], kind="stable")]

    def _symbol_name(self, place: int) -> str:
        symbol = self._symbols[place]
        if symbol["info"] & 0xF == _STT_SECTION:
            return _string(self._section_names, int(self._sections[self._section_of(place)]["name"]))
        return _string(self._names, int(symbol["name"]))

    def _section_of(self, place: int) -> int:
        number = int(self._symbols[place]["section"])
        if number == _SHN_XINDEX:
            is_its = (self._sections["type"] == _SHT_SYMTAB_SHNDX) & (self._sections["link"] == self._symtab)
            number = int(self._table(int(np.flatnonzero(is_its)[0]), np.dtype("<u4"))[place])
        return number

    def _data(self, section: int) -> bytes:
        header = self._sections[section]
        return self._content[int(header["offset"]) : int(header["offset"]) + int(header["size"])]

    def _table(self, section: int, dtype: "np.dtype[Any]") -> Table:
        data = self._data(section)
        return np.frombuffer(data, dtype, len(data) // dtype.itemsize)


def function_sizes(object_file: Path) -> dict[str, int]:
    """Name and size in bytes of every function in an object's symbol table."""
    return ObjectFile(object_file.read_bytes()).function_sizes()


def object_member(code: Code) -> bytes:
    """Code as the JSON of a member: `{"code": hex, "relocations": [[offset, type, symbol, addend], ..]}`."""
    return json.dumps({"code": code.data.hex(), "relocations": code.relocations}).encode()


def _string(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode(errors="replace")


# pyelftools has no names for RISC-V. Source: the RISC-V ELF psABI 1.0, "Relocations".
_RISCV_TYPES = (
    "NONE 32 64 RELATIVE COPY JUMP_SLOT TLS_DTPMOD32 TLS_DTPMOD64 TLS_DTPREL32 TLS_DTPREL64 TLS_TPREL32 "
    "TLS_TPREL64 TLSDESC 13 14 15 BRANCH JAL CALL CALL_PLT GOT_HI20 TLS_GOT_HI20 TLS_GD_HI20 PCREL_HI20 "
    "PCREL_LO12_I PCREL_LO12_S HI20 LO12_I LO12_S TPREL_HI20 TPREL_LO12_I TPREL_LO12_S TPREL_ADD ADD8 "
    "ADD16 ADD32 ADD64 SUB8 SUB16 SUB32 SUB64 GOT32_PCREL 42 ALIGN RVC_BRANCH RVC_JUMP RVC_LUI GPREL_I "
    "GPREL_S TPREL_I TPREL_S RELAX SUB6 SET6 SET8 SET16 SET32 32_PCREL IRELATIVE PLT32 SET_ULEB128 "
    "SUB_ULEB128"
)


@cache
def _relocation_types(machine: int) -> Mapping[int, str]:
    from elftools.elf import enums

    if machine == _EM_RISCV:
        return {number: f"R_RISCV_{name}" for number, name in enumerate(_RISCV_TYPES.split())}
    names = {_EM_AARCH64: enums.ENUM_RELOC_TYPE_AARCH64, _EM_X86_64: enums.ENUM_RELOC_TYPE_x64}
    return {number: name for name, number in names.get(machine, {}).items() if isinstance(number, int)}


# Inlining reports.


def inlining_flags(family: str, report: Path) -> tuple[str, ...]:
    """Flags that make a compiler report what it inlined: gcc into `report`, clang to stderr.

    gcc appends to the file, so it has to be a new one for each call.
    """
    if family == "gcc":
        return (f"-fopt-info-inline-optimized={report}",)
    return ("-Rpass=inline", "-fno-caret-diagnostics")


# Say which line each instruction comes from, and move no code. A text does not have the source's columns.
LINE_FLAGS = ("-g1", "-gno-column-info")


_GCC_INLINED = re.compile(r" optimized: +Inlin(?:ed|ing) (\S+)/\d+ (?:in)?to (\S+)/\d+")
_CLANG_INLINED = re.compile(r" remark: '([^']+)' inlined into '([^']+)'")


def inlined_functions(report: str) -> dict[str, tuple[str, ...]]:
    """Function to the functions inlined into it, sorted, as gcc's or clang's report says.

    Both are C names: clones (`f.part.0`) count as their origin, and a part put back where it came from does
    not count. A function inlined into one that was itself inlined elsewhere is reported for the first alone.
    """
    found: dict[str, set[str]] = {}
    for pattern in (_GCC_INLINED, _CLANG_INLINED):
        for callee, caller in pattern.findall(report):
            name, into = asm.origin(callee), asm.origin(caller)
            if name != into or callee == caller:
                found.setdefault(into, set()).add(name)
    return {name: tuple(sorted(callees)) for name, callees in sorted(found.items())}


# LLVM IR.

_LL_DEFINITION = re.compile(r'^define [^@\n]*@(?:"((?:[^"\\]|\\.)*)"|([\w.$-]+))\(', re.MULTILINE)


def ll_functions(text: str) -> dict[str, str]:
    """Function name to its definition, `define ... {` to `}`, with a line end, in a module's text."""
    found = {}
    for match in _LL_DEFINITION.finditer(text):
        end = text.find("\n}\n", match.end())
        if end >= 0:
            found[match[1] or match[2]] = text[match.start() : end + 3]
    return found


# Source lines.

_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"((?:[^"\\]|\\.)*)"(?:\s+"((?:[^"\\]|\\.)*)")?', re.MULTILINE)

SourceLine = tuple[str, int]
"""File as the compiler named it, cleaned of `./` and `..`, and line; ("", 0) where it gave none."""


def source_lines(text: str, isa: str) -> dict[str, list[SourceLine]]:
    """For each function of a unit compiled with -g1 the source line of each instruction of its `asm.clean`.

    Instructions inlined from another function have that function's line.
    """
    files = _files(text)
    return {
        symbol: [
            (files.get(file, ""), line) if line else ("", 0) for file, line in asm.line_numbers(body, isa)
        ]
        for symbol, body in asm.split_symbols(text).items()
    }


def lines_member(lines: Sequence[SourceLine]) -> bytes:
    """Lines as the JSON of a member: `{"files": [..], "lines": [[place in files, line], ..]}`."""
    files = sorted({file for file, _ in lines})
    places = {file: place for place, file in enumerate(files)}
    return json.dumps({"files": files, "lines": [(places[file], line) for file, line in lines]}).encode()


def _files(text: str) -> dict[int, str]:
    """The numbers of `.file` lines; file 0 gives the folder that relative names start from."""
    found: dict[int, str] = {}
    base = ""
    for number, first, second in _FILE.findall(text):
        if number == "0" and second:
            base = first
        path = posixpath.join(first, second) if second else first
        joined = path if number == "0" else posixpath.join(base, path)
        found[int(number)] = posixpath.normpath(joined)
    return found
