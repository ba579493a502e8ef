"""Objects, inlining reports, IR and line tables of real compilers, against a second reader or the source."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from corpus_builder import asm, objects

TINY = Path(__file__).parent / "tiny"
COMPILERS = {
    "aarch64.gcc": ["aarch64-linux-gnu-gcc"],
    "x86_64.gcc": ["x86_64-linux-gnu-gcc"],
    "riscv64.gcc": ["riscv64-linux-gnu-gcc"],
    "aarch64.clang": ["clang-19", "--target=aarch64-linux-gnu"],
    "x86_64.clang": ["clang-19", "--target=x86_64-linux-gnu"],
    "riscv64.clang": ["clang-19", "--target=riscv64-linux-gnu"],
}
LEVELS = ("O0", "O2", "O3", "Os")
UNIT = """\
extern int other(int);
extern int cold(int) __attribute__((cold));
static inline __attribute__((always_inline)) int always(int x) { return x * 3; }
static int square(int x) { return x * x + other(x); }
static int middle(int x) { return square(x) + 1 + always(x); }
int outer(int x) { return middle(x) + square(x); }
int outermost(int x)
{
    if (x < 0)
        cold(x);
    return outer(x) - other(x);
}
static __attribute__((noinline)) int repeated(const int *p, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += other(p[i]) * n;
    return sum;
}
int fixed(const int *p) { return repeated(p, 5) + repeated(p + 1, 5); }
const char *text(void) { return "text"; }
"""


def compiled(name: str, *flags: str, folder: Path, source: str | Path = UNIT) -> tuple[str, str]:
    """Assembly, and what the compiler said; the object lies beside it as unit.o."""
    command = COMPILERS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    if isinstance(source, str):
        (folder / "unit.c").write_text(source)
        source = Path("unit.c")
    argv = [*command, "-w", *flags, "-S", str(source), "-o", "unit.s"]
    said = subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stderr
    assemble = [*command, "-c", "unit.s", "-o", "unit.o"]
    subprocess.run(assemble, cwd=folder, check=True, capture_output=True, timeout=60)
    return (folder / "unit.s").read_text(), said


def read_by_readelf(path: Path) -> dict[str, list[tuple[int, str, str, int]]]:
    """Section to its relocations: offset, type, symbol, addend."""
    argv = ["readelf", "-rW", str(path)]
    found: dict[str, list[tuple[int, str, str, int]]] = {}
    section = ""
    for line in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines():
        if header := re.match(r"Relocation section '\.rela(.*?)'", line):
            section = header[1]
        elif fields := re.match(
            r"([0-9a-f]{16})  [0-9a-f]+ (\S+) +(?:[0-9a-f]{16} (.*) ([+-]) )?([0-9a-f]+)$", line
        ):
            symbol = fields[3] or ""
            addend = int(fields[5], 16) * (-1 if fields[4] == "-" else 1)
            found.setdefault(section, []).append((int(fields[1], 16), fields[2], symbol, addend))
    return {name: sorted(items, key=lambda item: item[0]) for name, items in found.items()}


@pytest.mark.parametrize("name", COMPILERS)
def test_objects_read_as_other_readers_read_them(name: str, tmp_path: Path) -> None:
    compiled(name, "-O2", "-ffunction-sections", folder=tmp_path)
    elf = ELFFile(io.BytesIO((tmp_path / "unit.o").read_bytes()))
    table = elf.get_section_by_name(".symtab")
    functions = {s.name: s for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"}
    sizes = {symbol: entry["st_size"] for symbol, entry in functions.items()}
    assert objects.function_sizes(tmp_path / "unit.o") == sizes
    assert {"outer", "outermost", "fixed", "text"} <= set(sizes)
    codes = objects.ObjectFile((tmp_path / "unit.o").read_bytes()).codes([*sizes, "absent"])
    assert set(codes) == set(sizes)
    relocations = read_by_readelf(tmp_path / "unit.o")
    for symbol, entry in functions.items():
        section = elf.get_section(entry["st_shndx"])
        start, size = entry["st_value"], entry["st_size"]
        assert codes[symbol].data == section.data()[start : start + size]
        expected = [
            (o - start, *rest) for o, *rest in relocations.get(section.name, ()) if start <= o < start + size
        ]
        assert [tuple(relocation) for relocation in codes[symbol].relocations] == expected
    assert any(relocation.symbol == "other" for relocation in codes["outermost"].relocations)


def test_an_object_of_very_many_sections(tmp_path: Path) -> None:
    """Beyond 65,279 sections the numbers of sections lie elsewhere."""
    if not shutil.which("x86_64-linux-gnu-as"):
        pytest.skip("needs x86_64-linux-gnu-as")
    text = "".join(
        f'.section .text.f{i},"ax"\n.type f{i},@function\nf{i}:\n{"call g" if i == 65999 else "nop"}\n'
        f".size f{i},.-f{i}\n"
        for i in range(66000)
    )
    (tmp_path / "many.s").write_text(text)
    argv = ["x86_64-linux-gnu-as", "many.s", "-o", "many.o"]
    subprocess.run(argv, cwd=tmp_path, check=True, timeout=60)
    sizes = objects.function_sizes(tmp_path / "many.o")
    assert (len(sizes), sizes["f0"], sizes["f65999"]) == (66000, 1, 5)
    (code,) = objects.ObjectFile((tmp_path / "many.o").read_bytes()).codes(["f65999"]).values()
    assert code.data[:1] == b"\xe8"
    assert code.relocations == ((1, "R_X86_64_PLT32", "g", -4),)


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x01\x01" + bytes(80)])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a 64-bit little-endian ELF file"):
        objects.ObjectFile(content)


def test_an_object_as_a_member() -> None:
    code = objects.Code(b"\x00\xff", (objects.Relocation(1, "R_X", "f", -4),))
    assert json.loads(objects.object_member(code)) == {"code": "00ff", "relocations": [[1, "R_X", "f", -4]]}


def inlining(name: str, level: str, folder: Path, source: str | Path = UNIT) -> tuple[str, str]:
    """Assembly and report."""
    report = folder / "report.txt"
    flags = objects.inlining_flags(name.partition(".")[2], report)
    text, said = compiled(name, f"-{level}", *flags, folder=folder, source=source)
    if report.exists():
        said = report.read_text()
        report.unlink()
    return text, said


@pytest.mark.parametrize("name", COMPILERS)
def test_inlined_functions_are_listed(name: str, tmp_path: Path) -> None:
    for level in ("O2", "O3"):
        found = objects.inlined_functions(inlining(name, level, tmp_path)[1])
        assert found["outermost"][-1:] == ("outer",)
        assert "square" in found["outer"]
        assert "middle" in found["outer"]
        assert found["middle"] in (("always", "square"), ("always",))
        assert not {"repeated", "other", "cold"} & {name for names in found.values() for name in names}
    assert objects.inlined_functions(inlining(name, "O0", tmp_path)[1]) in ({}, {"middle": ("always",)})


@pytest.mark.parametrize("source", [UNIT, *sorted(TINY.glob("*.c"))], ids=["unit", "a", "b", "c"])
@pytest.mark.parametrize("name", COMPILERS)
def test_the_report_does_not_change_the_assembly(name: str, source: str | Path, tmp_path: Path) -> None:
    flags = () if isinstance(source, str) else (f"-I{TINY}", f"-I{TINY}/include")
    command = {**COMPILERS, name: [*COMPILERS[name], *flags]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMPILERS, name, command[name])
        for level in LEVELS:
            plain, _ = compiled(name, f"-{level}", folder=tmp_path, source=source)
            assert inlining(name, level, tmp_path, source)[0] == plain


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("u.c:4:39: optimized:   Inlining a/0 into b/2 (always_inline).\n", {"b": ("a",)}),
        ("u.c:1:1: optimized:  Inlined p.part.0/18 into h.isra.0/7 which now has time 47\n", {"h": ("p",)}),
        ("optimized:  Inlined p.part.0/18 into p/7 which now has time 47\n", {}),
        (" optimized:  Inlined p.part.0/18 into p/7 which now has time 47\n", {}),
        (" optimized:  Inlined f/1 into f/1 which now has time 47\n", {"f": ("f",)}),
        ("u.c:5:22: remark: 'm' inlined into 'f' with (cost=-14980, threshold=337)\n", {"f": ("m",)}),
        ("u.c:5:22: remark: 'm' not inlined into 'f' because\n", {}),
        ("", {}),
    ],
)
def test_inlining_reports(report: str, expected: dict[str, tuple[str, ...]]) -> None:
    assert objects.inlined_functions(report) == expected


def test_ir_of_each_function(tmp_path: Path) -> None:
    flags = ("-O2", "-emit-llvm", "-Xclang", "-disable-llvm-passes")
    if not shutil.which("clang-19"):
        pytest.skip("needs clang-19")
    (tmp_path / "unit.c").write_text(UNIT)
    argv = ["clang-19", *flags, "-S", "unit.c", "-o", "unit.ll"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    text = (tmp_path / "unit.ll").read_text()
    functions = objects.ll_functions(text)
    assert set(functions) == set(re.findall(r"^define .*@(\w+)\(", text, re.MULTILINE))
    assert {"always", "square", "middle", "outer", "outermost", "repeated", "fixed", "text"} == set(functions)
    for name, body in functions.items():
        assert body.startswith("define ")
        assert body.endswith("\n}\n")
        assert body.count("define ") == 1
        assert f"@{name}(" in body.splitlines()[0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", COMPILERS)
def test_lines_fit_the_instructions(name: str, level: str, tmp_path: Path) -> None:
    isa = name.partition(".")[0]
    plain, _ = compiled(name, f"-{level}", folder=tmp_path)
    debug, _ = compiled(name, f"-{level}", "-g1", folder=tmp_path)
    cleaned = {symbol: asm.clean(text, isa) for symbol, text in asm.split_symbols(plain).items()}
    lines = objects.source_lines(debug, isa)
    assert lines.keys() == cleaned.keys()
    source = UNIT.splitlines()
    for symbol, body in cleaned.items():
        assert len(lines[symbol]) == asm.num_instructions(body)
        assert {file for file, line in lines[symbol] if line} <= {str(tmp_path / "unit.c"), "unit.c"}
    instructions = [line for line in cleaned["outermost"].splitlines() if line[0] != "." and line[-1] != ":"]
    calls = [
        source[line - 1]
        for text, (_, line) in zip(instructions, lines["outermost"], strict=True)
        if re.search(r"^(call|bl|jmp|b|tail)\S* cold", text)
    ]
    assert calls == ["        cold(x);"]


def test_lines_name_files_from_the_folder_of_the_compiler() -> None:
    body = "\t.type\tf, @function\nf:\n\tnop\n\t.loc 1 3 1\n\tnop\n\t.loc 2 9\n\tret\n\t.size\tf, .-f\n"
    text = (
        f'\t.file "u.c"\n\t.file 0 "./sub" "u.c"\n\t.file 1 "../u.c"\n\t.file 2 "/usr/include" "x.h"\n{body}'
    )
    expected = [("", 0), ("u.c", 3), ("/usr/include/x.h", 9)]
    assert objects.source_lines(text, "x86_64") == {"f": expected}
    member = json.loads(objects.lines_member(expected))
    assert [(member["files"][place], line) for place, line in member["lines"]] == expected
