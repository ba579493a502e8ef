"""A corpus at any place: folders, and a real S3 server spoken to over HTTP."""

import os
import subprocess
from pathlib import Path

import pytest
from upath import UPath

from corpus_builder.errors import ConfigError, EmptyCorpus, OutputError, ShardError
from corpus_builder.shards import (
    CorpusIndex,
    load_index,
    read_shard,
    read_split,
    shard_paths,
    verify_shards,
    write_index,
    write_shard,
)
from corpus_builder.storage import Location, atomic_output, location, publish
from object_store import KEYS, forget_connections
from samples import a_record, an_index


def stage(folder: Path, **splits: int) -> CorpusIndex:
    """A finished corpus in a staging folder: shards of so many functions, a licence text, the index."""
    entries = [
        write_shard(
            folder / f"{split}-00000.tar.zst",
            split,
            [a_record(f"{split}{i}", split=split) for i in range(number)],
            zstd_level=3,
        )
        for split, number in splits.items()
    ]
    with atomic_output(folder / "licenses" / "demo" / "COPYING") as stream:
        stream.write(b"do what you like\n")
    with atomic_output(folder / "failures.jsonl"):
        pass
    index = an_index(entries)
    write_index(folder, index)
    return index


def names_at(target: Location) -> list[str]:
    return sorted(str(path)[len(str(target)) :].lstrip("/") for path in target.glob("**/*") if path.is_file())


@pytest.fixture(params=["folder", "file", "s3", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        return location(f"{request.getfixturevalue('s3')}/some/corpus")
    if request.param == "memory":
        return location(f"memory://{tmp_path.name}/corpus")
    prefix = "file://" if request.param == "file" else ""
    return location(f"{prefix}{tmp_path}/out/corpus")


def test_a_published_corpus_reads_as_it_was_written(target: Location, tmp_path: Path) -> None:
    index = stage(tmp_path / "staging", train=30, test=5)
    publish(tmp_path / "staging", target)
    assert not (tmp_path / "staging").exists()
    assert load_index(target) == index
    assert list(read_split(target, "train")) == [a_record(f"train{i}") for i in range(30)]
    assert [path.name for path in shard_paths(target, "test")] == ["test-00000.tar.zst"]
    assert (target / "licenses" / "demo" / "COPYING").read_bytes() == b"do what you like\n"
    assert verify_shards(target) == []


def test_a_new_corpus_replaces_the_old_one_and_nothing_else(target: Location, tmp_path: Path) -> None:
    stage(tmp_path / "first", train=5, test=5)
    with atomic_output(tmp_path / "first" / "licenses" / "gone" / "COPYING") as stream:
        stream.write(b"of a project that is dropped\n")
    publish(tmp_path / "first", target)
    mine = target / "work" / "notes-1.tar.txt"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    second = stage(tmp_path / "second", train=7)
    publish(tmp_path / "second", target)
    assert load_index(target) == second
    assert names_at(target) == [
        "failures.jsonl",
        "index.json",
        "licenses/demo/COPYING",
        "train-00000.tar.zst",
        "work/notes-1.tar.txt",
    ]


def test_damage_at_the_place_is_found(target: Location, tmp_path: Path) -> None:
    stage(tmp_path / "staging", train=30, test=5)
    publish(tmp_path / "staging", target)
    shard = target / "train-00000.tar.zst"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    (target / "test-00000.tar.zst").unlink()
    with pytest.raises(ShardError, match=r"train-00000\.tar\.zst is damaged: it ends too early"):
        list(read_shard(shard))
    with pytest.raises(ShardError, match=r"test-00000\.tar\.zst is missing"):
        list(read_split(target, "test"))
    assert verify_shards(target) == [
        "train-00000.tar.zst: sha256 differs from the index",
        "test-00000.tar.zst: missing",
    ]


def test_a_place_without_a_corpus_is_told_as_such(target: Location) -> None:
    with pytest.raises(ShardError, match="holds no corpus"):
        load_index(target)


def test_an_empty_split_is_named(target: Location, tmp_path: Path) -> None:
    stage(tmp_path / "staging", train=1)
    publish(tmp_path / "staging", target)
    with pytest.raises(EmptyCorpus, match="no function in split 'valid'"):
        shard_paths(target, "valid")


def test_the_index_is_absent_until_the_rest_is_there(s3: str, tmp_path: Path) -> None:
    """What a reader finds whenever it looks: no corpus, or a whole one."""
    target = location(f"{s3}/corpus")
    stage(tmp_path / "first", train=5)
    publish(tmp_path / "first", target)
    stage(tmp_path / "second", train=7)
    shard = tmp_path / "second" / "train-00000.tar.zst"
    shard.unlink()
    os.symlink("/proc/self/mem", shard)  # opens, but cannot be read, not even by root
    with pytest.raises(OutputError, match="cannot put the corpus into s3://"):
        publish(tmp_path / "second", target)
    with pytest.raises(ShardError, match="holds no corpus"):
        load_index(target)
    assert (tmp_path / "second" / "index.json").exists()


def test_a_missing_bucket_is_one_line(s3: str, tmp_path: Path) -> None:
    stage(tmp_path / "staging", train=1)
    with pytest.raises(OutputError, match="cannot put the corpus into s3://no-such-bucket") as caught:
        publish(tmp_path / "staging", location("s3://no-such-bucket/corpus"))
    assert "bucket" in caught.value.remedy
    with pytest.raises(ShardError, match="holds no corpus"):
        load_index(location("s3://no-such-bucket/corpus"))


@pytest.mark.parametrize("setting", ["no credentials", "no server"])
def test_what_hinders_a_connection_is_one_line(
    s3: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    else:
        for key in KEYS:
            monkeypatch.delenv(key)
    forget_connections()
    target = location(f"{s3}/corpus")
    stage(tmp_path / "staging", train=1)
    for action in (lambda: load_index(target), lambda: list(read_shard(target / "train-00000.tar.zst"))):
        with pytest.raises(ShardError, match="cannot read s3://") as caught:
            action()
        assert "credentials" in caught.value.remedy
    with pytest.raises(OutputError, match="cannot put the corpus into s3://"):
        publish(tmp_path / "staging", target)
    assert (tmp_path / "staging" / "train-00000.tar.zst").exists()


def test_a_url_that_nothing_speaks_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot use nonsense://place") as caught:
        location("nonsense://place")
    assert "s3fs" in caught.value.remedy


def test_paths_stay_paths_and_urls_keep_their_slashes() -> None:
    assert location("runs/demo") == Path("runs/demo")
    assert location(Path("runs/demo")) == Path("runs/demo")
    assert location("file:///runs/demo") == Path("/runs/demo")
    assert isinstance(location("memory://a/b"), UPath)
    assert str(location("memory://a/b") / "index.json") == "memory://a/b/index.json"


def test_publishing_to_another_file_system_copies(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    target = shared / tmp_path.name
    try:
        index = stage(tmp_path / "staging", train=3)
        publish(tmp_path / "staging", target)
        assert load_index(target) == index
        assert verify_shards(target) == []
        assert not (tmp_path / "staging").exists()
    finally:
        subprocess.run(["rm", "-rf", str(target)], check=True)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    stage(tmp_path / "staging", train=1)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cannot put the corpus into .*out"):
        publish(tmp_path / "staging", tmp_path / "out")
    assert (tmp_path / "staging" / "train-00000.tar.zst").exists()
