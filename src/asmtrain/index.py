"""A vector index of functions: embed a corpus or files once, then find the neighbours of any function.

    INDEX/index.json       which model made it (path and hash), how many vectors, how long; written last
    INDEX/vectors.npy      unit vectors (N, D), float32, memory-mapped when searched
    INDEX/functions.jsonl  a line a vector: project, file, name, variant, key

Search is exact: one product of all vectors with the query. At 128 dimensions a million functions take half
a second on one core and 512 MB on disk, and no neighbour is ever missed, as an approximate index would.
Invariant: vectors of different models are never compared. Cost: embedding, once a distinct body.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rich import box
from rich.table import Table

from asmtrain import terminal
from asmtrain.binary import BinaryFunction, functions_in
from asmtrain.encoder import Encoder, Vectors, embed_texts, load_encoder
from asmtrain.errors import BinaryError, VectorIndexError
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import atomic_output, load_index, read_shard

_REMEDY = "build it again with asmtrain embed"


class IndexMeta(BaseModel):
    """`index.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: str
    """Folder of the model, as it was when the index was built."""
    model_sha256: str
    num_vectors: int
    dim: int


@dataclass(frozen=True)
class Entry:
    """What a vector stands for."""

    project: str
    """Empty for a function that came from a file."""
    file: str
    name: str
    variant: str
    """The ISA alone for a function that came from a file."""
    key: str


@dataclass(frozen=True)
class VectorIndex:
    """An index that is open for search."""

    meta: IndexMeta
    vectors_ND: Vectors
    lines: list[str]
    """Of `functions.jsonl`."""

    def entry(self, position: int) -> Entry:
        """What the vector at a position stands for."""
        return Entry(**json.loads(self.lines[position]))


def run_build(
    inputs: Sequence[Path], model: Path, output: Path, *, variants: Sequence[str] = ("*.o2",)
) -> None:
    """Embed corpora (their functions in `variants`, globs) and `.s` or ELF files into an index.

    Raises:
        ModelError, BinaryError, ShardError: an input cannot be read.
        EmptyCorpus: no function matches.
    """
    encoder = load_encoder(model)
    positions: dict[str, int] = {}  # of a view among the texts to embed: equal bodies are embedded once
    entries, rows = [], []
    for path in inputs:
        for entry, text in _functions_of(path, variants):
            entries.append(entry)
            rows.append(positions.setdefault(text, len(positions)))
    if not entries:
        raise EmptyCorpus(
            f"no function matches {', '.join(variants)} in {', '.join(map(str, inputs))}",
            remedy="see the corpus's variants with corpus-builder stats",
        )
    with terminal.progress_bar("embedding", len(positions)) as advance:
        vectors_ND = embed_texts(encoder, list(positions), progress=advance)[rows]
    save(output, vectors_ND, entries, model=model, encoder=encoder)
    terminal.console().print(
        f"{output}: {len(entries):,} functions, {len(positions):,} distinct bodies, {encoder.dim} dimensions"
    )


def _functions_of(path: Path, variants: Sequence[str]) -> Iterator[tuple[Entry, str]]:
    """The functions of a corpus folder or a file, with their views."""
    if not path.is_dir():
        for function in functions_in(path):
            yield Entry("", str(path), function.name, function.isa, ""), function.view
        return
    for shard in load_index(path).shards:
        for record in read_shard(path / shard.name):
            for name, text in record.assembly.items():
                if any(fnmatchcase(name, pattern) for pattern in variants):
                    meta = record.meta
                    entry = Entry(meta.project, meta.file, meta.name, name, record.key)
                    yield entry, view(text, Variant.parse(name).isa)


def save(
    folder: Path, vectors_ND: Vectors, entries: Iterable[Entry], *, model: Path, encoder: Encoder
) -> None:
    """Write an index; until its last file is there, the folder holds none.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    (folder / "index.json").unlink(missing_ok=True)
    with atomic_output(folder / "vectors.npy") as stream:
        np.save(stream, vectors_ND)
    with atomic_output(folder / "functions.jsonl") as stream:
        for entry in entries:
            stream.write((json.dumps(asdict(entry)) + "\n").encode())
    meta = IndexMeta(
        model=str(model.resolve()),
        model_sha256=encoder.sha256,
        num_vectors=len(vectors_ND),
        dim=encoder.dim,
    )
    with atomic_output(folder / "index.json") as stream:
        stream.write((meta.model_dump_json(indent=1) + "\n").encode())


def load(folder: Path) -> VectorIndex:
    """Open an index.

    Raises:
        VectorIndexError: there is none, or its files do not fit each other.
    """
    try:
        meta = IndexMeta.model_validate_json((folder / "index.json").read_bytes())
        vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        lines = (folder / "functions.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise VectorIndexError(
            f"{folder} holds no index: {Path(error.filename).name} is missing", remedy=_REMEDY
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise VectorIndexError(f"index {folder} is damaged: {reason}", remedy=_REMEDY) from None
    if vectors_ND.shape != (meta.num_vectors, meta.dim) or len(lines) != meta.num_vectors:
        raise VectorIndexError(
            f"index {folder} is damaged: it records {meta.num_vectors} vectors of {meta.dim}, "
            f"its files hold {' x '.join(map(str, vectors_ND.shape))} and {len(lines)} functions",
            remedy=_REMEDY,
        )
    return VectorIndex(meta, vectors_ND, lines)


def nearest(
    vectors_ND: Vectors, query_D: Vectors, top: int, *, rows_per_block: int = 1 << 16
) -> list[tuple[int, float]]:
    """Positions and cosines of the `top` vectors nearest to a query, best first; ties by position."""
    found: list[tuple[float, int]] = []
    for start in range(0, len(vectors_ND), rows_per_block):
        cosines = vectors_ND[start : start + rows_per_block] @ query_D
        best = np.argsort(-cosines, kind="stable")[:top]
        found += [(-float(cosines[at]), start + int(at)) for at in best]
    return [(position, -negative) for negative, position in sorted(found)[:top]]


def run_search(
    file: Path,
    index: Path,
    *,
    function: str | None = None,
    top: int = 5,
    model: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print the nearest neighbours of one function of a `.s` or ELF file.

    Args:
        file: where the function is.
        index: folder that `run_build` wrote.
        function: its name; needed where the file holds several.
        top: neighbours shown.
        model: the embedding folder, if it no longer lies where it was when the index was built.
        as_json: print JSON instead of a table.

    Raises:
        BinaryError: the file holds no such function.
        VectorIndexError: the index is damaged, or another model made it.
    """
    asked = _chosen(file, functions_in(file), function)
    opened = load(index)
    encoder = _its_encoder(opened.meta, index, model)
    query_D = embed_texts(encoder, [asked.view])[0]
    found = [
        {"rank": rank, "similarity": round(cosine, 6)} | asdict(opened.entry(position))
        for rank, (position, cosine) in enumerate(nearest(opened.vectors_ND, query_D, top), 1)
    ]
    if as_json:
        query = {"file": str(file), "name": asked.name, "isa": asked.isa}
        print(json.dumps({"query": query, "neighbours": found}, indent=1))
    else:
        terminal.console().print(_table(f"Nearest to {asked.name} ({asked.isa}) of {file}", found))


def _chosen(file: Path, functions: Sequence[BinaryFunction], name: str | None) -> BinaryFunction:
    by_name = {function.name: function for function in functions}
    if name is None and len(functions) == 1:
        return functions[0]
    listed = ", ".join(sorted(by_name)[:8]) + (", .." if len(by_name) > 8 else "")
    if name is None:
        raise BinaryError(
            f"{file} holds {len(functions)} functions: {listed}", remedy="choose one with --function NAME"
        )
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        raise BinaryError(
            f"{file} has no function {name!r}",
            remedy=f"did you mean {near[0]}?" if near else f"it has {listed}",
        )
    return by_name[name]


def _its_encoder(meta: IndexMeta, index: Path, model: Path | None) -> Encoder:
    """The model that made the index, and no other."""
    folder = model or Path(meta.model)
    if not folder.is_dir():
        raise VectorIndexError(
            f"the model of index {index} is gone from {folder}", remedy="say where it is with --model FOLDER"
        )
    encoder = load_encoder(folder)
    if encoder.sha256 != meta.model_sha256:
        raise VectorIndexError(
            f"index {index} was made by model {meta.model_sha256[:12]}, {folder} is {encoder.sha256[:12]}: "
            "vectors of different models cannot be compared",
            remedy="build the index again with this model, or name the one that made it with --model FOLDER",
        )
    return encoder


def _table(title: str, found: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("similarity", justify="right")
    for heading in ("project", "file", "function", "variant"):
        table.add_column(heading, overflow="fold")
    for row in found:
        texts = [row[field] for field in ("project", "file", "name", "variant")]
        table.add_row(str(row["rank"]), f"{row['similarity']:.3f}", *texts)
    return table
