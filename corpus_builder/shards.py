"""Shards: write, read, index, verify.

A shard is a WebDataset tar of function records, compressed with zstd. Its bytes depend on nothing but its
records and the compression level: tar headers carry no time, owner or mode of this machine, and the number
of threads that compress makes no difference. A shard is written under a temporary name, synced, renamed,
and only then listed in `index.json` with its sha256, so it is whole or absent.

Shards and the index are read from a folder or from any fsspec URL (`storage.location`). Reading costs little
more than decompressing: headers are found by numpy while a second thread decompresses. webdataset's and Ray's
own writers are not used: one leaves compressed streams unfinished, both stamp the time of writing into
headers (docs/decisions.md).
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NoReturn

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.record import SCHEMA_VERSION, FunctionRecord, record_from_members, record_members
from corpus_builder.storage import INDEX_FILE, Location, reading
from corpus_builder.storage import atomic_output as atomic_output
from corpus_builder.tarstream import grouped, read_members, tar_bytes

_CHUNK_BYTES = 3 << 19  # several chunks fit into a core's cache
_NUM_CHUNKS = 4
_FRAME_HEADER_BYTES = 18  # zstd's longest
_MAX_COMPRESSING_THREADS = 4  # each holds about 30 MiB
_REBUILD = "delete it and build again: finished units are reused"


class ShardEntry(BaseModel):
    """One line of the index: a shard that is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str
    sha256: str
    size_bytes: int
    num_functions: int
    num_variants: int


class CorpusIndex(BaseModel):
    """`index.json`: what a corpus holds. Equal builds give equal bytes, so it carries no time and no path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    toolchains: dict[str, str]
    """Variant prefix (`aarch64.gcc12`) to the first line of the compiler's --version."""
    levels: tuple[str, ...]
    text: str
    """Form of the `.s` members, `raw` or `clean`."""
    members: tuple[str, ...]
    """What is recorded besides, as in the config's `shards.members`."""
    dedup: dict[str, float]
    """When two functions counted as the same: the config's `dedup`."""
    projects: dict[str, dict[str, Any]]
    """Project name to its source, how it was built, its licence, split and lineage, and its counts."""
    shards: tuple[ShardEntry, ...]
    totals: dict[str, int]
    """projects, units, functions, variants, assembly_bytes, shard_bytes, and what dedup removed."""
    compiled: dict[str, dict[str, int]]
    """Toolchain to the number of its units, and of those that it compiled at every level."""
    failures: dict[str, int]
    """`variant prefix/stage/cause` to the number of units."""

    def sha256(self) -> str:
        """The corpus's identity: equal for equal content."""
        return hashlib.sha256(_index_text(self).encode()).hexdigest()


def _index_text(index: CorpusIndex) -> str:
    return json.dumps(index.model_dump(), indent=1) + "\n"


Sample = tuple[str, Mapping[str, bytes], int]
"""A sample ready to be written: its key, its members (extension to bytes) and its number of variants."""


def write_shard(path: Path, split: str, records: Iterable[FunctionRecord], *, zstd_level: int) -> ShardEntry:
    """Write one shard of records; as `write_samples`."""
    samples = ((record.key, record_members(record), len(record.assembly)) for record in records)
    return write_samples(path, split, samples, zstd_level=zstd_level)


def write_samples(path: Path, split: str, samples: Iterable[Sample], *, zstd_level: int) -> ShardEntry:
    """Write one shard, compressed unless its name ends in `.tar`.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    count = _Counts()
    with atomic_output(path) as raw:
        hashing = _HashingWriter(raw)
        with _compressed(hashing, path, zstd_level) as stream:
            for chunk in tar_bytes(count.watch(samples), chunk_bytes=_CHUNK_BYTES):
                stream.write(chunk)
    return ShardEntry(
        name=path.name,
        split=split,
        sha256=hashing.digest.hexdigest(),
        size_bytes=hashing.size_bytes,
        num_functions=count.functions,
        num_variants=count.variants,
    )


class _Counts:
    """Counts samples on their way into a shard."""

    def __init__(self) -> None:
        self.functions = 0
        self.variants = 0

    def watch(self, samples: Iterable[Sample]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for key, members, num_variants in samples:
            self.functions += 1
            self.variants += num_variants
            yield key, members


class _HashingWriter(io.RawIOBase):
    """Passes bytes on, keeping their sha256 and number."""

    def __init__(self, target: IO[bytes]) -> None:
        self.target = target
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        return self.target.write(data)


@contextmanager
def _compressed(target: Any, path: Path, zstd_level: int) -> Iterator[Any]:
    if path.suffix == ".tar":
        yield target
        return
    # Threads cut the input at fixed places, so any number of them gives the same bytes; none gives others.
    threads = min(len(os.sched_getaffinity(0)), _MAX_COMPRESSING_THREADS)
    compressor = zstandard.ZstdCompressor(level=zstd_level, write_checksum=True, threads=threads)
    with compressor.stream_writer(target, closefd=False) as stream:
        yield stream


def write_index(corpus: Path, index: CorpusIndex) -> None:
    """Publish the index; this is what makes a corpus exist."""
    with atomic_output(corpus / INDEX_FILE) as stream:
        stream.write(_index_text(index).encode())


def load_index(corpus: Location) -> CorpusIndex:
    """Read `index.json`.

    Raises:
        ShardError: the location holds no corpus, cannot be reached, or the index is damaged.
    """
    path = corpus / INDEX_FILE
    try:
        with reading(path):
            text = path.read_bytes()
        return CorpusIndex.model_validate_json(text)
    except FileNotFoundError:
        raise ShardError(
            f"{corpus} holds no corpus: index.json is missing",
            remedy="run corpus-builder build, or give the place named by `output` in the corpus config",
        ) from None
    except ValidationError as error:
        raise ShardError(f"{path} is damaged: {error.error_count()} wrong fields", remedy=_REBUILD) from None


def read_shard(path: Location) -> Iterator[FunctionRecord]:
    """The records of one shard, in their order.

    Raises:
        ShardError: the shard is missing, truncated or damaged.
    """
    for key, members in read_samples(path):
        try:
            record = record_from_members(key, members)
        except ShardError as error:
            raise ShardError(f"shard {path} is damaged: {error.message}", remedy=error.remedy) from None
        yield record


def read_samples(path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one shard as they lie there: key, and members by extension.

    A second thread decompresses ahead. Memory: 10 MiB and the largest sample.

    Raises:
        ShardError: the shard is missing, cannot be reached, or is truncated or damaged.
    """
    try:
        with reading(path):
            raw = path.open("rb")
        with raw:
            has_checksum = False
            plain: Any = raw
            if path.suffix != ".tar":
                with reading(path):
                    head = raw.read(_FRAME_HEADER_BYTES)
                    raw.seek(0)
                has_checksum = zstandard.get_frame_parameters(head).has_checksum
                plain = zstandard.ZstdDecompressor().stream_reader(raw, read_size=1 << 20)
            with closing(_read_ahead(plain, path)) as chunks:
                yield from grouped(read_members(chunks, check_sums=not has_checksum))
    except FileNotFoundError:
        raise ShardError(f"shard {path} is missing", remedy=_REBUILD) from None
    except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError) as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise ShardError(f"shard {path} is damaged: {reason}", remedy=_REBUILD) from None


