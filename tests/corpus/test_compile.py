"""Units through real compilers, and through scripts that fail as compilers do."""

from dataclasses import replace
from pathlib import Path

import pytest

from compilers import LIMITS, a_unit, compile_levels, installed, misbehaving
from corpus_builder.compile import CompiledUnit, preprocess_unit
from corpus_builder.errors import OutputError, ToolchainError
from corpus_builder.objects import ObjectFile
from corpus_builder.process import Limits
from corpus_builder.record import Failure, Unit
from corpus_builder.toolchain import Toolchain

SOURCE = """\
#include <stdio.h>
#include "scale.h"
static int twice(int x) { return SCALE * x; }
int sum(const int *v, int n) { int s = 0; for (int i = 0; i < n; i++) s += twice(v[i]); return s; }
void say(const char *text) { printf("%s %s\\n", __FILE__, text); }
"""


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "include").mkdir()
    (root / "src/sum.c").write_text(SOURCE)
    (root / "include/scale.h").write_text("#define SCALE 2\n")
    return a_unit(root, "src/sum.c", ("-Iinclude", "-std=gnu11"))


def root_of(unit: Unit) -> Path:
    return unit.commands["x86_64"].root


def sizes(compiled: CompiledUnit) -> dict[str, int]:
    return ObjectFile(compiled.object).function_sizes()


def only_failure(unit: Unit, toolchain: Toolchain, limits: Limits = LIMITS) -> Failure:
    compiled, (failure,) = compile_levels(unit, toolchain, ["O2"], limits=limits)
    assert compiled == []
    assert failure.unit == "demo/src/sum.c"
    assert failure.variant == f"{toolchain.id}.o2"
    return failure


@pytest.mark.parametrize(
    "name", ["aarch64.gcc", "aarch64.clang", "x86_64.gcc", "x86_64.clang", "aarch64.zig"]
)
def test_every_level_gives_text_and_the_sizes_of_its_object(unit: Unit, name: str, tmp_path: Path) -> None:
    (toolchain,) = installed(name)
    levels = ["O0", "O2", "Os"]
    compiled, failures = compile_levels(unit, toolchain, levels, limits=LIMITS)
    assert failures == []
    assert [str(one.variant) for one in compiled] == [f"{toolchain.id}.{level.lower()}" for level in levels]
    assert set(sizes(compiled[0])) == {"twice", "sum", "say"}
    assert all(size > 0 for size in sizes(compiled[0]).values())
    assert "twice" not in sizes(compiled[1])  # inlined away
    assert len({one.assembly for one in compiled}) == 3
    for one, level in zip(compiled, levels, strict=True):
        assert one.flags[-3:] == ("-Iinclude", "-std=gnu11", f"-{level}")
        assert str(tmp_path).encode() not in one.assembly
        assert b'"src/sum.c"' in one.assembly  # __FILE__, relative


def test_nothing_is_left_behind_and_the_project_is_not_written(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = sorted(root_of(unit).rglob("*"))
    for toolchain in installed("aarch64.gcc", "x86_64.clang"):
        compile_levels(unit, toolchain, ["O1"], limits=LIMITS)
    assert sorted(root_of(unit).rglob("*")) == before
    assert list(scratch.iterdir()) == []


def test_the_users_environment_does_not_reach_the_compiler(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gcc,) = installed("x86_64.gcc")
    (expected,), _ = compile_levels(unit, gcc, ["O2"], limits=LIMITS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "stdio.h").write_text("#error not this one\n")
    monkeypatch.setenv("CPATH", str(other))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert compile_levels(unit, gcc, ["O2"], limits=LIMITS) == ([expected], [])


def test_warnings_made_errors_do_not_lose_a_unit(unit: Unit) -> None:
    (gcc,) = installed("x86_64.gcc")
    strict = a_unit(root_of(unit), "src/sum.c", ("-Iinclude", "-Wall", "-Wextra", "-Wunused", "-Werror"))
    (root_of(unit) / "src/sum.c").write_text(SOURCE + "static void unused(void) {}\n")
    assert compile_levels(strict, gcc, ["O2"], limits=LIMITS)[1] == []


@pytest.mark.parametrize("name", ["aarch64.gcc", "aarch64.clang"])
def test_c_that_does_not_compile_is_an_error_row_that_names_no_folder(
    unit: Unit, name: str, tmp_path: Path
) -> None:
    (root_of(unit) / "src/sum.c").write_text("int f(void) { return missing; }\n")
    (toolchain,) = installed(name)
    failure = only_failure(unit, toolchain)
    assert (failure.stage, failure.cause, failure.exit) == ("compile", "error", 1)
    assert "'missing'" in failure.tail
    assert str(tmp_path) not in failure.tail + failure.command
    assert "/tmp" not in failure.command
    assert failure.command.endswith(" -S -o $TMP/unit.s O2.i")


def test_a_missing_header_fails_preprocessing_too(unit: Unit) -> None:
    (root_of(unit) / "src/sum.c").write_text('#include "nowhere.h"\n')
    (gcc,) = installed("aarch64.gcc")
    failure = preprocess_unit(unit, gcc, "O2", limits=LIMITS)
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.cause, failure.variant) == ("preprocess", "error", gcc.id)
    assert "nowhere.h" in failure.tail


