"""Assembler text: golden cases, what real compilers print, and properties that hold for any text.

A golden case is `tests/golden/asm/<isa>/<case>.s`, a compiler's text of one unit, beside `<case>.json`: for
each function its clean and its view text, line by line. To add one, drop in the `.s`, run
`python tests/corpus/test_asm.py PATH.s`, and read the `.json` that it writes.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpus_builder import asm

GOLDEN = Path(__file__).parents[1] / "golden" / "asm"
CASES = sorted(GOLDEN.glob("*/*.s"))
COMPILERS = {
    "aarch64.gcc": ("aarch64", ["aarch64-linux-gnu-gcc"]),
    "x86_64.gcc": ("x86_64", ["x86_64-linux-gnu-gcc"]),
    "aarch64.clang": ("aarch64", ["clang-19", "--target=aarch64-linux-gnu"]),
    "x86_64.clang": ("x86_64", ["clang-19", "--target=x86_64-linux-gnu"]),
    "riscv64.zig": ("riscv64", [sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=all"]),
}
UNIT = """
extern int other(int, const char *);
int shared = 1;
static int hidden(int x) { return x * 3 + shared++; }
int table(int x) {
    switch (x) {
    case 0: return other(1, "zero; #no // comment");
    case 1: return 22;
    case 2: return hidden(x);
    case 3: return shared;
    case 4: shared = 5; return 9;
    case 5: return other(x, "five");
    }
    return x * 7;
}
int tail(int x) { return other(x + 1, "tail"); }
int (*pointer(void))(int) { return hidden; }
void fill(int *a, int n) { for (int i = 0; i < n; i++) a[i] = i ^ 0x55; }
"""


def described(path: Path) -> dict[str, dict[str, list[str]]]:
    isa = path.parent.name
    return {
        symbol: {"clean": asm.clean(text, isa).splitlines(), "view": asm.view(text, isa).splitlines()}
        for symbol, text in asm.split_functions(path.read_bytes()).items()
    }


def compiled(name: str, *flags: str, folder: Path, source: str = UNIT) -> str:
    _, command = COMPILERS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    if name == "riscv64.zig":
        flags = (*flags, "-target", "riscv64-linux-gnu", "-g0")
    (folder / "unit.c").write_text(source)
    argv = [*command, "-w", *flags, "-S", "unit.c", "-o", "unit.s"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=120)
    return (folder / "unit.s").read_text()


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path) -> None:
    assert described(path) == json.loads(path.with_suffix(".json").read_text())


def test_golden_cases_cover_every_isa() -> None:
    assert {path.parent.name for path in CASES} == set(asm.ISAS)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_forms_are_stable(path: Path) -> None:
    isa = path.parent.name
    for text in asm.split_functions(path.read_text()).values():
        clean, view = asm.clean(text, isa), asm.view(text, isa)
        assert asm.clean(clean, isa) == clean
        assert asm.view(clean, isa) == view
        assert asm.view(view, isa) == view


@pytest.mark.parametrize("level", ["O0", "O2"])
@pytest.mark.parametrize("name", COMPILERS)
def test_what_compilers_print(name: str, level: str, tmp_path: Path) -> None:
    isa, _ = COMPILERS[name]
    functions = asm.split_functions(compiled(name, f"-{level}", folder=tmp_path))
    assert {"table", "tail", "pointer", "fill"} <= set(functions)
    for symbol, text in functions.items():
        clean, view = asm.clean(text, isa), asm.view(text, isa)
        assert clean.startswith(f"{symbol}:\n")
        assert not re.search(r"^\s*\.(?!L)|//|#|\t|  ", clean, re.MULTILINE)
        assert not re.search(r"\b(other|hidden|shared|tail|table)\b(?! CALL)", view)
        assert not re.search(r"\.L", view)
        assert set(re.findall(r"\bL\d+\b", view)) == set(re.findall(r"^(L\d+):", view, re.MULTILINE))
        assert asm.view(clean, isa) == view
    assert "CALL" in asm.view(functions["tail"], isa)


@pytest.mark.parametrize("name", COMPILERS)
def test_names_do_not_change_the_view(name: str, tmp_path: Path) -> None:
    isa, _ = COMPILERS[name]
    renamed = re.sub(r"\b(other|shared|hidden|table|tail|pointer|fill)\b", r"my_\1", UNIT)
    one = asm.split_functions(compiled(name, "-O1", folder=tmp_path))
    two = asm.split_functions(compiled(name, "-O1", folder=tmp_path, source=renamed))
    for symbol in ("table", "tail", "pointer", "fill"):
        assert asm.view_sha256(one[symbol], isa) == asm.view_sha256(two[f"my_{symbol}"], isa)
        assert asm.clean(one[symbol], isa) != asm.clean(two[f"my_{symbol}"], isa)


@pytest.mark.parametrize("name", ["aarch64.gcc", "aarch64.clang"])
def test_constants_change_the_view(name: str, tmp_path: Path) -> None:
    one = asm.split_functions(compiled(name, "-O1", folder=tmp_path))["fill"]
    source = UNIT.replace("0x55", "0x57")
    two = asm.split_functions(compiled(name, "-O1", folder=tmp_path, source=source))["fill"]
    assert asm.view_sha256(one, "aarch64") != asm.view_sha256(two, "aarch64")


def test_debug_information_does_not_change_the_forms(tmp_path: Path) -> None:
    plain = asm.split_functions(compiled("aarch64.gcc", "-O2", folder=tmp_path))
    debug = asm.split_functions(compiled("aarch64.gcc", "-O2", "-g", folder=tmp_path))
    assert plain.keys() == debug.keys()
    for symbol in plain:
        assert asm.clean(plain[symbol], "aarch64") == asm.clean(debug[symbol], "aarch64")


def test_clean_text_assembles(tmp_path: Path) -> None:
    """Nothing that the program needs is lost: the function's own labels and symbols still fit together."""
    text = asm.split_functions(compiled("aarch64.gcc", "-O2", folder=tmp_path))["fill"]
    (tmp_path / "fill.s").write_text(asm.clean(text, "aarch64"))
    argv = ["aarch64-linux-gnu-gcc", "-c", "fill.s", "-o", "fill.o"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("symbol", "origin"),
    [
        *(("f", "f"), ("f.isra.0", "f"), ("f.part.0.cold", "f"), ("f.constprop.1", "f")),
        *(("f.lto_priv.0", "f"), ("f.cold", "f"), ("_f_2", "_f_2")),
    ],
)
def test_origin_of_clones(symbol: str, origin: str) -> None:
    assert asm.origin(symbol) == origin


