import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.errors import EmptyCorpus, OutputError, ShardError
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import (
    CorpusIndex,
    atomic_output,
    load_index,
    read_samples,
    read_shard,
    read_split,
    verify_shards,
    write_index,
    write_samples,
    write_shard,
)
from corpus_builder.tarstream import BLOCK, grouped, read_members, tar_bytes
from corpus_builder.verify import verify_corpus
from samples import a_record, an_index

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
    index = an_index(entries)
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


def test_verify_finds_double_keys_and_missing_licences(tmp_path: Path) -> None:
    train = [a_record("f"), a_record("g", license=" ")]
    a_corpus(tmp_path, train=[*train, train[0]])
    assert verify_corpus(tmp_path) == [
        f"train-00000.tar.zst: {train[1].key} has no licence",
        f"train-00000.tar.zst: {train[0].key} stands in the corpus twice",
    ]


def test_verify_finds_leaks_between_splits(tmp_path: Path) -> None:
    train = [a_record("f"), a_record("g", body="shared")]
    body = a_record("h", split="test", body="shared")
    source = a_record("i", split="test", source_sha256=train[0].meta.source_sha256)
    own = a_record("j", split="test")
    near = replace(a_record("k", split="test"), source=train[0].source)
    a_corpus(tmp_path, train=train, test=[body, source, own, near])
    assert sorted(verify_corpus(tmp_path)) == sorted(
        [
            f"{body.key}: one of its bodies stands in an earlier split as well",
            f"{source.key}: its source stands in the corpus twice",
            f"{near.key}: a near duplicate of its source stands in an earlier split",
        ]
    )


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


Samples = list[tuple[str, dict[str, bytes]]]


