"""A function must read the same from its compiler's text as from its machine code."""

import itertools
import random
import shutil
import subprocess
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from asmtrain.binary import Share, functions_in
from asmtrain.errors import BinaryError
from functions import c_functions, write_unit

COMPILERS = {
    "aarch64-gcc": ("aarch64-linux-gnu-gcc",),
    "aarch64-clang": ("clang-19", "--target=aarch64-linux-gnu"),
    "x86_64-gcc": ("gcc",),
    "x86_64-clang": ("clang-19", "--target=x86_64-linux-gnu"),
    "riscv64-clang": ("clang-19", "--target=riscv64-linux-gnu", "-march=rv64gc"),
}
RISCV_GCC = ("riscv64-linux-gnu-gcc",)
LEVELS = ("O0", "O1", "O2", "O3", "Os")

SOURCE = (Path(__file__).parent / "references.c").read_text()


def compiled(folder: Path, command: tuple[str, ...], *arguments: str) -> Path:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    (folder / "unit.c").write_text(SOURCE)
    output = folder / arguments[-1]
    subprocess.run([*command, "-w", *arguments[:-1], "-o", output], cwd=folder, check=True, timeout=60)
    return output


@pytest.mark.parametrize(("name", "level"), list(itertools.product(COMPILERS, LEVELS)))
def test_object_files_read_as_their_assembler_text(name: str, level: str, tmp_path: Path) -> None:
    text = compiled(tmp_path, COMPILERS[name], f"-{level}", "-S", "unit.c", "unit.s")
    binary = compiled(tmp_path, COMPILERS[name], "-c", "unit.s", "unit.o")
    from_text, from_binary = functions_in(text), functions_in(binary)
    assert {function.isa for function in from_text + from_binary} == {name.partition("-")[0]}
    views = {function.name: function.view for function in from_binary}
    assert {function.name for function in from_text} == views.keys()
    assert len(views) == 19
    differing = [function.name for function in from_text if views[function.name] != function.view]
    assert differing == []


@pytest.mark.parametrize("level", LEVELS)
def test_riscv_of_gcc_reads_nearly_as_its_text(level: str, tmp_path: Path) -> None:
    """The bytes leave gcc's order of operands open; nine lines in ten must read as gcc wrote them."""
    text = compiled(tmp_path, RISCV_GCC, f"-{level}", "-S", "unit.c", "unit.s")
    binary = compiled(tmp_path, RISCV_GCC, "-c", "unit.s", "unit.o")
    from_text = {function.name: function.view for function in functions_in(text)}
    from_binary = {function.name: function.view for function in functions_in(binary)}
    assert from_text.keys() == from_binary.keys()
    shared = total = 0
    for name, view in from_text.items():
        lines, others = view.splitlines(), from_binary[name].splitlines()
        blocks = SequenceMatcher(None, lines, others, autojunk=False).get_matching_blocks()
        shared += sum(block.size for block in blocks)
        total += max(len(lines), len(others))
    assert shared >= 0.9 * total
    assert from_text["nothing"] == from_binary["nothing"]


LINKERS = {isa: f"{isa}-linux-gnu" for isa in ("aarch64", "x86_64", "riscv64")}


@pytest.mark.parametrize("isa", LINKERS)
def test_stripped_linked_files_read_nearly_as_their_text(isa: str, tmp_path: Path) -> None:
    """Linking relaxes and fills in some instructions for good; most functions must read as before."""
    front = RISCV_GCC if isa == "riscv64" else COMPILERS[f"{isa}-gcc"]
    text = compiled(tmp_path, front, "-O2", "-fPIC", "-fasynchronous-unwind-tables", "-S", "unit.c", "unit.s")
    linked = compiled(tmp_path, front, "-shared", "-Wl,--unresolved-symbols=ignore-all", "unit.s", "unit.so")
    named = {f.address: f.name for f in functions_in(linked) if not f.name.startswith("__")}  # libgcc's
    subprocess.run([f"{LINKERS[isa]}-strip", "--strip-all", linked], check=True)
    stripped = functions_in(linked)
    views = {function.name: function.view for function in functions_in(text)}
    assert named.keys() == {function.address for function in stripped}
    hidden = [function for function in stripped if function.name.startswith("sub_")]
    assert [function.name for function in hidden] == [f"sub_{function.address:x}" for function in hidden]
    assert len(hidden) == 1  # `local`; the others are exported
    same = {named[f.address] for f in stripped if f.view == views[named[f.address]]}
    assert len(same) >= (0.4 if isa == "riscv64" else 0.9) * len(views)
    if isa != "riscv64":  # calls through the PLT, jump table, constants' addresses
        assert {"calls", "choose", "floats"} <= same


