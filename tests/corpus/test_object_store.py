"""A corpus built into a real S3 server, read from there, and whole or absent there whenever a build dies."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from corpus_builder.cli import main
from corpus_builder.errors import ShardError
from corpus_builder.pipeline import build
from corpus_builder.plan import Progress
from corpus_builder.shards import load_index
from corpus_builder.storage import Location, location
from object_store import forget_connections
from samples import ROOT, TINY_FUNCTIONS, load_corpus_config, write_config

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _native_gcc(need: Callable[..., None]) -> None:
    need("gcc")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def hashes(corpus: Location) -> dict[str, str]:
    """Every file of a corpus, wherever it lies."""
    forget_connections()  # and with them remembered listings
    files = [path for path in corpus.glob("**/*") if path.is_file() and "/work/" not in str(path)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def many_functions(folder: Path, number: int) -> dict[str, Path]:
    folder.mkdir()
    for i in range(number):
        (folder / f"u{i:02d}.c").write_text(f"int f{i}(int x) {{ return x * {i + 3} ^ {7 * i}; }}\n")
    return {"many": folder}


def test_a_bucket_holds_the_same_bytes_as_a_folder(
    tmp_path: Path, s3: str, ray_address: str, call: Call
) -> None:
    work = tmp_path / "work"
    path = write_config(tmp_path, work=str(work), shards={"samples": 3})
    status, _, _ = call("build", path, "--address", ray_address, "--set", f"output={s3}/some/corpus")
    assert status == 0
    stored = hashes(location(f"{s3}/some/corpus"))
    assert [name for name in sorted(stored) if "train" in name] == [
        f"train-0000{i}.tar.zst" for i in range(3)
    ]
    assert list((work / "parts" / "tiny").glob("*.part"))
    assert not (work / "shards").exists()
    local = write_config(tmp_path, shards={"samples": 3})
    build(load_corpus_config(local), address=ray_address)
    assert hashes(tmp_path / "corpus") == stored


def test_the_commands_read_from_the_url(tmp_path: Path, s3: str, ray_address: str, call: Call) -> None:
    url = f"{s3}/corpus"
    path = write_config(tmp_path, output=url, work=str(tmp_path / "work"))
    assert call("build", path, "--address", ray_address)[0] == 0
    status, out, err = call("verify", url)
    assert (status, err) == (0, "")
    assert f"{url} is sound" in out
    status, out, _ = call("stats", url, "--json")
    assert (status, json.loads(out)["totals"]["functions"]) == (0, len(TINY_FUNCTIONS))
    status, out, _ = call("show", url, "crc32")
    assert status == 0
    assert "tiny 1, checksum.c:22  MIT  train" in out
    own = ["--cache", tmp_path / "cache", "--toolchains", ROOT / "configs" / "toolchains.yaml"]
    status, out, _ = call("verify", url, "--rebuild", 3, *own)
    assert status == 0
    assert "3 functions compiled again, byte for byte; 0 skipped" in out


def test_a_finished_build_is_not_repeated(tmp_path: Path, s3: str, ray_address: str) -> None:
    config = load_corpus_config(write_config(tmp_path, output=f"{s3}/corpus", work=str(tmp_path / "work")))
    first = build(config, address=ray_address)
    assert build(config, address="a Ray that is not needed") == first
    (config.output / "train-00000.tar.zst").unlink()
    forget_connections()
    assert build(config, address="a Ray that is not needed") == first
    assert set(hashes(config.output)) == {"index.json", "failures.jsonl", "train-00000.tar.zst"}


def test_damage_in_the_bucket_is_found(tmp_path: Path, s3: str, ray_address: str, call: Call) -> None:
    url = f"{s3}/corpus"
    config = load_corpus_config(write_config(tmp_path, output=url, work=str(tmp_path / "work")))
    build(config, address=ray_address)
    shard = config.output / "train-00000.tar.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    status, _, err = call("verify", url)
    assert status == 2
    assert "error: train-00000.tar.zst: sha256 differs from the index" in err


def test_a_url_without_a_work_folder_is_refused(tmp_path: Path, s3: str, call: Call) -> None:
    status, _, err = call("build", write_config(tmp_path, output=f"{s3}/corpus"))
    assert status == 2
    assert "`work` is required where `output` is a URL" in err


def test_a_build_killed_while_it_publishes_leaves_no_half_corpus(
    tmp_path: Path, s3: str, s3_server: str, ray_address: str
) -> None:
    """An earlier corpus is there as well: its shards may be, its index may not."""
    projects = many_functions(tmp_path / "project", 40)
    work, url = str(tmp_path / "work"), f"{s3}/corpus"
    settings = {"projects": projects, "output": url, "work": work, "levels": ["O1"]}
    config = load_corpus_config(write_config(tmp_path, **settings))
    build(config, address=ray_address)
    path = write_config(tmp_path, shards={"samples": 1}, **settings)
    client = boto3.client("s3", endpoint_url=s3_server)

    def names() -> set[str]:
        found = client.list_objects_v2(Bucket=s3.removeprefix("s3://")).get("Contents", [])
        return {item["Key"].rpartition("/")[2] for item in found}

    caught = False
    for _ in range(5):  # one that was done before the signal is no proof
        command = [sys.executable, "-m", "corpus_builder.cli", "build", str(path), "--address", ray_address]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while "train-00001.tar.zst" not in names() and time.monotonic() < deadline:
                assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        if "index.json" not in names():
            caught = True
            break
        client.delete_object(Bucket=s3.removeprefix("s3://"), Key="corpus/train-00001.tar.zst")
        (tmp_path / "work" / "finished.json").unlink(missing_ok=True)
    assert caught, "never killed in time"
    forget_connections()
    with pytest.raises(ShardError, match="holds no corpus"):
        load_index(location(url))
    states: list[Progress] = []
    build(load_corpus_config(path), address="a Ray that is not needed", progress=states.append)
    assert max(state.reused for state in states) == 40
    whole = load_corpus_config(
        write_config(tmp_path, shards={"samples": 1}, **{**settings, "output": str(tmp_path / "whole")})
    )
    build(whole, address="a Ray that is not needed")
    assert hashes(location(url)) == hashes(tmp_path / "whole")
    assert len(hashes(tmp_path / "whole")) == 42
