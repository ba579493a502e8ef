"""Shards: write, read, index, verify.

A shard is a WebDataset tar of function records, compressed with zstd. Its bytes depend on nothing but its
records and the compression level: tar headers carry no time, owner or mode of this machine. A shard is
written under a temporary name, synced, renamed, and only then listed in `index.json` with its sha256, so it
is whole or absent.

webdataset's own expander and grouper read the stream, on any Python; ShardWriter is not used because it
leaves compressed streams unfinished and stamps the time of writing into headers (docs/decisions.md).
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.record import SCHEMA_VERSION, FunctionRecord, record_from_members, record_members
from corpus_builder.storage import atomic_output as atomic_output
from corpus_builder.tarstream import tar_bytes

_TAR_END_BYTES = 1024
_CHUNK_BYTES = 1 << 20
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
    projects: dict[str, dict[str, Any]]
    """Project name to version, license, split, source, and numbers of units and functions."""
    shards: tuple[ShardEntry, ...]
    totals: dict[str, int]
    """projects, units, functions, variants, assembly_bytes, shard_bytes, and what dedup removed."""
    failures: dict[str, int]
    """`variant prefix/stage/cause` to the number of units."""

    def sha256(self) -> str:
        """The corpus's identity: equal for equal content."""
        return hashlib.sha256(_index_text(self).encode()).hexdigest()


def _index_text(index: CorpusIndex) -> str:
    return json.dumps(index.model_dump(), indent=1, sort_keys=True) + "\n"


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
    with atomic_output(corpus / "index.json") as stream:
        stream.write(_index_text(index).encode())


def load_index(corpus: Path) -> CorpusIndex:
    """Read `index.json`.

    Raises:
        ShardError: the folder holds no corpus, or the index is damaged.
    """
    path = corpus / "index.json"
    try:
        return CorpusIndex.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(
            f"{corpus} holds no corpus: index.json is missing",
            remedy="run corpus-builder build, or give the folder named by `output` in the corpus config",
        ) from None
    except ValidationError as error:
        raise ShardError(f"{path} is damaged: {error.error_count()} wrong fields", remedy=_REBUILD) from None


def read_shard(path: Path) -> Iterator[FunctionRecord]:
    """The records of one shard, in their order.

    Raises:
        ShardError: the shard is missing, truncated or damaged.
    """
    # webdataset imports torch wherever that is installed: 2 s that writers and workers need not spend.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with open(path, "rb") as raw:
            plain: Any = raw if path.suffix == ".tar" else zstandard.ZstdDecompressor().stream_reader(raw)
            stream = _WholeTar(plain)
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                members = {name: body for name, body in sample.items() if not name.startswith("__")}
                yield record_from_members(sample["__key__"], members)
            stream.check()
    except ShardError as error:
        raise ShardError(f"shard {path} is damaged: {error.message}", remedy=error.remedy) from None
    except FileNotFoundError:
        raise ShardError(f"shard {path} is missing", remedy=_REBUILD) from None
    except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, OSError) as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise ShardError(f"shard {path} is damaged: {reason}", remedy=_REBUILD) from None


class _WholeTar:
    """Passes a tar on, and tells at its end whether it was all there.

    Neither zstd's reader nor tarfile mind a stream that ends early, between two members.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._tail = (self._tail + data)[-_TAR_END_BYTES:]
        return data

    def check(self) -> None:
        while self.read(1 << 16):  # zstd compares its checksum when the frame ends
            pass
        if self._tail != bytes(_TAR_END_BYTES):
            raise EOFError("it ends too early")


def shard_paths(corpus: Path, split: str) -> list[Path]:
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


def read_split(corpus: Path, split: str) -> Iterator[FunctionRecord]:
    """All records of one split, shard after shard; raises as `shard_paths` and `read_shard` do."""
    for path in shard_paths(corpus, split):
        yield from read_shard(path)


def verify_shards(
    corpus: Path,
    progress: Callable[[str], None] = lambda name: None,
    check: Callable[[FunctionRecord], list[str]] = lambda record: [],
) -> list[str]:
    """Compare every shard with the index: present, sha256, readable, counts. Returns the problems found.

    `check` sees every record and returns the problems of its own.
    """
    problems = []
    for entry in load_index(corpus).shards:
        progress(entry.name)
        path = corpus / entry.name
        if not path.exists():
            problems.append(f"{entry.name}: missing")
            continue
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                problems.append(f"{entry.name}: sha256 differs from the index")
                continue
        problems += _verify_records(path, entry, check)
    return problems


def _verify_records(path: Path, entry: ShardEntry, check: Callable[[FunctionRecord], list[str]]) -> list[str]:
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
