"""A function must read the same from its compiler's text as from its machine code."""

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from asmtrain.binary import functions_in
from asmtrain.errors import BinaryError

COMPILERS = {
    "aarch64-gcc": ("aarch64-linux-gnu-gcc",),
    "aarch64-clang": ("clang-19", "--target=aarch64-linux-gnu"),
    "x86_64-gcc": ("gcc",),
    "x86_64-clang": ("clang-19", "--target=x86_64-linux-gnu"),
}
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


@pytest.mark.parametrize("name", ["aarch64-gcc", "x86_64-gcc"])
def test_linked_files_read_nearly_as_their_objects(name: str, tmp_path: Path) -> None:
    """Linking relaxes and fills in some instructions for good; most functions must read as before."""
    binary = compiled(tmp_path, COMPILERS[name], "-O2", "-fPIC", "-c", "unit.c", "unit.o")
    linked = compiled(tmp_path, COMPILERS[name], "-O2", "-fPIC", "-shared", "-nostdlib", "unit.c", "unit.so")
    views = {function.name: function.view for function in functions_in(binary)}
    found = {function.name: function.view for function in functions_in(linked)}
    assert found.keys() == views.keys()
    same = [function for function in views if found[function] == views[function]]
    assert len(same) >= 0.9 * len(views)
    assert {"calls", "choose", "floats"} <= set(
        same
    )  # calls through the PLT, jump table, constants' addresses


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
