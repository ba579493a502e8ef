"""One unit end to end: which functions become records, what they say, and what failure leaves intact."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from compilers import LIMITS, a_unit, installed, misbehaving
from corpus_builder import asm
from corpus_builder.config import Project
from corpus_builder.prepare import prepare_unit
from corpus_builder.record import FunctionRecord, Unit, UnitResult, function_key
from corpus_builder.toolchain import Toolchain
from corpus_builder.worker import Wanted, build_unit

SHA = "0" * 64
PROJECT = Project.model_validate(
    {
        "name": "demo",
        "version": "1.2",
        "license": "MIT",
        "source": {"kind": "pypi", "package": "demo-c", "version": "1.2.0", "sha256": SHA},
        "recipe": {"sources": ["*.c"]},
    }
)
SOURCE = """\
#include <stdlib.h>
#include "table.h"

/* Adds up a table. */
int sum(const int *v, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++)
        s += scale(v[i]);
    return s;
}

int total(const int *w, int m)
{
    int t = 0;
    for (int j = 0; j < m; j++)
        t += scale(w[j]);
    return t;
}

#ifdef __aarch64__
int arm_only(int x) { return x ^ 5; }
#endif

#ifdef NOT_SET
int never(int x) { return x; }
#endif
"""
HEADER = """\
static int scale(int x) { return 3 * x; }
"""


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    root = tmp_path / "project"
    root.mkdir()
    (root / "sum.c").write_text(SOURCE)
    (root / "table.h").write_text(HEADER)
    return a_unit(root, "sum.c")


def root_of(unit: Unit) -> Path:
    return unit.commands["x86_64"].root


def build(
    unit: Unit,
    toolchains: list[Toolchain],
    levels: tuple[str, ...] = ("O0", "O2"),
    *,
    travels: bool = True,
    members: tuple[str, ...] = ("inlined",),
) -> UnitResult:
    prepared = prepare_unit(unit, toolchains, levels, limits=LIMITS, travels=travels)
    return build_unit(unit, prepared, PROJECT, toolchains, Wanted(levels, LIMITS, members=members))


def by_name(result: UnitResult) -> dict[str, FunctionRecord]:
    return {record.meta.name: record for record in result.records}


def test_one_record_joins_a_functions_variants(unit: Unit) -> None:
    toolchains = installed("aarch64.gcc", "aarch64.clang", "x86_64.gcc", "x86_64.clang")
    result = build(unit, toolchains)
    assert (result.unit, result.failures) == ("demo/sum.c", ())
    records = by_name(result)
    assert set(records) == {"sum", "total", "scale", "arm_only"}
    record = records["sum"]
    assert set(record.assembly) == {
        f"{toolchain.id}.{level}" for toolchain in toolchains for level in ("o0", "o2")
    }
    assert set(record.meta.variants) == set(record.assembly)
    assert record.key == function_key("demo", "sum.c", 5, "sum")
    meta = record.meta
    assert (meta.project, meta.version, meta.license) == ("demo", "1.2", "MIT")
    assert (meta.source.kind, meta.source.location, meta.source.sha256) == ("pypi", "demo-c==1.2.0", SHA)
    assert (meta.unit, meta.file, meta.lines) == ("sum.c", "sum.c", (5, 11))
    assert (meta.split, meta.cluster) == ("", "")
    assert "Adds up a table." in meta.comment
    assert "s += scale(v[i]);" in record.source


def test_a_variants_figures_are_those_of_its_text(unit: Unit) -> None:
    (gcc,) = installed("aarch64.gcc")
    record = by_name(build(unit, [gcc], ("O0", "Os")))["sum"]
    for name, text in record.assembly.items():
        variant = record.meta.variants[name]
        assert variant.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert variant.body_sha256 == asm.view_sha256(text, "aarch64")
        assert variant.num_instructions * 4 == variant.code_bytes  # 4 bytes each; no alignment at Os
        assert variant.compiler == gcc.version
        assert variant.flags[-1].lower() == f"-{name.rpartition('.')[2]}"
    small, plain = record.meta.variants[f"{gcc.id}.os"], record.meta.variants[f"{gcc.id}.o0"]
    assert small.num_instructions < plain.num_instructions


def test_functions_that_differ_in_names_alone_have_equal_bodies(unit: Unit) -> None:
    records = by_name(build(unit, installed("x86_64.gcc")))
    one, other = records["sum"].meta.variants, records["total"].meta.variants
    assert {name: meta.body_sha256 for name, meta in one.items()} == {
        name: meta.body_sha256 for name, meta in other.items()
    }


def test_a_function_has_only_the_variants_that_emitted_it(unit: Unit) -> None:
    gcc_arm, gcc_x86 = installed("aarch64.gcc", "x86_64.gcc")
    records = by_name(build(unit, [gcc_x86, gcc_arm]))
    assert set(records["scale"].assembly) == {f"{gcc_arm.id}.o0", f"{gcc_x86.id}.o0"}  # inlined at O2
    assert records["scale"].meta.file == "table.h"
    # Seen by the second toolchain alone: its source is looked for there as well.
    assert set(records["arm_only"].assembly) == {f"{gcc_arm.id}.o0", f"{gcc_arm.id}.o2"}


def test_clones_and_cold_parts_are_not_records(unit: Unit) -> None:
    (root_of(unit) / "sum.c").write_text(
        "#include <stdlib.h>\n"
        "__attribute__((noinline)) static int pick(int *p, int k) { return *p + k; }\n"
        "int a(int *p) { if (*p > 7) abort(); return pick(p, 1); }\n"
        "int b(int *p) { return pick(p, 1) * 2; }\n"
    )
    (gcc,) = installed("x86_64.gcc")
    result = build(unit, [gcc], ("O2",))
    assert set(by_name(result)) <= {"a", "b", "pick"}
    assert {"a", "b"} <= set(by_name(result))
    assert result.failures == ()


def test_equal_inputs_in_another_folder_give_equal_results(unit: Unit, tmp_path: Path) -> None:
    (root_of(unit) / "sum.c").write_text(
        SOURCE + "const char *where(void) { return __FILE__ __DATE__ __TIME__; }\n"
    )
    copy = tmp_path / "a-folder-with-another-name"
    shutil.copytree(root_of(unit), copy)
    toolchains = installed("aarch64.gcc", "x86_64.clang")
    assert build(unit, toolchains) == build(a_unit(copy, "sum.c"), toolchains)


def test_a_unit_that_does_not_compile_is_rows_and_no_records(unit: Unit) -> None:
    (root_of(unit) / "sum.c").write_text("int sum( {\n")
    toolchains = installed("aarch64.gcc", "x86_64.clang")
    result = build(unit, toolchains)
    assert result.records == ()
    assert [(row.variant, row.stage, row.cause) for row in result.failures] == [
        (f"{toolchain.id}.{level}", "compile", "error") for toolchain in toolchains for level in ("o0", "o2")
    ]


@pytest.mark.parametrize("cwd", [".", "src/deep"])
def test_a_unit_gives_the_same_at_home_and_elsewhere(tmp_path: Path, cwd: str) -> None:
    """By its own commands in its tree, and from texts alone; all members included."""
    toolchains = installed("aarch64.gcc", "aarch64.clang", "riscv64.gcc")
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/sum.c").write_text(SOURCE + "const char *file(void) { return __FILE__; }\n")
    (tmp_path / "src/table.h").write_text(HEADER)
    unit = a_unit(tmp_path, "src/sum.c", ('-DNAME="a b"',), cwd=cwd)
    levels = ("O0", "O1", "O2", "O3", "Os")
    members = ("inlined", "ll", "object", "lines")
    home, away = (build(unit, toolchains, levels, travels=it, members=members) for it in (False, True))
    assert home.failures == away.failures == ()
    assert home == away
    assert {"sum", "total", "file"} <= by_name(home).keys()
    for variant in ("aarch64.gcc12.o2", "aarch64.clang19.o2"):
        files = json.loads(by_name(home)["sum"].extras[f"{variant}.lines.json"])["files"]
        assert set(files) - {""} == {"src/sum.c", "src/table.h"}


@pytest.mark.parametrize("condition", ["#ifdef __clang__", "#ifndef __clang__"])
def test_a_function_that_one_compiler_sees_has_a_source(unit: Unit, condition: str) -> None:
    (root_of(unit) / "sum.c").write_text(
        f"{SOURCE}{condition}\nint lonely(int x) {{ return x + 4; }}\n#endif\n"
    )
    result = build(unit, installed("x86_64.gcc", "x86_64.clang"), travels=False)
    assert result.failures == ()
    assert len(by_name(result)["lonely"].assembly) == 2


def test_a_missing_file_is_rows_as_well(unit: Unit) -> None:
    result = build(a_unit(root_of(unit), "gone.c"), installed("aarch64.gcc"))
    # A toolchain whose text cannot be made is tried no further.
    assert [row.cause for row in result.failures] == ["error"]


@pytest.mark.parametrize(
    ("behaviour", "stage", "cause"),
    [
        ("kill -SEGV $$", "compile", "crash"),
        # Says nothing, leaves an object that is none.
        ('case "$*" in *" -c "*) echo none > "$4";; *) exec $real "$@";; esac', "parse", "internal"),
    ],
)
def test_a_bad_toolchain_does_not_lose_the_others(
    unit: Unit, tmp_path: Path, behaviour: str, stage: str, cause: str
) -> None:
    (good,) = installed("aarch64.gcc")
    odd = misbehaving(tmp_path / "odd", behaviour)
    result = build(unit, [odd, good])
    assert set(by_name(result)) == {"sum", "total", "scale", "arm_only"}
    assert [(row.variant, row.stage, row.cause) for row in result.failures] == [
        (f"{odd.id}.{level}", stage, cause) for level in ("o0", "o2")
    ]


def test_functions_without_source_text_are_counted_by_name(unit: Unit) -> None:
    (root_of(unit) / "sum.c").write_text(
        "#define MAKE(name) int name(int x) { return x + 1; }\n"
        "int plain(int x) { return x; }\n"
        '__asm__(".globl raw\\n.type raw, %function\\nraw: ret\\n.size raw, .-raw");\n'
        'int renamed(int x) __asm__("other");\n'
        "int renamed(int x) { return -x; }\n"
        "MAKE(made)\n"
    )
    result = build(unit, installed("aarch64.gcc"))
    assert "plain" in by_name(result)
    (row,) = result.failures
    assert (row.stage, row.cause, row.variant) == ("parse", "no_source", "")
    assert "other" in row.tail


def test_bytes_that_are_not_utf8_do_no_harm(unit: Unit) -> None:
    (root_of(unit) / "sum.c").write_bytes(b'/* caf\xe9 */\nconst char *name(void) { return "caf\xe9"; }\n')
    result = build(unit, installed("aarch64.gcc", "x86_64.clang"))
    assert set(by_name(result)) == {"name"}
    assert result.failures == ()


def test_records_stand_in_the_order_of_their_keys(unit: Unit) -> None:
    keys = [record.key for record in build(unit, installed("aarch64.gcc")).records]
    assert keys == sorted(keys)
    assert len(set(keys)) == 4