def by_tarfile(samples: Samples, form: int = tarfile.PAX_FORMAT) -> bytes:
    """The samples as tarfile writes them."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w|", format=form) as tar:
        for key, members in samples:
            for extension, body in members.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size = len(body)
                tar.addfile(header, io.BytesIO(body))
    return target.getvalue()


def read(tar: bytes, chunk_bytes: int = 1 << 20, *, check_sums: bool = True) -> Samples:
    view = memoryview(tar)
    chunks = (view[at : at + chunk_bytes] for at in range(0, len(tar), chunk_bytes))
    return list(grouped(read_members(chunks, check_sums=check_sums)))


LOOK_ALIKE = by_tarfile([("fake", {"json": b"{}", "s": b"x" * 700})])
KEYS = st.one_of(
    st.text("0123456789abcdef", min_size=1, max_size=24),
    st.text("ab", min_size=90, max_size=300),
    st.sampled_from(["\u00e9\u4e2d", "folder/key", "a.b/c"]),
)
BODIES = st.one_of(
    st.binary(max_size=50),
    st.builds(
        lambda size, fill: fill * size, st.integers(0, 3 * BLOCK), st.sampled_from([b"x", b"\0", b"ustar"])
    ),
    st.just(LOOK_ALIKE),
    st.builds(lambda shift: b"x" * shift + LOOK_ALIKE, st.integers(0, 600)),
)
SAMPLES = st.lists(
    st.tuples(
        KEYS, st.dictionaries(st.sampled_from(["json", "c", "aarch64.gcc12.o2.s"]), BODIES, min_size=1)
    ),
    max_size=6,
    unique_by=lambda sample: sample[0],
)


@given(SAMPLES, st.integers(1, 5000))
def test_tars_are_written_as_tarfile_writes_them(samples: Samples, chunk_bytes: int) -> None:
    assert b"".join(tar_bytes(samples, chunk_bytes=chunk_bytes)) == by_tarfile(samples)


@given(
    SAMPLES,
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 9),
)
def test_any_tar_is_read_whatever_stands_in_its_members(samples: Samples, form: int, num_blocks: int) -> None:
    if form == tarfile.USTAR_FORMAT:
        samples = [(key, members) for key, members in samples if len(key.encode()) < 75]
    tar = by_tarfile(samples, form)
    for check_sums in (True, False):
        assert read(tar, num_blocks * BLOCK, check_sums=check_sums) == samples


@given(SAMPLES, st.integers(1, 9), st.data())
def test_no_part_of_a_tar_passes_for_the_whole(
    samples: Samples, num_blocks: int, data: st.DataObject
) -> None:
    tar = by_tarfile(samples)
    length = data.draw(
        st.integers(0, len(tar.rstrip(b"\0")) + 2 * BLOCK - 1 - len(tar.rstrip(b"\0")) % BLOCK)
    )
    with pytest.raises((EOFError, tarfile.TarError)):
        read(tar[:length], num_blocks * BLOCK)


def test_a_changed_header_is_refused() -> None:
    samples: Samples = [(f"key{i}", {"json": b"{}", "s": b"ret\n" * 200}) for i in range(4)]
    tar = by_tarfile(samples)
    headers = [at for at in range(0, len(tar), BLOCK) if tar[at + 257 : at + 262] == b"ustar"]
    assert len(headers) == 8
    for at in headers:
        for position in range(at, at + BLOCK):
            damaged = bytearray(tar)
            damaged[position] ^= 1
            # In the two bytes after the checksum's digits nothing is said.
            if position - at not in (154, 155):
                with pytest.raises((EOFError, tarfile.TarError)):
                    read(bytes(damaged))


def test_folders_links_and_other_files_in_a_tar_are_passed_over() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, body in [
            ("folder", tarfile.DIRTYPE, b""),
            ("folder/a.json", tarfile.REGTYPE, b"1"),
            ("folder/a.link", tarfile.SYMTYPE, b""),
            (f"{'long' * 50}.link", tarfile.SYMTYPE, b""),
            ("folder/a.c", tarfile.REGTYPE, b"2"),
            ("README", tarfile.REGTYPE, b"no member"),
        ]:
            header = tarfile.TarInfo(name)
            header.type, header.size = kind, len(body)
            tar.addfile(header, io.BytesIO(body))
    assert read(target.getvalue()) == [("folder/a", {"json": b"1", "c": b"2"})]


def test_a_member_twice_in_a_sample_is_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("key.json"))
    with pytest.raises(ShardError, match=r"is damaged: sample key has two members 'json'"):
        list(read_samples(tmp_path / "s.tar"))


def test_something_after_the_end_is_damage(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(by_tarfile([("a", {"c": b"1"})]) + by_tarfile([("b", {"c": b"2"})]))
    with pytest.raises(ShardError, match="something follows its end"):
        list(read_samples(tmp_path / "s.tar"))


@pytest.mark.parametrize("body", [b"not a tar at all" * 64, b"", b"\0" * BLOCK])
def test_what_is_no_tar_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(body)
    (tmp_path / "s.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(body))
    for name in ("s.tar", "s.tar.zst"):
        with pytest.raises(ShardError, match="is damaged"):
            list(read_samples(tmp_path / name))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", FORMATS)
def test_samples_are_those_that_webdataset_finds(tmp_path: Path, suffix: str) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path = tmp_path / f"s.{suffix}"
    write_shard(path, "train", records(), zstd_level=3)
    with open(path, "rb") as raw:
        stream = raw if suffix == "tar" else zstandard.ZstdDecompressor().stream_reader(raw)
        theirs = [
            (found["__key__"], {name: body for name, body in found.items() if not name.startswith("__")})
            for found in group_by_keys(tar_file_expander([{"url": "", "stream": stream}]))
        ]
    assert list(read_samples(path)) == theirs


def test_the_number_of_threads_makes_no_difference(tmp_path: Path) -> None:
    noise = random.Random(0)
    samples = [(f"{i}", {"c": noise.randbytes(1 << 15).hex().encode()}, 1) for i in range(500)]
    cores = os.sched_getaffinity(0)
    alone = {min(cores)}
    try:
        os.sched_setaffinity(0, alone)
        first = write_samples(tmp_path / "a.tar.zst", "train", samples, zstd_level=3)
    finally:
        os.sched_setaffinity(0, cores)
    if cores == alone:
        pytest.skip("needs two cores")
    second = write_samples(tmp_path / "b.tar.zst", "train", samples, zstd_level=3)
    assert first.sha256 == second.sha256


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.zst"
    body = b"ret\n" * (1 << 18)
    write_samples(path, "train", ((f"{i}", {"s": body}, 1) for i in range(200)), zstd_level=1)
    tracemalloc.start()
    try:
        assert sum(members["s"] == body for _, members in read_samples(path)) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_a_reader_that_is_left_stops_its_thread(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar.zst", "train", records(), zstd_level=3)
    before = threading.active_count()
    reader = read_samples(tmp_path / "s.tar.zst")
    next(reader)
    assert threading.active_count() == before + 1
    reader.close()
    assert threading.active_count() == before


def test_a_program_that_ends_amid_a_shard_ends(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar.zst", "train", records(), zstd_level=3)
    program = (
        "import sys; from pathlib import Path; from corpus_builder.shards import read_samples\n"
        "reader = read_samples(Path(sys.argv[1])); print(next(reader)[0])"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "s.tar.zst")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == (records(1)[0].key, "")
