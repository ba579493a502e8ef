"""Files nobody vouches for: limits on time and memory, a sandbox, and one file's harm is its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asmtrain import untrusted
from asmtrain.binary import BinaryFunction, functions_in
from asmtrain.errors import BinaryError
from asmtrain.untrusted import Job, read_all, read_untrusted

SOURCE = (Path(__file__).parent / "references.c").read_text()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (tmp_path / "unit.c").write_text(SOURCE)
    subprocess.run(["gcc", "-w", "-O1", "-c", "unit.c", "-o", "unit.o"], cwd=tmp_path, check=True)
    return tmp_path / "unit.o"


def test_a_child_gives_what_the_reader_gives(binary: Path) -> None:
    assert read_untrusted(binary) == functions_in(binary)


def test_a_bad_file_costs_itself_alone(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.o").write_bytes(binary.read_bytes()[:2000])
    (tmp_path / "prose").write_text("once upon a time")
    os.mkfifo(tmp_path / "pipe")
    paths = [
        binary,
        tmp_path / "cut.o",
        tmp_path,
        tmp_path / "none",
        tmp_path / "prose",
        tmp_path / "pipe",
        binary,
    ]
    results = [result for _, result in read_all([Job(path) for path in paths])]
    assert results[0] == results[-1] == functions_in(binary)
    messages = [result.message for result in results if isinstance(result, BinaryError)]
    expected = ("damaged", "a folder", "No such file", "names none", "no regular file")
    assert len(messages) == len(expected)
    for path, message, words in zip(paths[1:], messages, expected, strict=False):
        assert words in message
        assert str(path) in message


def test_a_bare_function_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my function\u00e9.s"
    path.write_text("sub sp, sp, 16\nstr w0, [sp, 12]\nret\n")
    (function,) = read_untrusted(path)
    assert function == functions_in(path)[0]
    assert function.name == "my function\u00e9"


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as stream:
        stream.truncate(2 << 30)
    with pytest.raises(BinaryError, match="2,147,483,648 bytes"):
        read_untrusted(tmp_path / "huge")
    with pytest.raises(BinaryError, match="more than the 1,000 that are read"):
        read_untrusted(Path(sys.executable), max_bytes=1000)


HANG = """
import asmtrain.binary, asmtrain.untrusted
def slow(path, **_):
    if b"HANG" in path.read_bytes():
        while True:
            pass
    return [asmtrain.binary.BinaryFunction("f", "x86_64", "ret\\n")]
asmtrain.untrusted.functions_in = slow
asmtrain.untrusted._main()
"""
CRASH = HANG.replace("while True:\n            pass", "__import__('os').abort()")
MEMORY = HANG.replace("while True:\n            pass", "x = bytearray(1 << 42)")


@pytest.mark.parametrize(
    ("program", "words"), [(HANG, "takes longer than"), (CRASH, "ended with"), (MEMORY, "more than")]
)
def test_a_hang_a_crash_and_greed_end_the_child_alone(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child runs a reader that goes astray in one file: the real limits of the real process act."""
    (tmp_path / "good").write_text("GOOD")
    (tmp_path / "bad").write_text("HANG")
    monkeypatch.setattr(untrusted, "_PROGRAM", ["-c", program])
    jobs = [Job(tmp_path / name) for name in ("good", "bad", "good")]
    results = [result for _, result in read_all(jobs, seconds=1)]
    assert results[0] == results[2] == [BinaryFunction("f", "x86_64", "ret\n")]
    assert isinstance(results[1], BinaryError)
    assert words in results[1].message


def test_the_child_sees_neither_home_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not untrusted._has_sandbox():
        pytest.skip("needs bubblewrap and user namespaces")
    secret = tmp_path / "secret"
    secret.write_text("s")
    program = f"""
import os, socket, sys
found = [os.path.exists({str(secret)!r}), len(socket.if_nameindex())]
sys.exit(f"seen {{found}}")
"""
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(untrusted, "_PROGRAM", ["-c", program])
    with pytest.raises(BinaryError, match=r"seen \[False, [01]\]"):
        read_untrusted(tmp_path / "file")