@pytest.mark.parametrize("isa", LINKERS)
def test_functions_of_stripped_code_without_tables_are_found(isa: str, tmp_path: Path) -> None:
    front = RISCV_GCC if isa == "riscv64" else COMPILERS[f"{isa}-gcc"]
    write_unit(tmp_path / "many.c", c_functions("many", 60, seed=3))
    without = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    options = ("-fPIC", "-fvisibility=hidden", *without, "-shared", "-Wl,--unresolved-symbols=ignore-all")
    linked = compiled(tmp_path, front, "-O2", *options, "many.c", "many.so")
    named = {function.address: function.size for function in functions_in(linked)}
    subprocess.run([f"{LINKERS[isa]}-strip", "--strip-all", linked], check=True)
    found = {function.address: function.size for function in functions_in(linked)}
    assert len(named.keys() & found.keys()) >= 0.95 * len(named) >= 57
    assert len(found.keys() - named.keys()) <= 3
    exact = [address for address in named if abs(found.get(address, 0) - named[address]) < 4]
    assert len(exact) >= 0.95 * len(named)


def test_a_file_without_section_headers_is_read_by_its_segments(tmp_path: Path) -> None:
    linked = compiled(
        tmp_path, COMPILERS["x86_64-gcc"], "-O2", "-fPIC", "-shared", "-nostdlib", "unit.c", "unit.so"
    )
    named = {function.address: function.view for function in functions_in(linked)}
    content = bytearray(linked.read_bytes())
    content[40:48] = bytes(8)  # e_shoff
    content[60:64] = bytes(4)  # e_shnum, e_shstrndx
    linked.write_bytes(content)
    assert {function.address: function.view for function in functions_in(linked)}.items() >= named.items()


def test_cold_parts_are_no_functions_of_a_stripped_file(tmp_path: Path) -> None:
    """Their unwind rules take over the frame of their function, whether they have a name or not."""
    (tmp_path / "cold.s").write_text(COLD)
    options = ["-shared", "-nostdlib", "-Wl,--unresolved-symbols=ignore-all"]
    compiled(tmp_path, COMPILERS["x86_64-gcc"], *options, "cold.s", "cold.so")
    subprocess.run(["strip", "cold.so"], cwd=tmp_path, check=True)
    (hot, local) = functions_in(tmp_path / "cold.so")
    assert hot.name == "hot"
    assert hot.view.splitlines()[1:] == ["cmpl $9, %edi", "ja CALL", "popq %rbx", "ret"]
    assert local.view == "xorl %eax, %eax\nret\n"


COLD = """
\t.text
\t.globl hot
\t.type hot, @function
hot:
\t.cfi_startproc
\tpushq %rbx
\t.cfi_def_cfa_offset 16
\t.cfi_offset 3, -16
\tcmpl $9, %edi
\tja hot.cold
.Lback:
\tpopq %rbx
\t.cfi_def_cfa_offset 8
\tret
\t.cfi_endproc
\t.size hot, .-hot
\t.type local, @function
local:
\t.cfi_startproc
\txorl %eax, %eax
\tret
\t.cfi_endproc
\t.size local, .-local
\t.section .text.unlikely, "ax", @progbits
\t.type hot.cold, @function
hot.cold:
\t.cfi_startproc
\t.cfi_def_cfa_offset 16
\t.cfi_offset 3, -16
\tmovl $1, %ebx
\tjmp .Lback
\t.cfi_endproc
\t.size hot.cold, .-hot.cold
"""


