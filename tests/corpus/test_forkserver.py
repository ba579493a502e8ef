"""Calls of one program from one process: what they give is what plain calls give."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from corpus_builder import forkserver
from corpus_builder.forkserver import Call, script

SOURCE = "int f(int x) { return x + 1; }\nconst char *file(void) { return __FILE__; }\n"


def calls_of(argvs: list[list[str]], cwd: Path, folder: Path) -> list[Call]:
    folder.mkdir()
    return [
        Call(argv, cwd, folder / f"{number}.done", folder / f"{number}.out", folder / f"{number}.err")
        for number, argv in enumerate(argvs)
    ]


def run(calls: list[Call], folder: Path) -> str:
    """Run the calls' script; returns its text."""
    text = "\n".join(script(calls, folder))
    subprocess.run(["sh"], input=text, text=True, cwd=folder, check=False)
    return text


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A folder with a space in its name, and a unit in it."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "unit.c").write_text(SOURCE)
    return folder


@pytest.mark.parametrize("compiler", ["gcc", "clang-19"])
def test_forked_calls_give_what_plain_ones_give(
    compiler: str, unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    argvs = [
        [compiler, f"-{level}", "-w", '-DTEXT="a b"', "-S", "-o", "-", "unit.c"] for level in ("O0", "O2")
    ]
    forked = calls_of(argvs, unit, tmp_path / "forked")
    assert "LD_PRELOAD" in run(forked, tmp_path / "forked")
    monkeypatch.setattr(forkserver, "_library", lambda: None)
    plain = calls_of(argvs, unit, tmp_path / "plain")
    assert "LD_PRELOAD" not in run(plain, tmp_path / "plain")
    for one, other in zip(forked, plain, strict=True):
        assert one.done.exists()
        assert other.done.exists()
        assert one.output
        assert other.output
        assert one.output.read_bytes() == other.output.read_bytes() != b""


def test_the_first_failure_ends_the_calls_of_a_program_and_says_why(unit: Path, tmp_path: Path) -> None:
    argvs = [["gcc", "-S", "-o", "-", name] for name in ("unit.c", "gone.c", "unit.c")]
    calls = calls_of([*argvs, ["true"]], unit, tmp_path / "work")
    run(calls, tmp_path / "work")
    assert [call.done.exists() for call in calls] == [True, False, False, True]
    assert calls[1].errors
    assert "gone.c" in calls[1].errors.read_text()


def test_a_call_that_dies_is_a_failure_and_leaves_no_process(unit: Path, tmp_path: Path) -> None:
    """`kill -SEGV $$` in a shell that is forked from a loaded one: `$$` is the first shell's number."""
    calls = calls_of([["bash", "-c", "kill -SEGV $BASHPID"], ["bash", "-c", ":"]], unit, tmp_path / "work")
    run(calls, tmp_path / "work")
    assert [call.done.exists() for call in calls] == [False, False]


def test_a_program_that_takes_no_preloading_is_called_plainly(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    program = str(tmp_path / "hello")
    subprocess.run(["gcc", "-static", "-o", program, tmp_path / "hello.c"], check=True)
    calls = calls_of([[program], [program]], unit, tmp_path / "work")
    assert "LD_PRELOAD" not in run(calls, tmp_path / "work")
    assert [call.output and call.output.read_text() for call in calls] == ["hello\n", "hello\n"]


def test_without_a_c_compiler_calls_are_plain(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    assert forkserver._library.__wrapped__() is None
    assert not os.path.exists(tmp_path / "cache")
