"""Vectors of all functions of some files: binaries, objects, archives and assembler text in, one folder out.

    OUTPUT/vectors.npy      unit vectors (N, D), float32
    OUTPUT/functions.jsonl  a line a vector: name, address, size, isa, file, file_sha256, member, row
    OUTPUT/embedding.json   the model (path and hash), how many vectors, how long; written last

Invariant: the folder holds `embedding.json` only if the other two are whole and belong to it. A file that
cannot be read costs a line on standard error; the others are done.
Cost: reading in children (`untrusted`), one a core, then the model, once a distinct body.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asmtrain import terminal
from asmtrain.binary import BinaryFunction
from asmtrain.encoder import Encoder, Vectors, default_model, embed_texts, load_encoder
from asmtrain.errors import BinaryError
from asmtrain.untrusted import Job, read_all
from corpus_builder.shards import atomic_output

_FILES_PER_CHILD = 32
_SHARED_BYTES = 1 << 20
"""Files of this size and more are read by all cores together."""


class FileFunctions(NamedTuple):
    """What one file gave."""

    path: Path
    sha256: str
    functions: list[BinaryFunction]


class Failure(NamedTuple):
    """A file that gave nothing."""

    path: Path
    error: BinaryError

    def line(self) -> str:
        """What is wrong and what to do, in one line whatever the file is called."""
        text = f"{self.error.message}; {self.error.remedy}" if self.error.remedy else self.error.message
        return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass(frozen=True)
class Summary:
    """What came of a run."""

    output: str
    model: str
    model_sha256: str
    dim: int
    num_files: int
    num_functions: int
    num_bodies: int
    """Distinct views, each embedded once."""
    failed: dict[str, str]
    """File to what is wrong with it."""


def run_embed(
    files: Sequence[Path], output: Path, *, model: Path | None = None, as_json: bool = False
) -> int:
    """Embed the functions of files into a folder; returns the exit code, 2 if any file could not be read.

    Raises:
        ModelError: the model cannot be used, or none is named and none is shipped.
        OutputError: the disk is full, or the folder cannot be written.
    """
    folder = model or default_model()
    encoder = load_encoder(folder)
    with terminal.progress_bar("reading", len(files)) as advance:
        results = []
        for result in read_files(files):
            results.append(result)
            advance(1)
    failures = [result for result in results if isinstance(result, Failure)]
    read = [result for result in results if isinstance(result, FileFunctions)]
    for failure in failures:
        print(failure.line(), file=sys.stderr)
    texts = [function.view for file in read for function in file.functions]
    bodies = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    if texts:
        with terminal.progress_bar("embedding", len(bodies)) as advance:
            vectors_ND = embed_texts(encoder, list(bodies), progress=advance)
        save(output, vectors_ND[[bodies[text] for text in texts]], read, model=folder, encoder=encoder)
    failed = {str(failure.path): failure.line() for failure in failures}
    _report(
        Summary(
            str(output), str(folder), encoder.sha256, encoder.dim, len(files), len(texts), len(bodies), failed
        ),
        as_json,
    )
    return 2 if failures else 0


def _report(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps(vars(summary)))
    elif summary.num_functions:
        terminal.console().print(
            f"{summary.output}: {summary.num_functions:,} functions, {summary.num_bodies:,} distinct bodies, "
            f"{summary.dim} dimensions"
        )
    if summary.failed:
        print(f"{len(summary.failed)} of {summary.num_files} files could not be read", file=sys.stderr)


def read_files(files: Sequence[Path]) -> Iterator[FileFunctions | Failure]:
    """What each file gave, in their order, read by as many children as there are cores."""
    num_cores = len(os.sched_getaffinity(0))
    batches = list(_batches(files, num_cores))
    with ThreadPoolExecutor(num_cores) as pool:
        done = pool.map(lambda batch: list(read_all(batch)), batches)
        answers = (answer for batch in done for answer in batch)
        for path in files:
            job, result = next(answers)
            parts = [result, *(next(answers)[1] for _ in range(job.num_shares - 1))]
            yield _joined(path, parts)


def _batches(files: Sequence[Path], num_cores: int) -> Iterator[list[Job]]:
    """Jobs for one child each: some small files, or a core's share of a large one."""
    most = min(_FILES_PER_CHILD, -(-len(files) // num_cores))
    batch: list[Job] = []
    for path in files:
        if _size(path) >= _SHARED_BYTES and num_cores > 1:
            yield batch
            yield from ([Job(path, share=share, num_shares=num_cores)] for share in range(num_cores))
            batch = []
        else:
            batch.append(Job(path))
        if len(batch) == most:
            yield batch
            batch = []
    yield batch


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0  # the reader says why


def _joined(path: Path, parts: Sequence[list[BinaryFunction] | BinaryError]) -> FileFunctions | Failure:
    functions: list[BinaryFunction] = []
    for part in parts:
        if isinstance(part, BinaryError):
            return Failure(path, part)
        functions += part
    if not functions:
        return Failure(path, BinaryError(f"{path} holds no function"))
    try:
        with open(path, "rb") as stream:
            return FileFunctions(path, hashlib.file_digest(stream, "sha256").hexdigest(), functions)
    except OSError as error:
        return Failure(path, BinaryError(f"cannot read {path}: {error.strerror}"))


def save(
    folder: Path, vectors_ND: Vectors, files: Sequence[FileFunctions], *, model: Path, encoder: Encoder
) -> None:
    """Write the folder; until its last file is there, it holds no embedding."""
    (folder / "embedding.json").unlink(missing_ok=True)
    with atomic_output(folder / "vectors.npy") as stream:
        np.save(stream, vectors_ND)
    with atomic_output(folder / "functions.jsonl") as stream:
        row = 0
        for file in files:
            for function in file.functions:
                stream.write((json.dumps(_entry(file, function, row)) + "\n").encode())
                row += 1
    meta = {
        "schema_version": 1,
        "model": str(model.resolve()),
        "model_sha256": encoder.sha256,
        "dim": encoder.dim,
        "count": len(vectors_ND),
    }
    with atomic_output(folder / "embedding.json") as stream:
        stream.write((json.dumps(meta, indent=1) + "\n").encode())


def _entry(file: FileFunctions, function: BinaryFunction, row: int) -> dict[str, object]:
    return {
        "name": function.name,
        "address": function.address,
        "size": function.size,
        "isa": function.isa,
        "file": str(file.path),
        "file_sha256": file.sha256,
        "member": function.member,
        "row": row,
    }
