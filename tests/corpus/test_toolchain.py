"""Which compilers a name stands for, and what is said when one is missing; asked of real compilers."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus_builder.errors import ConfigError, ToolchainError
from corpus_builder.probe import load_toolchains, resolve
from corpus_builder.record import Command
from corpus_builder.toolchain import Toolchain

SHIPPED = Path(__file__).parents[2] / "configs" / "toolchains.yaml"


def script(path: Path, text: str) -> Path:
    """An executable that stands where a compiler is expected."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def entry(family: str, command: str, versions: str = "[12]", isa: str = "aarch64", **extra: str) -> str:
    lines = [
        f"  - isa: {isa}",
        f"    family: {family}",
        f"    versions: {versions}",
        f"    triple: {isa}-linux-gnu",
        f"    commands: ['{command}']",
        f"    apt: '{family}-{{version}}-cross'",
        f"    apt_native: '{family}-{{version}}'",
        *(f"    {key}: {value}" for key, value in extra.items()),
    ]
    return "\n".join(lines) + "\n"


def toolchain_file(folder: Path, *entries: str) -> Path:
    path = folder / "toolchains.yaml"
    path.write_text("toolchains:\n" + "".join(entries))
    return path


def test_the_shipped_file_covers_every_family_for_every_instruction_set() -> None:
    entries = load_toolchains(SHIPPED).toolchains
    assert {(entry.isa, entry.family) for entry in entries} == {
        (isa, family) for isa in ("aarch64", "x86_64", "riscv64") for family in ("gcc", "clang", "zig")
    }
    promised = {"gcc": {12, 13, 14}, "clang": {14, 15, 16, 17, 18, 19}, "zig": set()}
    for one in entries:
        assert promised[one.family] <= set(one.versions)
        assert one.family == "zig" or (one.packages(14).count("14"), one.packages(None).count("14")) == (1, 0)


@pytest.mark.parametrize("isa", ["aarch64", "x86_64"])
def test_a_family_is_its_first_installed_version(need: Callable[..., None], isa: str) -> None:
    need(f"{isa}-linux-gnu-gcc")
    (gcc,), notes = resolve([f"{isa}.gcc"], SHIPPED)
    major = subprocess.check_output([gcc.command[0], "-dumpversion"], text=True).strip().partition(".")[0]
    assert gcc.id == f"{isa}.gcc{major}"
    said = subprocess.check_output([gcc.command[0], "--version"], text=True)
    assert gcc.version == said.splitlines()[0]
    assert gcc.emulator[0] == f"qemu-{isa}"
    assert notes == []


def test_asking_twice_for_the_same_compiler_gives_it_once(need: Callable[..., None]) -> None:
    need("aarch64-linux-gnu-gcc")
    (gcc,), _ = resolve(["aarch64.gcc"], SHIPPED)
    assert resolve(["aarch64.gcc", gcc.id], SHIPPED) == ([gcc], [])


def test_a_missing_exact_toolchain_names_the_package(tmp_path: Path) -> None:
    file = toolchain_file(tmp_path, entry("gcc", "no-such-gcc-{version}"))
    with pytest.raises(ToolchainError, match=r"aarch64\.gcc12 cannot be used: no command") as caught:
        resolve(["aarch64.gcc12"], file)
    assert caught.value.remedy.startswith("apt-get install gcc-12")


def test_nothing_installed_at_all_names_every_package(tmp_path: Path) -> None:
    file = toolchain_file(tmp_path, entry("gcc", "no-such-gcc"), entry("clang", "no-such-clang"))
    with pytest.raises(ToolchainError, match=r"no toolchain of aarch64\.gcc, aarch64\.clang") as caught:
        resolve(["aarch64.gcc", "aarch64.clang"], file)
    assert "gcc" in caught.value.remedy
    assert "clang" in caught.value.remedy


