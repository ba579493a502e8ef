"""Captures of small projects with real build systems, real compilers and the real sandbox."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from corpus_builder import capture as capture_module
from corpus_builder.buildsite import Builder, machine_isa
from corpus_builder.capture import (
    Capture,
    CaptureFailure,
    capture,
    capture_project,
    units_of_captures,
    units_of_database,
)
from corpus_builder.commands import commands_of, read_database
from corpus_builder.config import Build, BuildLimitsConfig, PathSource, Project
from corpus_builder.errors import ConfigError, OutputError, SourceError, ToolchainError

MACHINE = machine_isa()
FOREIGN = "riscv64" if MACHINE == "aarch64" else "aarch64"
TRIPLE = f"{FOREIGN}-linux-gnu"
LIMITS = BuildLimitsConfig(time_s=60, memory_mib=2048, processes=200, disk_mib=256)

needs = {
    "bwrap": "bubblewrap",
    "gcc": "gcc",
    f"{TRIPLE}-gcc": f"gcc-{TRIPLE}",
    "make": "make",
}
missing = [package for program, package in needs.items() if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def needs_program(*programs: str) -> pytest.MarkDecorator:
    absent = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


class Workshop:
    """A project made of texts, and captures of it."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "source"
        self.builder = Builder(folder / "cache", LIMITS)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def project(self, **build: object) -> Project:
        source = PathSource(kind="path", path=self.tree)
        return Project(
            name="toy", version="1", license="MIT", source=source, build=Build.model_validate(build)
        )

    def capture(
        self, isa: str = FOREIGN, *, mode: str = "cross", **build: object
    ) -> Capture | CaptureFailure:
        options = {"content_id": "1", "builder": self.builder, "mode": mode}
        return capture(self.project(**build), self.tree, isa, **options)  # type: ignore[arg-type]

    def captured(self, isa: str = FOREIGN, *, mode: str = "cross", **build: object) -> Capture:
        found = self.capture(isa, mode=mode, **build)
        assert isinstance(found, Capture), found
        return found

    def failed(self, isa: str = FOREIGN, **build: object) -> CaptureFailure:
        found = self.capture(isa, **build)
        assert isinstance(found, CaptureFailure), found
        return found


