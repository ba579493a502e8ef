"""`asm.clean` loses no code: a unit's functions assemble to the same bytes and relocations, raw and clean.

All functions of a unit are assembled in one call, each in the section it began in; compared are whole
sections. Left out of the raw text are its alignment directives alone.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from corpus_builder import asm

TINY = Path(__file__).parent / "tiny"
NASTY = Path(__file__).parents[1] / "golden" / "units" / "nasty.c"
UNITS = [*sorted(TINY.glob("*.c")), NASTY]
JUMP = {"aarch64": "b", "x86_64": "jmp", "riscv64": "j"}
COMPILERS = {
    **{f"{isa}.gcc": [f"{isa}-linux-gnu-gcc"] for isa in asm.ISAS},
    **{f"{isa}.clang": ["clang-19", f"--target={isa}-linux-gnu", "-fno-addrsig"] for isa in asm.ISAS},
}
LEVELS = (["-O0"], ["-O2"], ["-O3"], ["-Os"], ["-O2", "-fPIC", "-ffunction-sections"], ["-O1", "-g"])

_ALIGNMENT = re.compile(r"^\s*\.(?:p2align|b?align)\w*\b[^;\n]*$", re.MULTILINE)
_SECTION = re.compile(r"^\s*\.(?:text\b|section\s+\.text).*$", re.MULTILINE)
_STATE = re.compile(r"^\s*\.(?:arch|cpu|option|attribute|arch_extension)\b.*$", re.MULTILINE)
_CLEAN_LABEL = re.compile(r"(?<![\w.%])(?<!\w\$)L(\d+)(?![\w.$])")
_COLD_SECTION = re.compile(r"\.section\s+\.text\.unlikely.*")

Target = tuple[str, int]
Section = tuple[bytes, list[tuple[int, int, Target]]]


def compiled(name: str, flags: list[str], source: Path, folder: Path) -> str:
    isa, command = name.partition(".")[0], COMPILERS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    if not shutil.which(f"{isa}-linux-gnu-as"):
        pytest.skip(f"{isa}-linux-gnu-as is not installed")
    argv = [*command, "-w", f'-DJUMP="{JUMP[isa]}"', f"-I{source.parent}", f"-I{source.parent / 'include'}"]
    argv += [*flags, "-S", str(source), "-o", "unit.s"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "unit.s").read_text()


def assembled(text: str, isa: str, path: Path) -> dict[str, Section]:
    """Code section to its bytes and relocations."""
    path.with_suffix(".s").write_text(text)
    argv = [f"{isa}-linux-gnu-as", str(path.with_suffix(".s")), "-o", str(path)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert not result.returncode, result.stderr[:2000]
    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        sections = list(elf.iter_sections())
        table = elf.get_section_by_name(".symtab")
        codes: dict[str, Section] = {s.name: (s.data(), []) for s in sections if s["sh_flags"] & 4}
        for section in sections:
            if section["sh_type"] != "SHT_RELA" or section.name[5:] not in codes:
                continue
            for entry in section.iter_relocations():
                symbol = table.get_symbol(entry["r_info_sym"])
                where = symbol["st_shndx"]
                home = sections[where].name if isinstance(where, int) else ""
                if home in codes:  # whatever a label is called, its address counts
                    target = home, symbol["st_value"] + entry["r_addend"]
                elif home:
                    target = "data", 0
                else:
                    target = symbol.name, entry["r_addend"]
                codes[section.name[5:]][1].append((entry["r_offset"], entry["r_info_type"], target))
        return {name: (data, sorted(relocations)) for name, (data, relocations) in codes.items() if data}


def text_of(unit: str, form: Callable[[str, str], str]) -> str:
    """All functions of a unit in one form of their text, each where the unit puts it."""
    parts = []
    end = 0
    for number, (symbol, raw) in enumerate(asm.split_symbols(unit).items()):
        start = unit.index(raw, end)
        home = [".text", *_SECTION.findall(unit, 0, start)][-1].strip()
        parts += _STATE.findall(unit, end, start)
        end = start + len(raw)
        if number == 0:
            parts += _STATE.findall(unit, 0, start)
        home = _COLD_SECTION.sub(".section .text.unlikely", home)
        text = re.sub(r"^\.text$", home.replace("\\", r"\\"), form(raw, symbol), flags=re.MULTILINE)
        parts += [home, _CLEAN_LABEL.sub(rf".Lclean{number}_\1", text) if form is not raw_form else text]
    return "\n".join([*parts, ""])


def raw_form(raw: str, symbol: str) -> str:
    text = _COLD_SECTION.sub(".section .text.unlikely", _ALIGNMENT.sub("", raw))
    # Unwind and debug information has its begin outside of the function's text.
    return re.sub(r"^\s*\.(?:cfi_|loc\b|file\b).*$", "", text, flags=re.MULTILINE)


def difference(unit: str, isa: str, folder: Path) -> list[str]:
    """What differs between the unit's functions raw and clean, in words."""
    raw = assembled(text_of(unit, raw_form), isa, folder / "raw.o")
    cleaned = text_of(unit, lambda raw, symbol: asm.clean(raw, isa))
    clean = assembled(cleaned, isa, folder / "clean.o")
    found = []
    for name in sorted(raw.keys() | clean.keys()):
        one, other = raw.get(name, (b"", [])), clean.get(name, (b"", []))
        if one[0] != other[0]:
            found.append(f"{name}: bytes differ, {len(one[0])} {len(other[0])}")
        if [item[:2] for item in one[1]] != [item[:2] for item in other[1]]:
            found.append(f"{name}: relocations differ in place or type")
        for mine, its in zip(one[1], other[1], strict=False):
            if mine[2] != its[2] and mine[2][0] != "data":
                found.append(f"{name}: {mine} {its}")
    return found


@pytest.mark.parametrize("flags", LEVELS, ids=" ".join)
@pytest.mark.parametrize("name", COMPILERS)
def test_clean_text_assembles_to_the_code_of_the_raw_text(
    name: str, flags: list[str], tmp_path: Path
) -> None:
    isa = name.partition(".")[0]
    for source in UNITS:
        unit = compiled(name, flags, source, tmp_path)
        functions = asm.split_symbols(unit)
        assert len(functions) > (25 if source == NASTY else 0)
        assert difference(unit, isa, tmp_path) == [], source.name
        for text in functions.values():
            clean, view = asm.clean(text, isa), asm.view(text, isa)
            assert asm.clean(clean, isa) == clean
            assert asm.view(clean, isa) == view
            assert asm.view(view, isa) == view
            assert asm.body(text, isa) == asm.body(clean, isa)
            assert asm.body(text, isa) == (asm.view_sha256(text, isa), asm.num_instructions(clean))