def test_preprocessed_text_keeps_line_markers(unit: Unit) -> None:
    (gcc,) = installed("aarch64.gcc")
    text = preprocess_unit(unit, gcc, "O2", limits=LIMITS, expand=True)
    assert isinstance(text, bytes)
    assert b'"src/sum.c"' in text
    assert b"return 2 * x" in text


def test_text_that_does_not_assemble_is_an_assemble_row(unit: Unit) -> None:
    (root_of(unit) / "src/sum.c").write_text('void f(void) { __asm__("bogus %eax"); }\n')
    (gcc,) = installed("x86_64.gcc")
    failure = only_failure(unit, gcc)
    assert (failure.stage, failure.cause) == ("assemble", "error")
    assert "bogus" in failure.tail


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        ("kill -SEGV $$", "crash"),
        ("echo 'sum.c:3:1: internal compiler error: in expand_expr' >&2; exit 1", "crash"),
        ("sleep 60", "timeout"),
        ('exec python3 -c "x = bytearray(1 << 31)"', "memory"),
        ("yes 'warning: again'", "output"),
        ("yes .text > ${8}", "output"),
        ("echo 'cc1: out of memory allocating 64 bytes' >&2; exit 1", "memory"),
    ],
    ids=["segfault", "internal error", "hang", "eats memory", "endless messages", "endless text", "says so"],
)
def test_a_compiler_gone_wrong_is_a_row_with_its_cause(
    unit: Unit, tmp_path: Path, behaviour: str, cause: str
) -> None:
    toolchain = misbehaving(tmp_path / "odd", behaviour)
    limits = Limits(time_s=2.0, memory_mib=1024, output_mib=1)
    failure = only_failure(unit, toolchain, limits)
    assert (failure.stage, failure.cause) == ("compile", cause)


def test_a_text_that_gnu_as_does_not_take_goes_to_the_compilers_own_assembler(unit: Unit) -> None:
    (clang,) = installed("aarch64.clang")
    (expected,), _ = compile_levels(unit, clang, ["O2"], limits=LIMITS)
    assert clang.assembler[0] == "aarch64-linux-gnu-as"
    (other,), failures = compile_levels(unit, replace(clang, assembler=("false",)), ["O2"], limits=LIMITS)
    assert failures == []
    assert (other.assembly, sizes(other)) == (expected.assembly, sizes(expected))


def test_instructions_that_one_function_alone_may_use_assemble(unit: Unit) -> None:
    # clang's text does not say which extension a function was compiled for, and its own assembler refuses it.
    (root_of(unit) / "src/sum.c").write_text(
        "#include <arm_acle.h>\n"
        '__attribute__((target("+crc"))) unsigned f(unsigned a, unsigned b) { return __crc32w(a, b); }\n'
    )
    for toolchain in installed("aarch64.gcc", "aarch64.clang"):
        (compiled,), failures = compile_levels(unit, toolchain, ["O2"], limits=LIMITS)
        assert failures == []
        assert sizes(compiled) == {"f": 8}


def test_one_level_that_fails_leaves_the_others(unit: Unit, tmp_path: Path) -> None:
    odd = misbehaving(tmp_path / "odd", 'case "$*" in *-O1*) kill -ABRT $$;; esac; exec $real "$@"')
    compiled, (failure,) = compile_levels(unit, odd, ["O0", "O1", "O2"], limits=LIMITS)
    assert [one.variant.level for one in compiled] == ["o0", "o2"]
    assert (failure.variant, failure.cause) == ("x86_64.gcc12.o1", "crash")


def test_messages_of_two_runs_are_equal(unit: Unit, tmp_path: Path) -> None:
    behaviour = 'echo "/tmp/none: $TMPDIR/ccAb12Cd.s:1: at 0x7f0012345678 in $PWD" >&2; exit 1'
    odd = misbehaving(tmp_path / "odd", behaviour)
    failure = only_failure(unit, odd)
    assert failure.tail == "/tmp/none: $TMP/unit.s:1: at 0x... in $TMP"


def test_a_compiler_that_vanished_is_the_machines_fault(unit: Unit, tmp_path: Path) -> None:
    odd = misbehaving(tmp_path / "odd", 'exec $real "$@"')
    Path(odd.command[0]).unlink()
    with pytest.raises(ToolchainError, match=r"x86_64\.gcc12 is not on this machine"):
        compile_levels(unit, odd, ["O2"], limits=LIMITS)


def test_a_full_disk_is_not_counted_as_a_bad_unit(unit: Unit, tmp_path: Path) -> None:
    message = "fatal error: error writing to unit.s: No space left on device"
    odd = misbehaving(tmp_path / "odd", f"echo '{message}' >&2; exit 1")
    with pytest.raises(OutputError, match="disk is full"):
        compile_levels(unit, odd, ["O2"], limits=LIMITS)
