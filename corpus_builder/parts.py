"""Parts: what one unit gave, kept on disk until the whole build is put together.

A part is one file: a zstd frame with what deduplication and reports need, as one line of JSON, then a frame
with the records, a line of JSON each, in the order of their keys. So the first pass over all units reads a
few percent of the bytes, and the second holds one record in memory. Parts are written as a whole
(`shards.atomic_output`), carry zstd's checksums, and are private to a build folder: their format may change.
"""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from corpus_builder.dedup import DedupItem, Signature
from corpus_builder.errors import ShardError
from corpus_builder.record import Failure, FunctionMeta, FunctionRecord, UnitResult

_ZSTD_LEVEL = 3
_BUFFER_BYTES = 1 << 20
_HEX_DIGITS_OF_64_BITS = 16


@dataclass(frozen=True)
class PartHeader:
    """A unit's functions, as deduplication sees them, and its failures."""

    unit: str
    functions: tuple[DedupItem, ...]
    """Their split is empty."""
    failures: tuple[Failure, ...]


def encode_part(result: UnitResult, signatures: Sequence[Signature]) -> bytes:
    """The bytes of a part; `signatures` are those of the records, in their order."""
    header = {
        "unit": result.unit,
        "functions": [
            [
                record.key,
                record.meta.source_sha256,
                base64.b64encode(signature.astype("<u4").tobytes()).decode(),
                sorted({variant.body_sha256 for variant in record.meta.variants.values()}),
            ]
            for record, signature in zip(result.records, signatures, strict=True)
        ],
        "failures": [asdict(failure) for failure in result.failures],
    }
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
    lines = (json.dumps(_record_line(record)).encode() + b"\n" for record in result.records)
    return compressor.compress(json.dumps(header).encode() + b"\n") + compressor.compress(b"".join(lines))


def read_header(path: Path) -> PartHeader:
    """The first frame of a part.

    Raises:
        ShardError: the part is damaged.
        FileNotFoundError: there is none.
    """
    with _lines(path, read_across_frames=False) as lines:
        data = json.loads(lines.readline())
        lines.read()  # the checksum stands at the frame's end
        return PartHeader(
            unit=data["unit"],
            functions=tuple(_dedup_item(*function) for function in data["functions"]),
            failures=tuple(Failure(**failure) for failure in data["failures"]),
        )


def read_records(path: Path) -> Iterator[FunctionRecord]:
    """The records of a part, in the order of their keys; raises as `read_header` does."""
    with _lines(path, read_across_frames=True) as lines:
        expected = len(json.loads(lines.readline())["functions"])
        for line in lines:
            key, meta, source, assembly = json.loads(line)
            expected -= 1
            yield FunctionRecord(key, FunctionMeta.model_validate(meta), source, assembly)
        if expected:
            raise ValueError(f"{expected} records are missing")


@contextmanager
def _lines(path: Path, *, read_across_frames: bool) -> Iterator[io.BufferedReader]:
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


def _record_line(record: FunctionRecord) -> list[Any]:
    return [record.key, record.meta.model_dump(), record.source, dict(record.assembly)]


def _dedup_item(key: str, source_sha256: str, signature: str, bodies: Sequence[str]) -> DedupItem:
    return DedupItem(
        key=key,
        split="",
        source_sha256=source_sha256,
        signature=np.frombuffer(base64.b64decode(signature), "<u4"),
        bodies=frozenset(int(body[:_HEX_DIGITS_OF_64_BITS], 16) for body in bodies),
    )