@pytest.fixture
def toy(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def files_of(found: Capture) -> list[str]:
    return [file for file, _ in found.commands]


def flags_of(found: Capture, file: str) -> tuple[str, ...]:
    (flags,) = [command.flags for name, command in found.commands if name == file]
    return flags


def compiles(found: Capture, compiler: str) -> None:
    """Each command, replayed where the tree lies now, gives an object."""
    for file, command in found.commands:
        flags = [flag.replace("{root}", str(command.root)) for flag in command.flags]
        argv = [compiler, *flags, "-c", "-o", "/dev/null", command.input]
        done = subprocess.run(argv, cwd=command.root / command.cwd, capture_output=True, text=True)
        assert done.returncode == 0, (file, done.stderr)


MAKEFILE = f"""
CC = cc
all: prog
prog: a.o b.o table.o start.o
\t$(CC) -o $@ $^
%.o: %.c
\t$(CC) -Iinc -DX=1 -O3 -g -c $< -o $@
start.o: start.S
\t$(CC) -c $<
b.o: b.c words
\t$(CC) @words -c b.c -o b.o
words:
\techo "-DWORD='a b' -Iinc" > words
table.c: maketable
\t./maketable > table.c
maketable: maketable.c
\tgcc -O1 -o $@ $<
where:
\techo '{MACHINE}'
"""
MAKE = {
    "Makefile": MAKEFILE,
    "inc/a.h": "#define A 7\n",
    "a.c": '#include "a.h"\nint a(void) { return A + X; }\n',
    "b.c": "int a(void);\nint main(void) { return a(); }\n",
    "start.S": ".globl start\nstart:\n",
    "maketable.c": '#include <stdio.h>\nint main(void) { puts("int table[] = {1, 2};"); return 0; }\n',
}


def test_make_with_a_host_tool_a_generated_file_assembler_and_a_response_file(toy: Workshop) -> None:
    toy.write(MAKE)
    found = toy.captured()
    assert (found.system, found.mode, found.exit, found.cause) == ("make", "cross", 0, "")
    assert files_of(found) == ["a.c", "b.c", "table.c"]
    assert found.skipped == {"assembler": 1, "host": 1}
    assert flags_of(found, "a.c") == ("-Iinc", "-DX=1")
    assert flags_of(found, "b.c") == ("-DWORD=a b", "-Iinc")
    assert (found.root / "table.c").read_text() == "int table[] = {1, 2};\n"
    compiles(found, f"{TRIPLE}-gcc")
    assert sorted(path.name for path in toy.tree.rglob("*") if path.is_file()) == sorted(
        Path(name).name for name in MAKE
    ), "the source was written to"


def test_what_was_compiled_is_not_kept(toy: Workshop) -> None:
    toy.write(MAKE)
    shutil.copy("/bin/true", toy.tree / "brought")
    found = toy.captured()
    files = [path for path in found.root.rglob("*") if path.is_file()]
    left = {path.name for path in files if path.read_bytes()[:4] == b"\x7fELF"}
    assert left == {"brought"}


def test_a_second_call_builds_nothing_and_another_content_does(toy: Workshop) -> None:
    toy.write({"Makefile": "all:\n\tcc -c a.c\n\tdate +%N > stamp\n", "a.c": "int a;\n"})
    first = toy.captured(mode="native", isa=MACHINE)
    stamp = (first.root / "stamp").read_text()
    assert toy.captured(mode="native", isa=MACHINE) == first
    assert (first.root / "stamp").read_text() == stamp
    other = capture(toy.project(), toy.tree, MACHINE, content_id="2", builder=toy.builder, mode="native")
    assert isinstance(other, Capture)
    assert other.root != first.root


def test_a_build_that_was_killed_is_made_again(toy: Workshop) -> None:
    toy.write(
        {"Makefile": "all:\n\tcc -c a.c\n\tsleep 1\n\tcc -c b.c\n", "a.c": "int a;\n", "b.c": "int b;\n"}
    )
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_capture import Workshop, MACHINE\n"
        "Workshop(Path(sys.argv[1])).capture(MACHINE, mode='native')\n"
    )
    argv = [sys.executable, "-c", script, str(toy.tree.parent), str(Path(__file__).parent)]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    deadline = time.monotonic() + 20
    captures = toy.builder.cache / "captures"
    while not list(captures.glob("*/tree/a.o")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(captures.glob("*/tree/a.o"))
    assert not list(captures.glob("*/capture.json"))
    assert files_of(toy.captured(MACHINE, mode="native")) == ["a.c", "b.c"]


AUTOTOOLS = {
    "configure.ac": """
AC_INIT([toy], [1])
AM_INIT_AUTOMAKE([foreign subdir-objects])
AC_CONFIG_HEADERS([config.h])
AC_PROG_CC
AM_PROG_AR
LT_INIT
AC_CHECK_FUNCS([strlcpy getrandom])
AC_CHECK_SIZEOF([long])
AC_CONFIG_FILES([Makefile])
AC_OUTPUT
""",
    "Makefile.am": """
lib_LTLIBRARIES = libtoy.la
libtoy_la_SOURCES = src/one.c src/two.c
nodist_libtoy_la_SOURCES = made.h
BUILT_SOURCES = made.h
bin_PROGRAMS = toy
toy_SOURCES = src/main.c src/two.c
toy_CPPFLAGS = -DTOY=1
toy_LDADD = libtoy.la
made.h: tool.c
\t$(CC_FOR_BUILD) -o tool $(srcdir)/tool.c && ./tool > made.h
""",
    "tool.c": '#include <stdio.h>\nint main(void) { puts("#define MADE 5"); return 0; }\n',
    "src/one.c": '#include "config.h"\n#include "made.h"\nint one(void) { return MADE + SIZEOF_LONG; }\n',
    "src/two.c": '#include "config.h"\nint two(void) {\n#ifdef TOY\nreturn TOY;\n#endif\nreturn 2; }\n',
    "src/main.c": "int one(void);\nint main(void) { return one(); }\n",
}


@needs_program("autoreconf", "libtoolize")
def test_autotools_with_libtool_a_made_header_and_a_host_tool(toy: Workshop) -> None:
    toy.write(AUTOTOOLS)
    found = toy.captured()
    assert (found.system, found.exit) == ("autotools", 0), found.tail
    # libtool compiles one.c and two.c twice; two.c is compiled once more with other flags. No conftest.c.
    assert files_of(found) == ["src/main.c", "src/one.c", "src/two.c", "src/two.c"]
    assert found.skipped == {"host": 1}
    assert {"-fPIC", "-DPIC", "-DHAVE_CONFIG_H"} <= set(flags_of(found, "src/one.c"))
    ways = [set(command.flags) for file, command in found.commands if file == "src/two.c"]
    assert sum("-DTOY=1" in flags for flags in ways) == 1
    compiles(found, f"{TRIPLE}-gcc")
    assert (
        "checking whether we are cross compiling... yes" in (found.root.parent / "log/build.log").read_text()
    )
    units = units_of_captures("toy", {FOREIGN: found})
    assert [unit.id for unit in units][2:] == ["toy/src/two.c", "toy/src/two.c#2"]
    assert units[0].size_bytes == len(AUTOTOOLS["src/main.c"])


CMAKE = {
    "CMakeLists.txt": """
cmake_minimum_required(VERSION 3.13)
project(toy)
include(CheckFunctionExists)
check_function_exists(getrandom HAVE_GETRANDOM)
file(WRITE ${CMAKE_BINARY_DIR}/made.c "int made(void) { return 3; }\\n")
add_library(toy SHARED a.c)
add_library(toy_static STATIC a.c ${CMAKE_BINARY_DIR}/made.c)
target_include_directories(toy PRIVATE inc)
target_include_directories(toy_static PRIVATE inc)
if(NOT CMAKE_SYSTEM_PROCESSOR STREQUAL "@ISA@")
  message(FATAL_ERROR "built for ${CMAKE_SYSTEM_PROCESSOR}")
endif()
""".replace("@ISA@", FOREIGN),
    "inc/a.h": "#define A 7\n",
    "a.c": '#include "a.h"\nint a(void) { return A; }\n',
}


@needs_program("cmake")
def test_cmake_without_a_cplusplus_compiler_for_the_target(toy: Workshop) -> None:
    toy.write(CMAKE)
    found = toy.captured()
    assert (found.system, found.exit) == ("cmake", 0), found.tail
    # a.c twice, for the shared and for the static library; none of CMake's own checks.
    assert files_of(found) == ["a.c", "build-asmtrain/made.c"]
    assert flags_of(found, "a.c") == ("-Dtoy_EXPORTS", "-I{root}/inc", "-fPIC")
    compiles(found, f"{TRIPLE}-gcc")
    assert not (toy.tree / "build-asmtrain").exists()


@needs_program("meson", "ninja")
def test_meson(toy: Workshop) -> None:
    toy.write({
        "meson.build": "project('toy', 'c', default_options: ['werror=true', 'c_std=gnu99'])\n"
        "assert(meson.is_cross_build() and host_machine.cpu_family() == '" + FOREIGN + "')\n"
        "cc = meson.get_compiler('c')\nassert(cc.has_header('stdio.h') and cc.sizeof('long') == 8)\n"
        "executable('toy', 'a.c', include_directories: 'inc')\n",
        "inc/a.h": "#define A 7\n",
        "a.c": '#include "a.h"\nint main(void) { int unused; return A; }\n',
    })  # fmt: skip
    found = toy.captured(configure=("-Dwarning_level=0",))
    assert (found.system, found.exit) == ("meson", 0), found.tail
    assert files_of(found) == ["a.c"]
    assert {"-I../inc", "-std=gnu99"} <= set(flags_of(found, "a.c"))
    compiles(found, f"{TRIPLE}-gcc")


def test_kbuild(toy: Workshop) -> None:
    toy.write({
        "Kconfig": "config A\n",
        "Makefile": "CC = $(CROSS_COMPILE)gcc\nHOSTCC ?= cc\n"
        "defconfig: fixdep\n\t./fixdep > .config\n\techo $(ARCH) >> .config\n"
        "fixdep: fixdep.c\n\t$(HOSTCC) -o $@ $<\n"
        "all: a.o\n%.o: %.c\n"
        "\t$(CC) -Wp,-MD,.a.o.d -nostdinc -include conf.h -DKBUILD_MODNAME='\"a\"' -c -o $@ $<\n"
        ".DEFAULT_GOAL := all\n",
        "conf.h": "#define A 7\n",
        "fixdep.c": '#include <stdio.h>\nint main(void) { puts("CONFIG_A=y"); return 0; }\n',
        "a.c": "char *a(void) { return KBUILD_MODNAME + A; }\n",
    })  # fmt: skip
    found = toy.captured()
    arch = {"aarch64": "arm64", "riscv64": "riscv"}[FOREIGN]
    assert (found.system, found.exit) == ("kbuild", 0), found.tail
    assert (found.root / ".config").read_text() == f"CONFIG_A=y\n{arch}\n"
    assert found.commands[0][1].flags == ("-nostdinc", "-includeconf.h", '-DKBUILD_MODNAME="a"')
    assert files_of(found) == ["a.c"]


def test_own_commands_find_their_variables(toy: Workshop) -> None:
    toy.write({"sub/a.c": "int a;\n", "sub/b.c": "int b;\n"})
    lines = (
        'test "$HOST" = ' + TRIPLE,
        "$CC -DJ=$JOBS -c a.c",
        "$AR r x.a a.o && ${CROSS_COMPILE}gcc -c b.c",
    )
    found = toy.captured(commands=lines, folder="sub")
    assert (found.system, found.exit, files_of(found)) == ("commands", 0, ["sub/a.c", "sub/b.c"])
    assert flags_of(found, "sub/a.c") == ("-DJ=1",)
    assert found.commands[0][1].cwd == "sub"


def test_a_build_that_ends_with_an_error_gives_what_it_compiled(toy: Workshop) -> None:
    toy.write(
        {"Makefile": "all: a.o b.o c.o\n", "a.c": "int a;\n", "b.c": "int b = nothing;\n", "c.c": "int c;\n"}
    )
    found = toy.captured()
    assert files_of(found) == ["a.c", "c.c"]
    assert (found.exit, found.cause, found.skipped) == (2, "error", {"failed": 1})
    assert "nothing" in found.tail


@pytest.mark.parametrize(
    ("lines", "command", "said"),
    [
        (("echo reason; exit 7",), "echo reason; exit 7", "reason"),
        (("true", "echo later; false"), "echo later; false", "later"),
        (("true",), "true", "compiled no C file"),
    ],
)
def test_a_build_without_a_unit_is_data(
    toy: Workshop, lines: tuple[str, ...], command: str, said: str
) -> None:
    toy.write({"a.c": ""})
    failure = toy.failed(commands=lines)
    assert (failure.project, failure.isa, failure.cause) == ("toy", FOREIGN, "error")
    assert failure.command == command
    assert said in failure.tail


def test_nothing_to_build_with_is_data(toy: Workshop) -> None:
    toy.write({"a.c": ""})
    assert "build.commands" in toy.failed().tail


FILL = "i=0; while :; do i=$((i+1)); head -c 900000 /dev/zero > {}/$i; sleep 0.01; done"


def limited(toy: Workshop, **limits: float) -> Workshop:
    toy.builder = replace(toy.builder, limits=LIMITS.model_copy(update=limits))
    return toy


@pytest.mark.parametrize(
    ("lines", "limits", "cause"),
    [
        (("bomb() { bomb | bomb & }; bomb; sleep 60",), {"processes": 60}, "processes"),
        (("yes",), {"disk_mib": 8}, "output"),
        ((FILL.format("$PWD"),), {"disk_mib": 8}, "disk"),
        ((FILL.format("/dev/shm"),), {"disk_mib": 8}, "disk"),
        (("setsid sleep 60 & sleep 60",), {"time_s": 1.0}, "timeout"),
    ],
)  # fmt: skip
def test_a_build_without_bounds_costs_itself_alone(
    toy: Workshop, lines: tuple[str, ...], limits: dict[str, float], cause: str
) -> None:
    toy.write({"a.c": ""})
    failure = limited(toy, **limits).failed(commands=lines)
    assert failure.cause == cause


def test_the_sandbox_has_no_network_and_no_way_out(toy: Workshop, tmp_path: Path) -> None:
    toy.write({"a.c": "int a;\n"})
    lines = (
        "test \"$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')\" = lo",
        "! touch /usr/x && ! touch /etc/x && ! touch /x",
        f"! touch {tmp_path}/x && ! test -e {Path.home()}/.ssh",
        '! touch /asmtrain/bin/x && ! sh -c "echo > /asmtrain/bin/gcc"',
        'test "$HOME" = /home/build && touch $HOME/x /tmp/x /dev/shm/x && test "$PWD" = /build/toy',
        "test $(hostname) = sandbox || test ! -x /bin/hostname",
        "$CC -c a.c",
    )
    found = toy.captured(commands=lines)
    assert (found.exit, files_of(found)) == (0, ["a.c"]), found.tail


def test_links_to_where_the_build_saw_its_folder_are_followed(toy: Workshop) -> None:
    toy.write({"inc/a.h": "#define A 1\n", "sub/a.c": '#include "a.h"\nint a = A;\n'})
    lines = (
        "ln -s $PWD/inc/a.h sub/a.h; ln -s /etc/passwd sub/stolen.c; ln -s $PWD/inc sub/inc",
        "$CC -c sub/a.c; echo 'int g;' > gone.c; $CC -c gone.c; rm gone.c",
        "echo 'int s;' > s.c; $CC -c s.c; ln -sf /etc/passwd s.c; $CC -E -x c sub/stolen.c > x.i; true",
    )
    found = toy.captured(commands=lines)
    assert files_of(found) == ["sub/a.c"]
    assert found.skipped == {"gone": 2}
    assert os.readlink(found.root / "sub/a.h") == "../inc/a.h"
    compiles(found, f"{TRIPLE}-gcc")


def test_without_a_sandbox_it_builds_where_the_tree_lies(toy: Workshop) -> None:
    toy.write(MAKE)
    toy.builder = replace(toy.builder, sandbox="none")
    found = toy.captured()
    assert files_of(found) == ["a.c", "b.c", "table.c"]
    assert found.skipped == {"assembler": 1, "host": 1}
    assert flags_of(found, "a.c") == ("-Iinc", "-DX=1")


def test_without_bubblewrap_it_refuses(
    toy: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("gcc", f"{TRIPLE}-gcc"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    toy.write(MAKE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="bubblewrap") as caught:
        toy.capture()
    assert "sandbox: none" in caught.value.remedy


def test_without_the_compiler_it_names_the_package(toy: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match=FOREIGN) as caught:
        toy.capture()
    assert f"gcc-{TRIPLE}" in caught.value.remedy


def test_a_cache_that_cannot_be_written_is_named(toy: Workshop, tmp_path: Path) -> None:
    toy.write(MAKE)
    (tmp_path / "file").write_text("")
    toy.builder = replace(toy.builder, cache=tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        toy.capture()


def test_a_wrong_folder_is_the_users_mistake(toy: Workshop) -> None:
    toy.write(MAKE)
    with pytest.raises(ConfigError, match="absent"):
        toy.capture(folder="absent")


def captures_of(toy: Workshop, *isas: str, **build: object) -> capture_module.ProjectCapture:
    return capture_project(toy.project(**build), toy.tree, isas, content_id="1", builder=toy.builder)


def test_a_project_is_built_for_each_instruction_set(toy: Workshop) -> None:
    toy.write(MAKE)
    found = captures_of(toy, FOREIGN, MACHINE)
    assert [(isa, item.mode, item.origin) for isa, item in found.captures.items()] == [
        (FOREIGN, "cross", FOREIGN),
        (MACHINE, "cross", MACHINE),
    ]
    units = units_of_captures("toy", found.captures)
    assert [(unit.file, sorted(unit.commands)) for unit in units] == [
        (file, sorted((FOREIGN, MACHINE))) for file in ("a.c", "b.c", "table.c")
    ]
    assert found.failures == ()


NATIVE_ONLY = {
    "Makefile": "all: a.o b.o\n%.o: %.c\n\tgcc -msse2 -DX -c $<\n"
    if MACHINE == "x86_64"
    else "all: a.o b.o\n%.o: %.c\n\tgcc -mcmodel=small -DX -c $<\n",
    "a.c": "int a;\n",
    "b.c": "int b;\n",
}


def test_where_no_cross_build_gives_units_native_commands_are_retargeted(toy: Workshop) -> None:
    toy.write(NATIVE_ONLY)
    found = captures_of(toy, FOREIGN, MACHINE)
    assert {isa: (item.mode, item.origin) for isa, item in found.captures.items()} == {
        FOREIGN: ("native", MACHINE),
        MACHINE: ("native", MACHINE),
    }
    assert flags_of(found.captures[FOREIGN], "a.c") == ("-DX",)
    assert len(flags_of(found.captures[MACHINE], "a.c")) == 2
    assert {(failure.isa, failure.mode) for failure in found.failures} == {
        (FOREIGN, "cross"),
        (MACHINE, "cross"),
    }
    compiles(found.captures[FOREIGN], f"{TRIPLE}-gcc")


def test_one_instruction_set_that_fails_takes_the_native_commands(toy: Workshop) -> None:
    toy.write(
        {"Makefile": f"all: check a.o\ncheck:\n\ttest $(CC) != {TRIPLE}-gcc\na.o: check\n", "a.c": "int a;\n"}
    )
    found = captures_of(toy, FOREIGN, MACHINE)
    assert {isa: (item.mode, item.origin) for isa, item in found.captures.items()} == {
        FOREIGN: ("native", MACHINE),
        MACHINE: ("cross", MACHINE),
    }


def test_a_native_build_is_asked_for_by_the_config(toy: Workshop) -> None:
    toy.write({"Makefile": "all: a.o\n", "a.c": "int a;\n"})
    found = captures_of(toy, FOREIGN, cross=False)
    assert found.captures[FOREIGN].mode == "native"
    assert found.captures[FOREIGN].summary()["num_commands"] == 1


def test_a_project_that_cannot_be_built_has_only_failures(toy: Workshop) -> None:
    toy.write({"Makefile": "all:\n\tfalse\n"})
    found = captures_of(toy, FOREIGN)
    assert found.captures == {}
    assert [failure.mode for failure in found.failures] == ["cross", "native"]
    assert units_of_captures("toy", found.captures) == []


@needs_program("bear")
def test_bear_finds_the_same_commands(toy: Workshop, tmp_path: Path) -> None:
    toy.write(MAKE)
    ours = toy.captured(MACHINE, mode="native")
    copy = tmp_path / "copy"
    shutil.copytree(toy.tree, copy)
    subprocess.run(["bear", "--", "make"], cwd=copy, check=True, capture_output=True, timeout=60)
    theirs = commands_of(read_database(copy / "compile_commands.json"), mount=str(copy), root=copy)
    assert [(file, c.cwd, c.input, c.flags) for file, c in theirs.units] == [
        (file, c.cwd, c.input, c.flags) for file, c in ours.commands
    ]


@pytest.fixture
def database(toy: Workshop) -> Path:
    toy.write({"inc/a.h": "#define A 1\n", "src/a.c": '#include "a.h"\nint a = A;\n'})
    return toy.tree / "compile_commands.json"


def with_database(toy: Workshop) -> Project:
    return Project(
        name="toy", version="1", license="MIT", source=PathSource(kind="path", path=toy.tree),
        compile_commands="compile_commands.json",
    )  # fmt: skip


def test_a_database_of_another_machine_is_found_in_the_tree(toy: Workshop, database: Path) -> None:
    entry = {"directory": "/home/u/toy/out", "file": "/home/u/toy/src/a.c",
             "command": "cc -msse2 -I/home/u/toy/inc -O2 -c /home/u/toy/src/a.c -o a.o"}  # fmt: skip
    gone = {"directory": "/home/u/toy/out", "file": "x.c", "command": "cc -c x.c"}
    database.write_text(json.dumps([entry, gone]))
    (unit,) = units_of_database(with_database(toy), toy.tree, [FOREIGN, MACHINE])
    assert (unit.file, sorted(unit.commands)) == ("src/a.c", sorted([FOREIGN, MACHINE]))
    command = unit.commands[FOREIGN]
    assert (command.cwd, command.input, command.flags) == ("out", "../src/a.c", ("-I{root}/inc",))


def test_a_database_without_a_file_of_the_source_is_refused(toy: Workshop, database: Path) -> None:
    database.write_text(json.dumps([{"directory": "/x", "file": "x.c", "command": "cc -c x.c"}]))
    with pytest.raises(SourceError, match="toy"):
        units_of_database(with_database(toy), toy.tree, [MACHINE])
