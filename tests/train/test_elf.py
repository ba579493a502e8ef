"""Our reader of ELF tables against pyelftools, and its limits on hostile ones."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from asmtrain.binary import functions_in
from asmtrain.errors import BinaryError
from asmtrain.machine.elf import FUNC, RELA, Damaged, read_elf
from asmtrain.machine.frames import frames

SOURCE = (Path(__file__).parent / "references.c").read_text()
ISAS = ("aarch64", "x86_64", "riscv64")


def built(folder: Path, isa: str, *options: str) -> Path:
    compiler = f"{isa}-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    (folder / "unit.c").write_text(SOURCE)
    command = [
        compiler,
        "-w",
        "-O1",
        "-fPIC",
        "-fasynchronous-unwind-tables",
        *options,
        "unit.c",
        "-o",
        "unit",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "unit"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", [["-c"], ["-shared", "-Wl,--unresolved-symbols=ignore-all"]])
def test_tables_are_those_that_pyelftools_reads(isa: str, options: list[str], tmp_path: Path) -> None:
    path = built(tmp_path, isa, *options)
    ours = read_elf(path.read_bytes())
    with open(path, "rb") as stream:
        theirs = ELFFile(stream)
        assert [section.name for section in ours.sections] == [
            section.name for section in theirs.iter_sections()
        ]
        for mine, section in zip(ours.sections, theirs.iter_sections(), strict=True):
            assert (mine.address, mine.size, mine.flags) == (
                section["sh_addr"],
                section["sh_size"],
                section["sh_flags"],
            )
            if mine.is_code:
                assert ours.data(mine) == section.data()
            if mine.kind == RELA and options == ["-c"]:
                found = [entry for entry in ours.relocations(mine.info)]
                assert {(e.offset, e.kind, e.symbol, e.addend) for e in found} == {
                    (e["r_offset"], e["r_info_type"], e["r_info_sym"], e["r_addend"])
                    for e in section.iter_relocations()
                }
        table = theirs.get_section_by_name(".symtab")
        named = {(s.name, s["st_value"]) for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"}
        assert {(ours.symbol_name(s), s.value) for s in ours.symbols if s.kind == FUNC} == named
        if options != ["-c"]:
            section = ours.named(".eh_frame")
            assert section is not None
            records = theirs.get_dwarf_info().EH_CFI_entries()
            expected = [(r["initial_location"], r["address_range"]) for r in records if isinstance(r, FDE)]
            mine = frames(ours.data(section), section.address, starts={}, lengths={})
            assert [(frame.address, frame.size) for frame in mine] == expected != []


@pytest.mark.parametrize("isa", ISAS)
def test_unwind_tables_name_the_functions_of_a_stripped_object(isa: str, tmp_path: Path) -> None:
    """Debian's tools strip objects of static libraries to what the linker needs."""
    path = built(tmp_path, isa, "-c")
    whole = {function.address for function in functions_in(path)}
    views = {function.view for function in functions_in(path)}
    subprocess.run([f"{isa}-linux-gnu-strip", "--strip-unneeded", path], check=True)
    stripped = functions_in(path)
    assert {function.address for function in stripped} == whole
    assert {function.view for function in stripped} == views
    if isa != "riscv64":  # whose linker needs all symbols, to relax
        assert "local" not in {function.name for function in stripped}


def header(content: bytearray, section: int, field: int, value: int, *, form: str = "<Q") -> None:
    (start,) = struct.unpack_from("<Q", content, 40)
    struct.pack_into(form, content, start + 64 * section + field, value)


def test_sections_that_share_their_bytes_are_read_no_more_than_the_file_allows(tmp_path: Path) -> None:
    path = built(tmp_path, "x86_64", "-c", "-ffunction-sections")
    content = bytearray(path.read_bytes())
    elf = read_elf(bytes(content))
    for section in elf.sections[1:]:
        header(content, section.number, 24, 0)  # sh_offset
        header(content, section.number, 32, len(content))  # sh_size
    path.write_bytes(content)
    with pytest.raises(BinaryError):
        functions_in(path)
    hostile = read_elf(bytes(content))
    with pytest.raises(Damaged, match="overlap"):
        list(map(hostile.data, hostile.sections))


def test_overlapping_functions_are_no_longer_than_their_section(tmp_path: Path) -> None:
    path = built(tmp_path, "x86_64", "-c")
    content = bytearray(path.read_bytes())
    elf = read_elf(bytes(content))
    table = elf.symbol_table
    assert table is not None
    for number, symbol in enumerate(elf.symbols):
        if symbol.kind == FUNC:
            struct.pack_into("<Q", content, table.offset + 24 * number + 16, 1 << 40)  # st_size
    path.write_bytes(content)
    code = sum(section.size for section in elf.sections if section.is_code)
    assert sum(function.size or 0 for function in functions_in(path)) <= code


def test_a_compressed_section_is_not_expanded(tmp_path: Path) -> None:
    path = built(tmp_path, "x86_64", "-c")
    content = bytearray(path.read_bytes())
    text = read_elf(bytes(content)).named(".text")
    assert text is not None
    header(content, text.number, 8, text.flags | 0x800)
    path.write_bytes(content)
    with pytest.raises(BinaryError, match="holds no function"):
        functions_in(path)