def test_a_missing_family_is_left_out_with_a_note(tmp_path: Path, need: Callable[..., None]) -> None:
    need("x86_64-linux-gnu-gcc")
    versions = "[12, 13, 14, 15, 11]"
    file = toolchain_file(
        tmp_path,
        entry("gcc", "no-such-gcc"),
        entry("gcc", "x86_64-linux-gnu-gcc", versions, isa="x86_64"),
    )
    toolchains, notes = resolve(["aarch64.gcc", "x86_64.gcc"], file)
    assert [toolchain.isa for toolchain in toolchains] == ["x86_64"]
    (note,) = notes
    assert note.startswith("aarch64.gcc is left out: no command of it is installed (apt-get install gcc")


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    file = toolchain_file(tmp_path, entry("gcc", "gcc"))
    for name in ("aarch64.icc", "mips.gcc", "gcc", "aarch64.gcc99"):
        with pytest.raises(ToolchainError, match=f"no toolchain '{name}'") as caught:
            resolve([name], file)
        assert "aarch64.gcc12" in caught.value.remedy


def test_a_mistake_in_the_file_is_a_config_error(tmp_path: Path) -> None:
    file = toolchain_file(tmp_path, entry("gcc", "gcc", flag="[-g]"))
    with pytest.raises(ConfigError, match="did you mean 'flags'"):
        resolve(["aarch64.gcc"], file)


def test_clang_falls_back_to_zig_and_is_labelled_so(tmp_path: Path) -> None:
    (clang, zig) = (
        entry("clang", "no-such-clang", "[19]"),
        entry("zig", "ziglang cc", "[]", flags="[-g0, -fno-sanitize=all]"),
    )
    (toolchain,), (note,) = resolve(["aarch64.clang"], toolchain_file(tmp_path, clang, zig))
    assert toolchain.family == "zig"
    assert toolchain.version.startswith(f"clang version {toolchain.compiler.removeprefix('zig')}.")
    assert note.startswith(f"aarch64.clang falls back to {toolchain.id}: no command of it is installed")
    with pytest.raises(ToolchainError, match="clang19 cannot be used"):
        resolve(["aarch64.clang19"], toolchain_file(tmp_path, clang, zig))


def test_a_compiler_that_does_not_work_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    broken = script(
        tmp_path / "broken-clang",
        "case $1 in --version) echo 'clang version 19.1.7'; exit 0;; esac\n"
        "echo 'fatal error: no stdio.h' >&2; exit 1",
    )
    file = toolchain_file(tmp_path, entry("clang", str(broken), "[19]"))
    with pytest.raises(ToolchainError, match=r"broken-clang does not compile for aarch64: .*no stdio\.h"):
        resolve(["aarch64.clang"], file)


@pytest.mark.parametrize(
    ("version_line", "machine"),
    [("gcc (Debian 12.2.0-14) 11.2.0", "aarch64-linux-gnu"), ("gcc (GCC) 12.2.0", "x86_64-linux-gnu")],
    ids=["another version", "another target"],
)
def test_a_plain_gcc_must_have_the_right_version_and_target(
    tmp_path: Path, version_line: str, machine: str
) -> None:
    said = f"case $1 in --version) echo '{version_line}';; -dumpmachine) echo {machine};; esac; exit 0"
    gcc = script(tmp_path / "gcc", said)
    with pytest.raises(ToolchainError, match="no command of it is installed"):
        resolve(["aarch64.gcc12"], toolchain_file(tmp_path, entry("gcc", str(gcc))))


def test_arguments_kept_in_records_name_no_folder(tmp_path: Path) -> None:
    toolchain = Toolchain(
        isa="aarch64",
        family="clang",
        compiler="clang19",
        command=("clang-19",),
        target=("--target=aarch64-linux-gnu",),
        flags=("-ffile-prefix-map={root}=.",),
        version="clang version 19.1.7",
    )
    command = Command(tmp_path, "a", "b.c", ("-Iinclude", "-DX=1", "-I{root}/gen"))
    kept = toolchain.arguments(command, "Os")
    assert kept == (
        "--target=aarch64-linux-gnu",
        "-ffile-prefix-map=.=.",
        "-Iinclude",
        "-DX=1",
        "-I./gen",
        "-Os",
    )
    assert toolchain.compile_argv(command, "Os", "text.i", "o.s")[-6:] == [
        *("-x", "cpp-output", "-S", "-o", "o.s", "text.i")
    ]
    assert f"-ffile-prefix-map={tmp_path}=." in toolchain.preprocess_argv(command, "Os")
