"""Reading compiler calls: what is a unit, which flags stay, and one unit for a double compile."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.commands import Call, Commands, commands_of, parse, read_database, read_log, retargeted
from corpus_builder.errors import SourceError
from corpus_builder.record import Command

ROOT = Path("/cache/x/tree")
MOUNT = "/build/x"


def gcc(line: str, *, cwd: str = MOUNT, name: str = "t-gcc", exit: int = 0) -> Call:
    return Call(name, cwd, tuple(line.split()), exit)


def units(*calls: Call, host: frozenset[str] = frozenset()) -> Commands:
    return commands_of(calls, mount=MOUNT, root=ROOT, host=host)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("-c a.c -o a.o", ""),
        ("-S a.c -oa.s", ""),
        ("-O3 -g -ggdb3 -c a.c", ""),
        ("-Ofast -O -Og -gdwarf-4 -gsplit-dwarf -c a.c", ""),
        ("-I inc -I. -isystem sys -iquote q -idirafter d -include c.h -imacros m.h -c a.c",
         "-Iinc -I. -isystemsys -iquoteq -idirafterd -includec.h -imacrosm.h"),
        ("-D A -DB=1 -U C -UD -c a.c", "-DA -DB=1 -UC -UD"),
        ("--include-directory inc --define-macro A=1 -c a.c", "-Iinc -DA=1"),
        ("-MD -MP -MF .deps/a.Tpo -MT a.lo -MQ x -MMD -Wp,-MD,a.d -c a.c", ""),
        ("-Wp,-D_FORTIFY_SOURCE=2,-MMD,x.d -Xpreprocessor -DY -c a.c", "-D_FORTIFY_SOURCE=2 -DY"),
        ("-Wall -Wextra -Werror -Werror=format -Wno-unused -Wfatal-errors -pedantic-errors -c a.c",
         "-Wall -Wextra -Wno-unused -pedantic"),
        ("-flto -flto=auto -ffat-lto-objects -fprofile-arcs -ftest-coverage --coverage -c a.c", ""),
        ("-fPIC -fno-strict-aliasing -fstack-protector-strong -fvisibility=hidden -c a.c",
         "-fPIC -fno-strict-aliasing -fstack-protector-strong -fvisibility=hidden"),
        ("-march=native -mtune=native -mcpu=native -march=armv8-a+crc -mstrict-align -c a.c",
         "-march=armv8-a+crc -mstrict-align"),
        ("-std=gnu99 -ansi -pthread -pipe -nostdinc -undef -w -c a.c",
         "-std=gnu99 -ansi -pthread -nostdinc -undef -w"),
        ("-L. -Llib -lm -l z -Wl,-O1 -Wl,-rpath,/x -shared -static -rdynamic -T x -u main a.c b.o c.a", ""),
        ("--param max-unroll-times=5 --param=x=1 -c a.c", "--param=max-unroll-times=5 --param=x=1"),
        ("-save-temps -save-temps=obj -v -H -Q -fdiagnostics-color=always -fmessage-length=0 -c a.c", ""),
        # What would run programs, or write files, when it is replayed.
        ("-fplugin=./evil.so -fplugin-arg-evil-x -wrapper sh,-c -B./bin -Bx -specs=evil -c a.c", ""),
        ("-specs evil --specs=evil -Xclang -load -Xclang ./e.so -fpass-plugin=e.so -mllvm -x -c a.c", ""),
        ("-fdump-tree-all=x -aux-info proto -dumpdir d/ -fstack-usage -fopt-info-vec=f -c a.c", ""),
    ],
)  # fmt: skip
def test_flags_that_stay(line: str, kept: str) -> None:
    parsed = parse(line.split())
    assert parsed.flags == tuple(kept.split())
    assert [file for file, language in parsed.inputs if language == "c"] == ["a.c"]


@pytest.mark.parametrize(
    ("line", "inputs"),
    [
        ("-c a.c b.c", {"a.c": "c", "b.c": "c"}),
        ("a.c b.o -lm", {"a.c": "c", "b.o": ""}),
        ("-x c a.inc -x none b.c", {"a.inc": "c", "b.c": "c"}),
        ("-xc a.y", {"a.y": "c"}),
        ("-x assembler-with-cpp a.c", {"a.c": "assembler-with-cpp"}),
        ("-c a.S b.s c.cc d.C e.i", {"a.S": "assembler", "b.s": "assembler", "c.cc": "c++", "d.C": "c++",
                                     "e.i": "cpp-output"}),
        ("-x c -", {"-": "c"}),
        ("-c -- -odd.c", {"-odd.c": "c"}),
        ("-o a.c -MF b.c -include c.c d.c", {"d.c": "c"}),
    ],
)  # fmt: skip
def test_inputs_and_languages(line: str, inputs: dict[str, str]) -> None:
    assert dict(parse(line.split()).inputs) == inputs


@pytest.mark.parametrize("line", ["-E a.c", "-M a.c", "-MM a.c", "-fsyntax-only a.c", "a.c -E -o a.i"])
def test_what_makes_no_code_is_no_unit(line: str) -> None:
    assert units(gcc(line)) == Commands((), {})


def test_paths_are_relative_to_the_projects_folder() -> None:
    call = gcc(
        f"-I{MOUNT}/inc -I/usr/include/z -include {MOUNT}/c.h -ffile-prefix-map={MOUNT}=. -c {MOUNT}/src/a.c",
        cwd=f"{MOUNT}/out",
    )
    flags = ("-I{root}/inc", "-I/usr/include/z", "-include{root}/c.h", "-ffile-prefix-map={root}=.")
    assert units(call).units == (("src/a.c", Command(ROOT, "out", "../src/a.c", flags)),)


def test_a_macro_keeps_the_folder_it_names_unless_it_is_a_header() -> None:
    call = gcc(f'-DDATA="{MOUNT}/share" -DCONFIG="{MOUNT}/config.h" -DN={MOUNT}/x -c a.c')
    ((_, command),) = units(call).units
    assert command.flags == (f'-DDATA="{MOUNT}/share"', '-DCONFIG="{root}/config.h"', f"-DN={MOUNT}/x")


def test_another_folder_with_the_same_start_is_outside() -> None:
    found = units(gcc(f"-I{MOUNT}y/inc -c {MOUNT}y/a.c"), gcc("-c ../b.c"), gcc(f"-I{MOUNT}y/inc -c a.c"))
    assert found.skipped == {"outside": 2}
    assert found.units[0][1].flags == (f"-I{MOUNT}y/inc",)


@pytest.mark.parametrize(
    ("line", "cwd"),
    [
        ("-c conftest.c", MOUNT),
        ("-o conftest conftest.c -lz", f"{MOUNT}/sub"),
        ("-c CMakeCCompilerId.c", f"{MOUNT}/b/CMakeFiles/3.25.1/CompilerIdC"),
        (f"-c {MOUNT}/b/CMakeFiles/CMakeScratch/TryCompile-x/src.c", MOUNT),
        ("testfile.c -o output.exe", f"{MOUNT}/b/meson-private/tmpabc"),
        ("-x c -", MOUNT),
        ("-x c /dev/null -c", MOUNT),
        ("-c -x c /dev/null -o .tmp_1/tmp", MOUNT),
    ],
)
def test_probes_are_no_units(line: str, cwd: str) -> None:
    assert units(gcc(line, cwd=cwd)) == Commands((), {"probe": 1})


def test_what_is_skipped_is_counted_by_kind() -> None:
    found = units(
        gcc("-c a.S b.s"), gcc("-c a.cc"), gcc("-c a.m"), gcc("-c bad.c", exit=1),
        gcc("-c tool.c", name="gcc"), gcc("-c /usr/share/x.c"), gcc("-c a.c"), host=frozenset({"gcc"}),
    )  # fmt: skip
    assert [file for file, _ in found.units] == ["a.c"]
    assert found.skipped == {"assembler": 2, "c++": 1, "failed": 1, "host": 1, "other": 1, "outside": 1}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("-DA -fPIC -DPIC -c a.c -o .libs/a.o", "-DA -c a.c -o a.o", ("-DA", "-fPIC", "-DPIC")),
        ("-DA -Dz_EXPORTS -fPIC -c a.c", "-DA -c a.c", ("-DA", "-Dz_EXPORTS", "-fPIC")),
        ("-DA -fPIE -Wall -c a.c", "-DA -c a.c", ("-DA", "-fPIE", "-Wall")),
        ("-DA -c a.c", "-DA -c a.c", ("-DA",)),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_double_compile_is_one_unit(first: str, second: str, kept: tuple[str, ...], swapped: bool) -> None:
    calls = [gcc(second), gcc(first)] if swapped else [gcc(first), gcc(second)]
    ((_, command),) = units(*calls).units
    assert command.flags == kept


def test_truly_different_flags_are_further_units_in_an_order_of_their_own() -> None:
    calls = [gcc("-DB -c a.c"), gcc("-DA -c a.c"), gcc("-DA -DC -c a.c"), gcc("-c ../a.c", cwd=f"{MOUNT}/s")]
    found = units(*calls)
    assert found == units(*reversed(calls))
    assert [(file, command.flags) for file, command in found.units] == [
        ("a.c", ()), ("a.c", ("-DA",)), ("a.c", ("-DB",)), ("a.c", ("-DA", "-DC"))
    ]  # fmt: skip


def test_a_name_that_looks_like_an_option_is_made_a_path() -> None:
    ((file, command),) = units(gcc("-c -- -a.c")).units
    assert (file, command.input) == ("-a.c", "./-a.c")


def test_another_language_is_named_by_a_flag() -> None:
    ((_, command),) = units(gcc("-DA -x c -c t.inc")).units
    assert (command.input, command.flags) == ("t.inc", ("-DA", "-xc"))


def test_retargeted_commands_know_no_processor() -> None:
    flags = ("-DA", "-msse4.2", "-m64", "-march=x86-64-v3", "-fcf-protection=full", "-fPIC")
    assert retargeted(Command(ROOT, ".", "a.c", flags)).flags == ("-DA", "-fPIC")


def test_a_log_with_foreign_lines_is_read() -> None:
    good = json.dumps({"name": "gcc", "cwd": MOUNT, "argv": ["-c", "a.c"], "exit": 0})
    nul = json.dumps({"name": "gcc", "cwd": MOUNT, "argv": ["a\0b.c"], "exit": 0})
    text = "\n".join([good, "not json", "[]", '{"name": 1}',
                      '{"name": "gcc", "cwd": null, "argv": [2], "exit": 0}', nul, good[:20]])  # fmt: skip
    assert read_log(text) == [Call("gcc", MOUNT, ("-c", "a.c"), 0)]


ARGUMENTS = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12))


@given(ARGUMENTS)
def test_any_arguments_can_be_read(argv: list[str]) -> None:
    flags = parse(argv).flags
    assert not [flag for flag in flags if flag.startswith(("-O", "-o", "-c", "-g", "-l"))]
    assert parse(flags).flags == flags


def test_a_database_is_read_in_both_spellings(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("-DY")
    path = tmp_path / "compile_commands.json"
    path.write_text(json.dumps([
        {"directory": str(tmp_path), "command": '/usr/bin/cc -DX=\\"a\\ b\\" @words -c a.c', "file": "a.c"},
        {"directory": "/x", "arguments": ["gcc", "-c", "b c.c"], "file": "b c.c", "output": "b.o"},
    ]))  # fmt: skip
    assert read_database(path) == [
        Call("cc", str(tmp_path), ('-DX="a b"', "-DY", "-c", "a.c")),
        Call("gcc", "/x", ("-c", "b c.c")),
    ]


@pytest.mark.parametrize(
    "text", ["{", "{}", "[1]", '[{"directory": "/x"}]', '[{"directory": "/", "command": ""}]']
)
def test_what_is_no_database_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compile_commands.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"compile_commands\.json is not"):
        read_database(path)