def test_clones_cold_parts_and_aliases_are_not_functions(tmp_path: Path) -> None:
    source = (GOLDEN / "x86_64" / "cold_and_clones.gcc.o3.s").read_text()
    assert "\t.type\tchecked.cold, @function" in source
    assert "\t.type\tscale.constprop.0, @function" in source
    assert set(asm.split_functions(source)) == {"slow", "use", "checked"}
    aliased = 'int real(int x) { return x; }\nint other(int) __attribute__((alias("real")));\n'
    for name in ("x86_64.gcc", "x86_64.clang"):
        assert set(asm.split_functions(compiled(name, "-O1", folder=tmp_path, source=aliased))) == {"real"}


def test_clones_are_joined_to_their_origin() -> None:
    symbols = asm.split_symbols((GOLDEN / "x86_64" / "cold_and_clones.gcc.o3.s").read_text())
    clones = [symbol for symbol in symbols if symbol.startswith("scale.")]
    assert sorted(clones) == ["scale.constprop.0", "scale.constprop.1"]
    joined = asm.join_clones(symbols)
    assert set(joined) == {"slow", "scale", "use", "checked"}
    assert joined["scale"] == (clones[0], symbols[clones[0]], {clones[1]: symbols[clones[1]]})
    assert joined["use"] == ("use", symbols["use"], {})


@pytest.mark.parametrize(
    ("symbols", "main", "clones"),
    [
        (["f.part.0", "f"], "f", ["f.part.0"]),
        (["f.part.0", "f.isra.0", "f.constprop.1"], "f.isra.0", ["f.part.0", "f.constprop.1"]),
        (["f.part.0"], "f.part.0", []),
    ],
)
def test_what_stands_for_a_function(symbols: list[str], main: str, clones: list[str]) -> None:
    (emitted,) = asm.join_clones({symbol: f"text of {symbol}" for symbol in symbols}).values()
    assert (emitted.symbol, emitted.text, list(emitted.clones)) == (main, f"text of {main}", clones)


