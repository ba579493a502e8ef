"""Functions of a file to be embedded or searched: assembler text, objects, linked binaries, archives.

In goes a path; out come functions as `corpus_builder.asm.view` shows them, so that a function reads the same
whether its compiler's text or its machine code was given, stripped or not. `tests/train/test_binary.py` holds
the share of functions that agree, `benchmarks/linked.py` measures it on linked and stripped ones.

Invariant: whatever a file holds, it gives functions or `BinaryError` (`benchmarks/fuzz_reader.py`); machine
code is read in time and memory linear in the size of its file. What must not hang whatever text it is given
reads in a child (`untrusted`). Cost: benchmarks/embed_speed.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from asmtrain.errors import BinaryError
from asmtrain.machine import archive, bounds
from asmtrain.machine.context import Context, Relocation
from asmtrain.machine.disassembly import function_text
from asmtrain.machine.elf import FIXED, MACHINES, Damaged, Elf, Foreign, Section, read_elf
from corpus_builder import asm

ItemT = TypeVar("ItemT")

MAX_BYTES = 1 << 30
"""Of a file; all of it is read into memory."""
MAX_TEXT_BYTES = 64 << 20
_MOST_LOOKED_AT = 1 << 28


class Share(NamedTuple):
    """A part of a file's functions, in their order: processes that read one each have read the file."""

    number: int = 0
    of: int = 1

    def among(self, items: list[ItemT]) -> list[ItemT]:
        """Its part of a list."""
        return items[len(items) * self.number // self.of : len(items) * (self.number + 1) // self.of]


_WHOLE = Share()


@dataclass(frozen=True)
class BinaryFunction:
    """One function of a file."""

    name: str
    """Its symbol, or `sub_ADDRESS` where the file has none."""
    isa: str
    view: str
    """Its instructions as a stripped binary shows them (`corpus_builder.asm.view`)."""
    address: int | None = None
    """In memory (linked file) or in its section (object file); None for assembler text."""
    size: int | None = None
    """Bytes of its machine code; None for assembler text."""
    member: str = ""
    """The archive's member that holds it."""


def functions_in(path: Path, *, isa: str = "", share: Share = _WHOLE) -> list[BinaryFunction]:
    """The functions of a `.s`, `.o`, `.a`, shared library or executable, in the file's order.

    Args:
        path: the file; ELF and archives are recognised by their first bytes, anything else is read as
            assembler text.
        isa: of assembler text; guessed from the registers without it.
        share: which part of an ELF file or archive to read; it may be empty.

    Raises:
        BinaryError: the file cannot be read, holds no function, or is of another architecture.
    """
    return functions_of(_content(path), path, isa=isa, share=share)


def functions_of(content: bytes, path: Path, *, isa: str = "", share: Share = _WHOLE) -> list[BinaryFunction]:
    """The same for a file's bytes; `path` is what errors call it."""
    try:
        if content.startswith(archive.MAGIC):
            functions = [*_archive_functions(content, path, share)]
        elif content.startswith(archive.THIN_MAGIC):
            raise BinaryError(
                f"{path} is a thin archive: it names its object files and does not hold them",
                remedy="give the object files, or make it again with ar without T",
            )
        elif content.startswith(b"\x7fELF"):
            functions = _elf_functions(content, path, share)
        else:
            functions = share.among(_text_functions(path, content, isa))
    except Damaged as error:
        raise BinaryError(f"{path} is damaged: {error}", remedy="build it again") from None
    except MemoryError:
        raise BinaryError(f"{path} takes more memory than there is", remedy="split it") from None
    if not functions and share == _WHOLE:
        raise BinaryError(
            f"{path} holds no function",
            remedy="give assembler text with .type lines (gcc -S), or an ELF file with code",
        )
    return functions


def _content(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise BinaryError(f"{path} is no file", remedy="name the files in it")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BinaryError(
                f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that are read",
                remedy="split it, or strip its debug information",
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BinaryError(f"cannot read {path}: {reason}", remedy="check the path") from None


def _archive_functions(content: bytes, path: Path, share: Share) -> Iterator[BinaryFunction]:
    members = [  # others are no machine code: resources, bitcode
        (name, body) for name, body in archive.members(content) if body.startswith(b"\x7fELF")
    ]
    for name, body in share.among(members):
        for function in _elf_functions(body, Path(f"{path}({name})"), _WHOLE):
            yield replace(function, member=name)


# Assembler text.

_REGISTERS = {
    "aarch64": re.compile(r"(?<![\w.%])(?:[wx]\d\d?|[wx]zr)\b"),
    "x86_64": re.compile(r"%(?:r[a-ds][xip]|r[sb]p|e[a-ds][xip]|r\d\d?|xmm\d)"),
    "riscv64": re.compile(r"(?<![\w.%])(?:ra|s0|a[0-7]),"),
}


def _text_functions(path: Path, content: bytes, isa: str) -> list[BinaryFunction]:
    if not content:
        raise BinaryError(f"{path} is empty", remedy="give a .s, .o, .a, .so or executable")
    if b"\0" in content:
        raise BinaryError(
            f"{path} is neither an ELF file nor assembler text", remedy="give a .s, .o, .a, .so or executable"
        )
    if len(content) > MAX_TEXT_BYTES:
        raise BinaryError(
            f"{path} has {len(content):,} bytes, more than the {MAX_TEXT_BYTES:,} of text that are read",
            remedy="split it",
        )
    text = content.decode("utf-8", "replace")
    if _is_endless(text):
        raise BinaryError(f"{path} opens functions or comments and never ends them", remedy="give it whole")
    isa = isa or _guess_isa(path, text)
    raw = asm.split_functions(text)
    if not raw and asm.num_instructions(asm.clean(text, isa)):
        raw = {path.stem: text}  # one bare function, such as a `.s` member of a shard cleaned by hand
    return [BinaryFunction(name, isa, asm.view(body, isa)) for name, body in raw.items()]


def _is_endless(text: str) -> bool:
    """Whether looking for ends of functions and comments, each to the end of the text, takes seconds."""
    opened = text.count("\t.type\t") - text.count("\t.size\t")
    comments = text.count("/*", text.rfind("*/") + 1)
    return max(opened * len(text) // 100, (comments - 16) * len(text)) > _MOST_LOOKED_AT


def _guess_isa(path: Path, text: str) -> str:
    hits = {isa: len(pattern.findall(text)) for isa, pattern in _REGISTERS.items()}
    best = max(hits, key=lambda isa: hits[isa])
    if not hits[best]:
        raise BinaryError(
            f"{path} is not assembler text of {', '.join(hits)}: it names none of their registers",
            remedy="give the output of gcc -S or clang -S (AT&T syntax for x86-64)",
        )
    return best


# ELF.


def _elf_functions(content: bytes, path: Path, share: Share) -> list[BinaryFunction]:
    try:
        elf = read_elf(content)
        return list(_read(elf, share))
    except Foreign as error:
        raise BinaryError(
            f"{path} is for {error}",
            remedy=f"give a 64-bit little-endian file for {', '.join(MACHINES.values())}",
        ) from None
    except Damaged as error:
        raise BinaryError(f"{path} is a damaged ELF file: {error}", remedy="build it again") from None


def _read(elf: Elf, share: Share) -> Iterator[BinaryFunction]:
    section: Section | None = None
    code, context = b"", Context()
    facts = context_of(elf)
    for function in share.among(bounds.functions(elf)):
        if function.section is not section:
            section = function.section
            code = elf.data(section)
            context = _context(elf, section, facts)
        start = function.address - section.address
        machine_code = code[start : start + function.size]
        text = function_text(machine_code, function.address, elf.isa, context)
        view = asm.view(text, elf.isa)
        if view:
            yield BinaryFunction(function.name, elf.isa, view, function.address, function.size)


def context_of(elf: Elf) -> Context:
    """What holds for all sections of a file."""
    comment = elf.named(".comment")
    is_clang = comment is not None and b"clang version" in elf.data(comment)
    table = elf.named(".got")
    offsets = (table.address, table.address + table.size) if table else (0, 0)
    loaded = [section for section in elf.sections if section.flags & 2 and section.address]
    absolute = (0, 0)
    if elf.kind == FIXED and loaded:
        absolute = (
            min(section.address for section in loaded),
            max(section.address + section.size for section in loaded),
        )
    return Context({}, elf.is_linked, absolute, offsets, is_clang)


def _context(elf: Elf, section: Section, facts: Context) -> Context:
    """The facts, with the relocations of one section of an object file."""
    if elf.is_linked:
        return facts
    found = {}
    for entry in elf.relocations(section.number):
        if entry.symbol < len(elf.symbols) and not _is_note(elf.isa, entry.kind):
            symbol = elf.symbols[entry.symbol]
            target = symbol.value + entry.addend if symbol.section == section.number else None
            found[entry.offset] = Relocation(entry.kind, target)
    return Context(found, facts.is_linked, facts.absolute, facts.offsets, facts.is_clang)


def _is_note(isa: str, kind: int) -> bool:
    """R_RISCV_ALIGN and R_RISCV_RELAX stand beside the relocation that counts."""
    return isa == "riscv64" and kind in (43, 51)