def _read_ahead(stream: Any, path: Location) -> Generator[memoryview]:
    """What the stream gives, in chunks that another thread fills; a chunk is used again for a later one."""
    free: SimpleQueue[memoryview] = SimpleQueue()
    full: SimpleQueue[memoryview | Exception] = SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set():
                buffer = free.get()
                full.put(buffer[: _fill(buffer, stream)])
        except Exception as error:  # it is for whoever asked for the bytes
            full.put(error)

    for _ in range(_NUM_CHUNKS):
        free.put(memoryview(bytearray(_CHUNK_BYTES)))
    thread = threading.Thread(target=work, name="shard-reader", daemon=True)
    thread.start()
    try:
        while chunk := full.get():
            if isinstance(chunk, Exception):
                _raise(chunk, path)
            yield chunk
            free.put(memoryview(chunk.obj))
    finally:
        stopped.set()
        free.put(memoryview(b""))
        if not sys.is_finalizing():  # a daemon thread no longer runs then
            thread.join()


def _fill(buffer: memoryview, stream: Any) -> int:
    """Read until the buffer is full or the stream ends, and say how many bytes that gave."""
    size = 0
    while size < len(buffer) and (num_read := stream.readinto(buffer[size:])):
        size += num_read
    return size


def _raise(error: Exception, path: Location) -> NoReturn:
    if isinstance(error, zstandard.ZstdError):
        raise error
    with reading(path):
        raise error
    raise AssertionError("reading lets no exception vanish")


def shard_paths(corpus: Location, split: str) -> list[Location]:
    """The shards of one split, in order.

    Raises:
        ShardError: there is no corpus.
        EmptyCorpus: the split holds no shard.
    """
    entries = [entry for entry in load_index(corpus).shards if entry.split == split]
    if not entries:
        raise EmptyCorpus(
            f"corpus {corpus} has no function in split {split!r}",
            remedy="add projects, or fix a project's `split` in the corpus config",
        )
    return [corpus / entry.name for entry in entries]


def read_split(corpus: Location, split: str) -> Iterator[FunctionRecord]:
    """All records of one split, shard after shard; raises as `shard_paths` and `read_shard` do."""
    for path in shard_paths(corpus, split):
        yield from read_shard(path)


def verify_shards(
    corpus: Location,
    progress: Callable[[str], None] = lambda name: None,
    check: Callable[[FunctionRecord], list[str]] = lambda record: [],
) -> list[str]:
    """Compare every shard with the index: present, sha256, readable, counts. Returns the problems found.

    `check` sees every record and returns the problems of its own.

    Raises:
        ShardError: there is no corpus, or it cannot be reached.
    """
    problems = []
    for entry in load_index(corpus).shards:
        progress(entry.name)
        path = corpus / entry.name
        try:
            sha256 = _sha256_of(path)
        except FileNotFoundError:
            problems.append(f"{entry.name}: missing")
            continue
        if sha256 != entry.sha256:
            problems.append(f"{entry.name}: sha256 differs from the index")
            continue
        problems += _verify_records(path, entry, check)
    return problems


def _sha256_of(path: Location) -> str:
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _verify_records(
    path: Location, entry: ShardEntry, check: Callable[[FunctionRecord], list[str]]
) -> list[str]:
    problems = []
    num_functions = 0
    try:
        for record in read_shard(path):
            num_functions += 1
            problems += [f"{entry.name}: {problem}" for problem in (*_wrong_texts(record), *check(record))]
    except ShardError as error:
        return [*problems, error.message]
    if num_functions != entry.num_functions:
        problems.append(f"{entry.name}: {num_functions} functions, the index says {entry.num_functions}")
    return problems


def _wrong_texts(record: FunctionRecord) -> Iterator[str]:
    for variant, meta in record.meta.variants.items():
        if hashlib.sha256(record.assembly[variant].encode()).hexdigest() != meta.sha256:
            yield f"{record.key} {variant}: text differs from its sha256"
