"""`asmtrain embed`: vectors of all functions of any files; what cannot be read costs one line."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from asmtrain import cli, embed, encoder
from asmtrain.binary import functions_in
from asmtrain.encoder import embed_texts, load_encoder
from asmtrain.errors import ModelError
from functions import c_functions, write_unit


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Assembler text, an object, a stripped library and an archive of the same functions."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("files")
    write_unit(folder / "unit.c", c_functions("embedded", 8, seed=1))
    for command in (
        "gcc -O2 -fPIC -S unit.c",
        "gcc -c unit.s",
        "gcc -shared unit.s -o unit.so",
        "strip unit.so",
        "ar rcs unit.a unit.o",
    ):
        subprocess.run(command.split(), cwd=folder, check=True)
    return [folder / name for name in ("unit.s", "unit.o", "unit.so", "unit.a")]


def test_every_function_has_its_vector_and_its_place(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ["embed", *map(str, files), "--model", str(model), "--output", str(output), "--json"]
    assert cli.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (output / "functions.jsonl").read_text().splitlines()]
    vectors = np.load(output / "vectors.npy")
    meta = json.loads((output / "embedding.json").read_text())
    assert [line["row"] for line in lines] == list(range(len(vectors)))
    assert (meta["count"], meta["dim"]) == vectors.shape == (32, vectors.shape[1])
    assert meta["model_sha256"] == summary["model_sha256"] == load_encoder(model).sha256
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    functions = [function for path in files for function in functions_in(path)]
    expected = embed_texts(load_encoder(model), [function.view for function in functions])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for line, function in zip(lines, functions, strict=True):
        assert (line["name"], line["address"], line["size"]) == (
            function.name,
            function.address,
            function.size,
        )
        assert line["file_sha256"] == hashes[line["file"]]
        assert line["member"] == ("unit.o" if line["file"].endswith(".a") else "")
    # The same function has the same vector whichever file it came from, here on x86-64.
    assert summary["num_bodies"] == len({function.view for function in functions})
    assert summary["num_bodies"] <= 10


def test_bad_files_cost_a_line_each_and_exit_2(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.o").write_bytes(files[1].read_bytes()[:1500])
    (tmp_path / "empty").touch()
    (tmp_path / "bad\nname.a").write_bytes(b"!<arch>\nnonsense")
    with open(tmp_path / "huge", "wb") as stream:
        stream.truncate(2 << 30)
    foreign = bytearray(files[1].read_bytes())
    foreign[18:20] = (8).to_bytes(2, "little")
    (tmp_path / "mips.o").write_bytes(foreign)
    bad = [tmp_path / name for name in ("cut.o", "empty", "bad\nname.a", "huge", "mips.o", "none")] + [
        tmp_path
    ]
    given = [bad[0], files[1], *bad[1:]]
    output = tmp_path / "out"
    arguments = ["embed", *map(str, given), "--model", str(model), "--output", str(output)]
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "7 of 8 files could not be read"
    assert len(lines) == len(bad) + 1
    for line, words in zip(
        lines,
        ("damaged", "is empty", "bad?name.a is damaged", "2,147,483,648", "EM_MIPS", "No such", "a folder"),
        strict=False,
    ):
        assert words in line
    assert len(np.load(output / "vectors.npy")) == 8


def test_nothing_is_written_where_nothing_was_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ["embed", str(tmp_path / "none"), "--model", str(model), "--output", str(output)]
    assert cli.main(arguments) == 2
    assert not output.exists()


def test_large_files_are_shared_among_cores(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_SHARED_BYTES", 1000)
    monkeypatch.setattr(embed.os, "sched_getaffinity", lambda _: {0, 1, 2})
    for path, result in zip(files, embed.read_files(files), strict=True):
        assert isinstance(result, embed.FileFunctions)
        assert result.functions == functions_in(path)


def test_without_a_shipped_model_one_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "__file__", str(tmp_path / "encoder.py"))
    with pytest.raises(ModelError, match=r"shipped.*\n.*--model"):
        encoder.default_model()