@pytest.mark.parametrize("tool", ["ar", "llvm-ar"])
def test_archives_give_the_functions_of_their_members(tool: str, tmp_path: Path) -> None:
    """GNU's and BSD's archives: long names, names with spaces, members that are no code."""
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    binary = compiled(tmp_path, COMPILERS["x86_64-gcc"], "-O1", "-c", "unit.c", "unit.o")
    names = ["unit.o", "a name longer than sixteen letters.o"]
    shutil.copy(binary, tmp_path / names[1])
    (tmp_path / "notes.txt").write_text("no code")
    form = ["--format=bsd"] if tool.startswith("llvm") else []
    command = [tool, *form, "rcs", "lib.a", *names, "notes.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    alone = functions_in(binary)
    functions = functions_in(tmp_path / "lib.a")
    for name in names:
        assert [replace(each, member="") for each in functions if each.member == name] == alone
    assert len(functions) == 2 * len(alone)


def test_a_thin_archive_is_refused(tmp_path: Path) -> None:
    compiled(tmp_path, COMPILERS["x86_64-gcc"], "-O1", "-c", "unit.c", "unit.o")
    subprocess.run(["ar", "rcT", "thin.a", "unit.o"], cwd=tmp_path, check=True)
    with pytest.raises(BinaryError, match="thin archive"):
        functions_in(tmp_path / "thin.a")


def test_shares_of_a_file_make_up_the_whole(tmp_path: Path) -> None:
    binary = compiled(tmp_path, COMPILERS["x86_64-gcc"], "-O1", "-c", "unit.c", "unit.o")
    parts = [functions_in(binary, share=Share(number, 3)) for number in range(3)]
    assert [*itertools.chain(*parts)] == functions_in(binary)
    assert all(parts)


def test_functions_come_in_the_files_order_under_their_names(tmp_path: Path) -> None:
    binary = compiled(tmp_path, COMPILERS["x86_64-gcc"], "-O0", "-c", "unit.c", "unit.o")
    names = [function.name for function in functions_in(binary)]
    assert names[:4] == ["local", "calls", "tail", "globals"]


def test_one_cleaned_function_needs_no_type_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.s"
    path.write_text("mine:\nsub sp, sp, 16\nstr w0, [sp, 12]\nret\n")
    (function,) = functions_in(path)
    assert (function.name, function.isa) == ("mine", "aarch64")
    assert function.view == "sub sp, sp, 16\nstr w0, [sp, 12]\nret\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.s", None, "cannot read"),
        ("empty.s", b"", "is empty"),
        ("prose.s", b"once upon a time\n", "names none of their registers"),
        ("bytes.o", b"\x00\x01\x02", "neither an ELF file nor assembler text"),
        ("header.o", b"\x7fELF", "damaged ELF file"),
        ("open.s", b"\t.type\tf, @function\n\tmovq %rax, %rbx\n" * 100_000, "never ends them"),
        ("comment.s", b"\tmovq %rax, %rbx /*\n" * 100_000, "never ends them"),
        ("data.s", b"\t.data\nx:\t.quad %rax\n", "holds no function"),
    ],
)
def test_bad_files_are_told_in_one_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BinaryError, match=message):
        functions_in(tmp_path / name)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    binary = compiled(tmp_path, COMPILERS["x86_64-gcc"], "-c", "unit.c", "unit.o")
    content = bytearray(binary.read_bytes())
    content[18:20] = (8).to_bytes(2, "little")  # EM_MIPS
    binary.write_bytes(content)
    with pytest.raises(BinaryError, match="EM_MIPS"):
        functions_in(binary)


def test_damaged_elf_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    whole = compiled(tmp_path, COMPILERS["x86_64-gcc"], "-O1", "-c", "unit.c", "unit.o").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.o"
    refused = 0
    for _ in range(60):
        content = bytearray(whole[: rng.randrange(16, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(8)):
            content[rng.randrange(4, min(len(content), 64))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            functions_in(path)
        except BinaryError:
            refused += 1
    assert refused > 20
