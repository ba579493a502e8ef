"""The noting compiler: the real one's behaviour to the byte, and a log of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.ccwrapper import expanded, install, searched, split_words

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")


class Wrapped:
    """A folder with a wrapped compiler and its log."""

    def __init__(self, folder: Path, real: str) -> None:
        self.log = folder / "calls.jsonl"
        self.path = folder / "bin" / "gcc"
        python = os.path.realpath(sys.executable)
        install(
            str(folder / "bin"), {"gcc": real}, python=python, seen_at=str(folder / "bin"), log=str(self.log)
        )

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def wrapped(tmp_path: Path) -> Wrapped:
    assert GCC is not None
    return Wrapped(tmp_path, GCC)


def result(program: str | Path, argv: list[str], cwd: Path, stdin: str = "") -> tuple[int, bytes, bytes]:
    # An empty environment is a C locale, in which Python sets a variable that changes gcc's quotes.
    env = {"PATH": os.defpath}
    done = subprocess.run([program, *argv], cwd=cwd, input=stdin.encode(), capture_output=True, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("argv", "stdin"),
    [
        (["--version"], ""),
        (["-v"], ""),
        (["-dumpmachine"], ""),
        (["-print-prog-name=ld"], ""),
        (["-E", "ok.c"], ""),
        (["-E", "-dM", "-x", "c", "-"], "#define A 1\n"),
        (["-x", "c", "-", "-S", "-o", "-"], "int f(void) { return 1; }\n"),
        (["-S", "-o", "-", "ok.c"], ""),
        (["-c", "bad.c"], ""),
        (["-Wall", "-c", "warns.c"], ""),
        (["-c", "absent.c"], ""),
        (["-c", "@absent"], ""),
        (["--no-such-option"], ""),
        ([], ""),
    ],
    ids=" ".join,
)
def test_output_and_exit_are_the_compilers_own(
    wrapped: Wrapped, tmp_path: Path, argv: list[str], stdin: str
) -> None:
    (tmp_path / "ok.c").write_text("int f(void) { return 1; }\n")
    (tmp_path / "bad.c").write_text("int f(void) { return nothing; }\n")
    (tmp_path / "warns.c").write_text("int f(void) { int unused; }\n")
    assert GCC is not None
    ours = result(wrapped.path, argv, tmp_path, stdin)
    theirs = result(GCC, argv, tmp_path, stdin)
    assert ours[:2] == theirs[:2]
    assert without_temporary_names(ours[2]) == without_temporary_names(theirs[2])
    assert [(entry["name"], entry["argv"], entry["exit"]) for entry in wrapped.entries()] == [
        ("gcc", argv, theirs[0])
    ]


def without_temporary_names(text: bytes) -> list[bytes]:
    return [b"/tmp/cc" if word.startswith(b"/tmp/cc") else word for word in text.split()]


def test_a_response_file_is_noted_as_its_words(wrapped: Wrapped, tmp_path: Path) -> None:
    (tmp_path / "a file.c").write_text("int f(void) { return X; }\n")
    (tmp_path / "inner").write_text("-DX=1\n")
    (tmp_path / "outer").write_text("-c 'a file.c' @inner -o\n\"a.o\"")
    assert result(wrapped.path, ["@outer"], tmp_path)[0] == 0
    assert (tmp_path / "a.o").is_file()
    assert wrapped.entries()[0]["argv"] == ["-c", "a file.c", "-DX=1", "-o", "a.o"]


def test_the_signal_that_ended_the_compiler_ends_the_wrapper(tmp_path: Path) -> None:
    real = tmp_path / "crashing"
    real.write_text("#!/bin/sh\nkill -SEGV $$\n")
    real.chmod(0o755)
    crashing = Wrapped(tmp_path, str(real))
    assert result(crashing.path, ["-c", "x.c"], tmp_path)[0] == -signal.SIGSEGV
    assert crashing.entries()[0]["exit"] == -signal.SIGSEGV


def test_a_stop_by_make_reaches_the_compiler(tmp_path: Path) -> None:
    real = tmp_path / "slow"
    real.write_text(f"#!/bin/sh\ntrap 'echo stopped > {tmp_path}/out; exit 3' TERM\necho > {tmp_path}/up\n"
                    "while :; do sleep 0.05; done\n")  # fmt: skip
    real.chmod(0o755)
    slow = Wrapped(tmp_path, str(real))
    process = subprocess.Popen([slow.path])
    deadline = time.monotonic() + 10
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(10) == 3
    assert (tmp_path / "out").read_text() == "stopped\n"


def test_a_log_that_cannot_be_written_changes_nothing(wrapped: Wrapped, tmp_path: Path) -> None:
    wrapped.log.mkdir()
    assert result(wrapped.path, ["-dumpversion"], tmp_path)[0] == 0


def test_parallel_calls_do_not_mix(wrapped: Wrapped, tmp_path: Path) -> None:
    long = [f"-DNAME_{number}=" + "x" * 200 for number in range(100)]
    calls = [
        subprocess.Popen([wrapped.path, "-dumpversion", f"-DCALL={n}", *long], stdout=subprocess.DEVNULL)
        for n in range(20)
    ]
    assert [call.wait() for call in calls] == [0] * 20
    assert sorted(entry["argv"][1] for entry in wrapped.entries()) == sorted(f"-DCALL={n}" for n in range(20))


WORDS = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1), max_size=5)


@given(WORDS)
def test_quoted_words_come_back(words: list[str]) -> None:
    text = " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    assert split_words(text) == words


def test_a_response_file_that_names_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").write_text("-DX @loop")
    assert expanded(["@loop"], str(tmp_path))[-1] == "@loop"


def test_folders_named_in_the_environment_are_noted_as_arguments() -> None:
    environment = {"CPATH": "a::b", "C_INCLUDE_PATH": "/c", "PATH": "/bin"}
    assert searched(environment) == ["-Ia", "-I.", "-Ib", "-isystem/c"]
    assert searched({"CPATH": ""}) == []
