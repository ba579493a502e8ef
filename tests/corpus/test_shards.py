import json
import os
import random
import resource
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corpus_builder.errors import EmptyCorpus, OutputError, ShardError
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import (
    CorpusIndex,
    atomic_output,
    load_index,
    read_shard,
    read_split,
    verify_shards,
    write_index,
    write_shard,
)
from corpus_builder.verify import verify_corpus
from samples import a_record

NUM_RECORDS = 300
FORMATS = ["tar.zst", "tar"]


def records(number: int = NUM_RECORDS) -> list[FunctionRecord]:
    """Random comments keep the shard from being compressed to nothing."""
    noise = random.Random(0)
    return [a_record(f"f{i}", comment=f"{noise.randbytes(400).hex()}") for i in range(number)]


def a_corpus(folder: Path, **splits: list[FunctionRecord]) -> CorpusIndex:
    entries = [
        write_shard(folder / f"{split}-00000.tar.zst", split, contents, zstd_level=3)
        for split, contents in splits.items()
    ]
    index = CorpusIndex(
        name="test", toolchains={}, levels=("O2",), projects={}, shards=tuple(entries), totals={}, failures={}
    )
    write_index(folder, index)
    return index


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    entry = write_shard(tmp_path / f"s.{suffix}", "train", records(), zstd_level=3)
    assert (entry.num_functions, entry.num_variants) == (NUM_RECORDS, 2 * NUM_RECORDS)
    assert list(read_shard(tmp_path / f"s.{suffix}")) == records()
    assert [path.name for path in tmp_path.iterdir()] == [f"s.{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_records_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    first = write_shard(tmp_path / f"a.{suffix}", "train", records(), zstd_level=9)
    second = write_shard(tmp_path / f"b.{suffix}", "train", records(), zstd_level=9)
    assert first.sha256 == second.sha256
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_headers_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", "train", records(2), zstd_level=3)
    with tarfile.open(tmp_path / "s.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it never closes its files
def test_webdataset_reads_shards(tmp_path: Path) -> None:
    import webdataset

    write_shard(tmp_path / "s.tar", "train", records(5), zstd_level=3)
    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [record.key for record in records(5)]
    for sample, record in zip(samples, records(5), strict=True):
        assert json.loads(sample["json"])["name"] == record.meta.name
        assert sample["aarch64.gcc12.o2.s"].decode() == record.assembly["aarch64.gcc12.o2"]


def test_webdataset_reads_compressed_shards_through_a_pipe(tmp_path: Path) -> None:
    import webdataset

    if not shutil.which("zstd"):
        pytest.skip("needs zstd")
    path = tmp_path / "s.tar.zst"
    write_shard(path, "train", records(5), zstd_level=3)
    samples = list(webdataset.WebDataset(f"pipe:zstd -dcq {path}", shardshuffle=False))
    assert [sample["c"].decode() for sample in samples] == [record.source for record in records(5)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_shard_is_found_by_reading_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s.{suffix}"
    write_shard(path, "train", records(40), zstd_level=3)
    whole = path.read_bytes()
    # A tar ends with padding, a zstd frame with four bytes of checksum: without them nothing is lost.
    end = len(whole.rstrip(b"\0")) if suffix == "tar" else len(whole) - 4
    # Steps of 512 meet every border between members, where a tar looks finished.
    for length in (*range(0, end, 512), end // 3, end - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ShardError, match="damaged"):
            list(read_shard(path))


def test_a_flipped_bit_is_found_by_reading_and_by_verify(tmp_path: Path) -> None:
    a_corpus(tmp_path, train=records())
    path = tmp_path / "train-00000.tar.zst"
    whole = path.read_bytes()
    chance = random.Random(1)
    for _ in range(60):
        # From byte 8 on: zstd's frame header has a bit that means nothing.
        position, bit = chance.randrange(8, len(whole)), chance.randrange(8)
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        assert verify_shards(tmp_path) == ["train-00000.tar.zst: sha256 differs from the index"]
        with pytest.raises(ShardError, match=r"train-00000\.tar\.zst is damaged"):
            list(read_shard(path))


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    a_corpus(tmp_path, train=records(3))
    (tmp_path / "train-00000.tar.zst").unlink()
    assert verify_shards(tmp_path) == ["train-00000.tar.zst: missing"]
    with pytest.raises(ShardError, match="missing"):
        list(read_split(tmp_path, "train"))


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    a_corpus(tmp_path, train=records(3))
    assert len(list(read_split(tmp_path, "train"))) == 3
    with pytest.raises(EmptyCorpus, match="no function in split 'test'"):
        list(read_split(tmp_path, "test"))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "holds no corpus"), ("{}", "damaged"), ("not json", "damaged")]
)
def test_a_missing_or_damaged_index_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(ShardError, match=message):
        load_index(tmp_path)


def test_the_index_is_a_function_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = a_corpus(tmp_path / "a", train=records(3))
    second = a_corpus(tmp_path / "b", train=records(3))
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()
    assert first.sha256() == second.sha256() == load_index(tmp_path / "a").sha256()
    assert a_corpus(tmp_path / "b", train=records(4)).sha256() != first.sha256()


def test_verify_finds_wrong_counts_and_texts(tmp_path: Path) -> None:
    good, other = records(2)
    texts = {**other.assembly, "x86_64.gcc12.o2": "changed"}
    forged = type(other)(other.key, other.meta, other.source, texts)
    index = a_corpus(tmp_path, train=[good, forged])
    lying = index.shards[0].model_copy(update={"num_functions": 3})
    write_index(tmp_path, index.model_copy(update={"shards": (lying,)}))
    assert verify_shards(tmp_path) == [
        f"train-00000.tar.zst: {other.key} x86_64.gcc12.o2: text differs from its sha256",
        "train-00000.tar.zst: 2 functions, the index says 3",
    ]


def test_verify_finds_leaks_double_keys_and_missing_licences(tmp_path: Path) -> None:
    train = [a_record("f"), a_record("g", body="shared"), a_record("g2", license=" ")]
    leaked_body = a_record("h", split="test", body="shared")
    leaked_source = a_record("i", split="test", source_sha256=train[0].meta.source_sha256)
    a_corpus(
        tmp_path, train=[*train, train[0]], test=[leaked_body, leaked_source, a_record("j", split="test")]
    )
    problems = verify_corpus(tmp_path)
    assert problems == [
        f"train-00000.tar.zst: {train[2].key} has no licence",
        f"train-00000.tar.zst: {train[0].key} stands in the corpus twice",
        f"test-00000.tar.zst: {leaked_body.key} in test: its body stands in train as well",
        f"test-00000.tar.zst: {leaked_source.key} in test: its source stands in train as well",
    ]


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Writes beyond that size fail, as they do on a full disk, but for the error's number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_shard_that_does_not_fit_leaves_the_old_one_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.zst"
    write_shard(path, "train", records(3), zstd_level=3)
    before = path.read_bytes()
    with (
        largest_file(20_000),
        pytest.raises(OutputError, match=r"cannot write .*s\.tar\.zst: File too large"),
    ):
        write_shard(path, "train", records(), zstd_level=3)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.tar.zst"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    # /dev/full is a disk without space; the temporary file cannot lie there, so it is made to lead there.
    path = tmp_path / "out"
    os.symlink("/dev/full", path.with_name(f".out.{os.getpid()}.tmp"))
    with pytest.raises(OutputError, match="No space left") as caught, atomic_output(path) as stream:
        stream.write(b"x")
    assert "free some space" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[FunctionRecord]:
        yield from records(3)
        raise RuntimeError("the source of records broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_shard(tmp_path / "s.tar.zst", "train", broken(), zstd_level=3)
    assert list(tmp_path.iterdir()) == []