def test_a_cold_part_belongs_to_the_clean_text_alone() -> None:
    text = asm.split_functions((GOLDEN / "x86_64" / "cold_and_clones.gcc.o3.s").read_text())["checked"]
    assert "checked.cold:" in asm.clean(text, "x86_64")
    assert "call fatal" in asm.clean(text, "x86_64")
    assert "call CALL" not in asm.view(text, "x86_64")
    assert re.search(r"^j\w+ CALL$", asm.view(text, "x86_64"), re.MULTILINE)


@pytest.mark.parametrize(
    ("isa", "spellings"),
    [
        ("aarch64", ["beq L0\nL0:\nret", "b.eq #.L7\n.L7:\nret"]),
        ("aarch64", ["add x0, x0, #4096", "add x0, x0, 1, lsl 12"]),
        ("aarch64", ["ldr x0, [x1, -8]", "ldur x0, [x1, #-0x8]"]),
        ("aarch64", ["fmov s3, 5.0e-1", "fmov s3, #0.50000000"]),
        ("aarch64", ["csel w0, w1, w2, cs", "csel w0,w1,w2,hs // comment"]),
        ("aarch64", ["and w0, w1, -2", "and w0, w1, #0xfffffffe"]),
        ("aarch64", ["ldr x0, [x0, #:lo12:name+8]", "ldr x0, [x0, :lo12:.LANCHOR0]"]),
        ("aarch64", ["mrs x0, tpidr_el0", "mrs x0, TPIDR_EL0"]),
        ("x86_64", ["callq f", "call g@PLT # tail"]),
        ("x86_64", ["sall $2, %eax", "shll $0x2,%eax"]),
        ("x86_64", ["jnb .L2\n.L2:\nret", "jae .L3\n.L3:\nretq"]),
        ("x86_64", ["cmovnel %eax, %ebx", "cmovne %eax, %ebx"]),
        ("x86_64", ["leal 0(,%rbx,8), %eax", "leal (,%rbx,8), %eax"]),
        ("x86_64", ["leaq 4+glob(%rip), %rax", "leaq glob+4(%rip), %rax", "leaq x@GOTPCREL(%rip), %rax"]),
        ("x86_64", ["movl $-1, %eax", "movl $0xffffffff, %eax"]),
        ("x86_64", ["movq -16(%rbp), %rax", "movq -0x10(%rbp), %rax"]),
        ("riscv64", ["lw a0,0(a1)", "lw a0, 0(a1)"]),
        ("riscv64", ["lui a0, %hi(one)", "lui a0, %hi(two+4)"]),
    ],
)
def test_one_spelling(isa: str, spellings: list[str]) -> None:
    assert len({asm.view(spelling, isa) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("isa", "one", "other"),
    [
        ("aarch64", "cmp x0, x1, lsl 12", "cmp x0, 4096"),
        ("aarch64", "mov w0, 1", "mov x0, 1"),
        ("aarch64", "blr x1", "bl f"),
        ("x86_64", "call *%rax", "call f"),
        ("x86_64", "movl $1, %eax", "movl 1, %eax"),
        ("x86_64", "cmovl %eax, %ebx", "cmovb %eax, %ebx"),
        ("x86_64", "jmp *f(%rip)", "jmp f"),
    ],
)
def test_different_instructions_stay_different(isa: str, one: str, other: str) -> None:
    assert asm.view(one, isa) != asm.view(other, isa)


def test_symbols_that_look_like_labels_are_not_taken_for_them() -> None:
    text = "\t.type\tf, %function\nf:\n\tbl\tL0\n.L2:\n\tb\t.L2\n\t.size\tf, .-f\n"
    assert asm.clean(text, "aarch64") == "f:\nbl L0\nL1:\nb L1\n"
    assert asm.view(text, "aarch64") == "bl CALL\nL0:\nb L0\n"


def test_an_unknown_isa_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown ISA 'mips'"):
        asm.clean("nop", "mips")


def test_number_of_instructions() -> None:
    assert asm.num_instructions("f:\nnop\nL0:\nb L0\n") == 2
    assert asm.num_instructions("") == 0


# Properties.

REGISTERS = {
    "aarch64": ["x0", "w1", "sp", "xzr", "v0.4s", "d3"],
    "x86_64": ["%rax", "%edi", "%xmm0", "%r8d"],
    "riscv64": ["a0", "sp", "fa5", "zero"],
}
LABELS = [".L1", ".L2", ".LBB0_3", ".Ltmp4", ".LFB5", "L6", "1", "2"]
SYMBOLS = ["puts", "L0", "L1", ".LC0", "a.b", "x$y", "name"]


def _instructions(isa: str) -> st.SearchStrategy[str]:
    targets = st.sampled_from([*LABELS[:6], *SYMBOLS, "1f", "2b"])
    jump = {"aarch64": ["b", "beq", "bl", "cbz x0,"], "x86_64": ["jmp", "jne", "call"]}.get(
        isa, ["j", "call"]
    )
    load = {
        "aarch64": ["adrp x0, {}", "add x0, x0, #:lo12:{}+8", "ldr w0, [x1, :lo12:{}]", "adr x0, {}"],
        "x86_64": ["leaq {}(%rip), %rax", "movl $4, {}+4(%rip)", "movq ${}, %rdi", "jmp *{}(,%rax,8)"],
        "riscv64": ["lui a0, %hi({})", "la a0, {}", "lw a0, %pcrel_lo({})(a0)"],
    }[isa]
    number = st.integers(-(2**40), 2**40).map(str) | st.integers(0, 2**64 - 1).map(hex)
    sign = {"aarch64": "#", "x86_64": "$", "riscv64": ""}[isa]
    registers = st.sampled_from(REGISTERS[isa])
    return st.one_of(
        st.builds("{} {}".format, st.sampled_from(jump), targets),
        st.builds(lambda form, name: form.format(name), st.sampled_from(load), targets),
        st.builds(lambda a, b: f"add\t{a} , {b}", registers, registers),
        st.builds(
            lambda a, n: f"mov {a},{sign}{n}" if isa != "x86_64" else f"movq {sign}{n}, {a}",
            registers,
            number,
        ),
        st.sampled_from(["ret", "nop; nop", "/* a\n b */ ret", '.section .rodata\n.string "a;b"\n.text']),
    )


@st.composite
def functions(draw: st.DrawFn) -> tuple[str, str]:
    isa = draw(st.sampled_from(asm.ISAS))
    lines = draw(st.lists(_instructions(isa) | st.sampled_from(LABELS).map("{}:".format), max_size=12))
    name = draw(st.sampled_from(["f", "main", "x_1"]))
    return isa, f"\t.type\t{name}, @function\n{name}:\n" + "\n".join(lines) + f"\n\t.size\t{name}, .-{name}\n"


@settings(deadline=None)
@given(functions())
@example(("aarch64", "\t.type\tf, %function\nf:\n.L1:\nb .L1\n.L1:\n\t.size\tf, .-f\n"))
def test_forms_are_stable_for_any_function(function: tuple[str, str]) -> None:
    isa, text = function
    clean, view = asm.clean(text, isa), asm.view(text, isa)
    assert asm.clean(clean, isa) == clean
    assert asm.view(clean, isa) == view
    assert asm.view(view, isa) == view
    assert set(asm.split_functions(text)) == {text.split("\t")[2].partition(",")[0]}


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8")), st.sampled_from(asm.ISAS))
def test_any_text_is_read(text: str, isa: str) -> None:
    asm.view(text, isa)
    asm.clean(text, isa)
    asm.split_functions(text.encode())


@settings(deadline=None)
@given(st.lists(st.sampled_from(["f", "g", "h", "k"]), unique=True), st.text(st.sampled_from("ab\n\t")))
def test_splitting_finds_each_function(names: list[str], filling: str) -> None:
    text = "".join(
        f"\t.text\n\t.type\t{name}, @function\n{name}:\n{filling}\n\t.size\t{name}, .-{name}\n"
        for name in names
    )
    functions = asm.split_functions(text)
    assert list(functions) == names
    assert all(filling in functions[name] for name in names)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        path = Path(argument).resolve()
        path.with_suffix(".json").write_text(json.dumps(described(path), indent=1) + "\n")
