"""Parts: what one unit gave, kept on disk until the whole build is put together.

A part is one file of two zstd frames. The first is what deduplication and reports need: a line of JSON, then
signatures and body hashes as they lie in memory. The second holds the samples in the order of their keys: for
each a line of JSON that lists its members, then their bytes, ready to go into a shard but for split and
cluster. So the first pass over all units reads a few percent of the bytes, and the second copies bytes, one
sample in memory, without parsing any. Parts are written as a whole (`shards.atomic_output`), carry zstd's
checksums, and are private to a build folder: their format may change.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from corpus_builder.dedup import Functions, Signature
from corpus_builder.errors import ShardError
from corpus_builder.record import Failure, FunctionRecord, UnitResult, record_members

_ZSTD_LEVEL = 3
_BUFFER_BYTES = 1 << 20
_HEX_DIGITS_OF_64_BITS = 16


@dataclass(frozen=True)
class PartHeader:
    """A unit's functions, as deduplication sees them, and its failures."""

    unit: str
    functions: Functions
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class PartSample:
    """One function as a part keeps it."""

    key: str
    members: dict[str, bytes]
    """Extension to bytes, as `record_members` gives them; split and cluster in the metadata are empty."""
    num_variants: int
    assembly_bytes: int
    """Of the variants' texts together."""


def encode_part(result: UnitResult, signatures: Sequence[Signature]) -> bytes:
    """The bytes of a part; `signatures` are those of the records, in their order."""
    records = result.records
    rows = np.stack([row for _, row in zip(records, signatures, strict=True)] or [np.zeros(0, np.uint32)])
    bodies = [sorted({variant.body_sha256 for variant in r.meta.variants.values()}) for r in records]
    header = {
        "unit": result.unit,
        "keys": [record.key for record in records],
        "sources": [record.meta.source_sha256 for record in records],
        "num_perm": rows.shape[1],
        "num_bodies": [len(own) for own in bodies],
        "failures": [asdict(failure) for failure in result.failures],
    }
    hashes = np.array([int(body[:_HEX_DIGITS_OF_64_BITS], 16) for own in bodies for body in own], "<u8")
    frames = (
        _line(header) + rows.astype("<u4").tobytes() + hashes.tobytes(),
        b"".join(map(_encode_sample, records)),
    )
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
    return b"".join(map(compressor.compress, frames))


def read_header(path: Path) -> PartHeader:
    """The first frame of a part.

    Raises:
        ShardError: the part is damaged.
        FileNotFoundError: there is none.
    """
    with _opened(path, read_across_frames=False) as stream:
        data, functions = _read_first_frame(stream)
        stream.read()  # the checksum stands at the frame's end
        return PartHeader(data["unit"], functions, tuple(Failure(**failure) for failure in data["failures"]))


def read_samples(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> Iterator[PartSample]:
    """The samples of a part whose keys are wanted, in the order of the keys; raises as `read_header` does."""
    with _opened(path, read_across_frames=True) as stream:
        for expected in _read_first_frame(stream)[0]["keys"]:
            key, num_variants, assembly_bytes, sizes = json.loads(stream.readline())
            if key != expected:
                raise ValueError(f"function {key} stands in the place of {expected}")
            body = _read_exactly(stream, sum(size for _, size in sizes))
            if wanted(key):
                yield PartSample(key, _sliced(body, sizes), num_variants, assembly_bytes)
        if stream.read(1):
            raise ValueError("more follows after the last function")


def _encode_sample(record: FunctionRecord) -> bytes:
    members = record_members(record)
    sizes = [(extension, len(body)) for extension, body in members.items()]
    assembly_bytes = sum(len(members[f"{variant}.s"]) for variant in record.assembly)
    return b"".join([_line([record.key, len(record.assembly), assembly_bytes, sizes]), *members.values()])


def _line(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _read_first_frame(stream: io.BufferedReader) -> tuple[dict[str, Any], Functions]:
    data = json.loads(stream.readline())
    num_functions, num_bodies = len(data["keys"]), sum(data["num_bodies"])
    row_bytes = data["num_perm"] * 4
    signatures = np.frombuffer(_read_exactly(stream, num_functions * row_bytes), "<u4")
    functions = Functions(
        keys=data["keys"],
        sources=data["sources"],
        signatures=signatures.reshape(num_functions, data["num_perm"]),
        bodies=np.frombuffer(_read_exactly(stream, num_bodies * 8), "<u8"),
        body_owners=np.repeat(np.arange(num_functions, dtype=np.uint32), data["num_bodies"]),
    )
    return data, functions


def _read_exactly(stream: io.BufferedReader, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def _sliced(body: bytes, sizes: Sequence[tuple[str, int]]) -> dict[str, bytes]:
    members = {}
    start = 0
    for extension, size in sizes:
        members[extension] = body[start : start + size]
        start += size
    return members


@contextmanager
def _opened(path: Path, *, read_across_frames: bool) -> Iterator[io.BufferedReader]:
    try:
        with open(path, "rb") as raw:
            decompressor = zstandard.ZstdDecompressor()
            stream: Any = decompressor.stream_reader(raw, read_across_frames=read_across_frames)
            yield io.BufferedReader(stream, _BUFFER_BYTES)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ShardError(
            f"part {path} is damaged: {reason}", remedy="delete it; the next build makes it again"
        ) from None
