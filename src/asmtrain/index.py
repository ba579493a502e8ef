"""Make a vector index and let it grow: corpora and files in, the folder that `store` describes out.

Each distinct body is embedded once, also over several runs. Functions are written to the database as they are
read and embedded from there, a chunk at a time, so memory does not grow with the index, but for the graph.
Invariant: killed at any moment, the folder holds the index it held before, or the new one. A new data folder
is filled beside the old one, synced, named in `index.json`; leftovers go with the next run.
Cost: embedding; adding copies the old data (1.5 GB at a million bodies) and puts new vectors into the graph.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from asmtrain import terminal
from asmtrain.embed import Failure, read_files
from asmtrain.encoder import Encoder, Vectors, default_model, embed_texts, load_encoder
from asmtrain.errors import BinaryError, VectorIndexError
from asmtrain.store import (
    FUNCTIONS,
    GRAPH,
    VECTORS,
    Entry,
    IndexMeta,
    VectorIndex,
    its_encoder,
    load,
    new_graph,
    packed,
    read_meta,
    unpacked,
)
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus, OutputError
from corpus_builder.record import Variant
from corpus_builder.shards import atomic_output, load_index, read_shard

_TEXTS_PER_CHUNK = 1 << 15
_SCHEMA = """
CREATE TABLE body (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, text BLOB NOT NULL);
CREATE TABLE source (id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, text BLOB NOT NULL);
CREATE TABLE function (
    id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, body INTEGER NOT NULL, source INTEGER,
    isa TEXT NOT NULL, project TEXT NOT NULL, entry TEXT NOT NULL
);
CREATE INDEX function_of_body ON function (body);
CREATE INDEX function_of_project ON function (project, isa, body);
"""


class Given(NamedTuple):
    """A function to be stored."""

    entry: Entry
    view: str
    source: str


@dataclass
class Tally:
    """What became of the inputs."""

    functions: int = 0
    """New ones."""
    known: int = 0
    """That the index held before."""
    failed: list[Failure] = field(default_factory=list)


def run_build(
    inputs: Sequence[Path], output: Path, *, model: Path | None = None, variants: Sequence[str] = ("*.o2",)
) -> int:
    """Embed corpora (their functions in `variants`, globs) and files into an index; replaces what was there.

    Returns 0, or 2 if some file could not be read: each is told in a line, and the others are indexed.

    Raises:
        ModelError, ShardError: the model or a corpus cannot be read.
        EmptyCorpus: no function matches.
    """
    model = model or default_model()
    encoder = load_encoder(model)
    with _locked(output):
        return _grow(output, None, inputs, variants=variants, encoder=encoder, model=model)


def run_add(
    index: Path, inputs: Sequence[Path], *, model: Path | None = None, variants: Sequence[str] = ("*.o2",)
) -> int:
    """Embed more into an index, by the model that made it; what it holds already is not added again.

    Returns as `run_build`.

    Raises:
        VectorIndexError: there is no index, or another model made it.
        ShardError, EmptyCorpus: as `run_build`.
    """
    read_meta(index)  # a folder that holds none gets no lock file
    with _locked(index), contextlib.closing(load(index)) as old:
        encoder = its_encoder(index, old.meta, model)
        place = model or Path(old.meta.model)
        return _grow(index, old, inputs, variants=variants, encoder=encoder, model=place)


def run_info(index: Path, *, as_json: bool = False) -> int:
    """Print what an index holds and which model made it.

    Raises:
        VectorIndexError: there is none, or it is damaged.
    """
    with contextlib.closing(load(index)) as opened:
        found = described(opened)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for name, value in found.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for number, (key, item) in enumerate(rows):
            shown = f"{item:,}" if isinstance(item, int) else str(item)
            table.add_row("" if number else name, terminal.plain(f"{key} {shown}".strip()))
    terminal.console().print(table)
    return 0


def described(opened: VectorIndex) -> dict[str, str | int | dict[str, int]]:
    """What an index holds, for people and programs."""
    meta = opened.meta
    return {
        "index": str(opened.folder),
        "model": meta.model,
        "model_sha256": meta.model_sha256,
        "dim": meta.dim,
        "functions": meta.num_functions,
        "distinct_bodies": meta.num_bodies,
        "size_bytes": sum(meta.size_bytes.values()),
        "isas": opened.counts("isa"),
        "projects": {name or "(files)": count for name, count in opened.counts("project").items()},
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; failures to write become ours."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise VectorIndexError(
            f"another process is writing to index {folder}", remedy="wait until it is done"
        ) from None
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "full" in str(error)
        remedy = "free some space" if full else "check the path and its permissions"
        raise OutputError(f"cannot write {folder}: {error}", remedy=remedy) from error


def _grow(
    folder: Path,
    old: VectorIndex | None,
    inputs: Sequence[Path],
    *,
    variants: Sequence[str],
    encoder: Encoder,
    model: Path,
) -> int:
    """Fill a new data folder with the old index, if any, and the inputs; then make it the index."""
    data = _next_data(folder)
    data.mkdir()
    try:
        tally = _store(data / FUNCTIONS, old, inputs, variants)
        if not tally.functions + tally.known:
            raise _nothing(tally, inputs, variants)
        vectors_MD = _write_vectors(data, old, encoder)
        _write_graph(data / GRAPH, old, vectors_MD)
        meta = _published(folder, data, tally, old, vectors_MD, encoder=encoder, model=model)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    for name in _data_folders(folder) - {data}:
        shutil.rmtree(name, ignore_errors=True)
    known = f", {tally.known:,} were there already" if tally.known else ""
    terminal.console().print(
        f"{folder}: {tally.functions:,} functions added{known}; it holds {meta.num_functions:,} functions, "
        f"{meta.num_bodies:,} distinct bodies, {meta.dim} dimensions",
        markup=False,
    )
    return _complain(tally)


def _nothing(tally: Tally, inputs: Sequence[Path], variants: Sequence[str]) -> BinaryError | EmptyCorpus:
    """The error to end with where no input gave a function."""
    if tally.failed:
        last = tally.failed.pop()
        _complain(tally)
        return last.error
    return EmptyCorpus(
        f"no function matches {', '.join(variants)} in {', '.join(map(str, inputs))}",
        remedy="see the corpus's variants with corpus-builder stats",
    )


def _data_folders(folder: Path) -> set[Path]:
    return {path for path in folder.glob("data-*") if path.name.removeprefix("data-").isdigit()}


def _next_data(folder: Path) -> Path:
    """A name that no data folder has; those that no index names are removed."""
    with contextlib.suppress(VectorIndexError):
        for path in _data_folders(folder) - {folder / read_meta(folder).data}:
            shutil.rmtree(path)
    numbers = (int(path.name.removeprefix("data-")) for path in _data_folders(folder))
    return folder / f"data-{max(numbers, default=-1) + 1}"


def _complain(tally: Tally) -> int:
    for failure in tally.failed:
        print(f"error: {failure.line()}", file=sys.stderr)
    return 2 if tally.failed else 0


def _published(
    folder: Path,
    data: Path,
    tally: Tally,
    old: VectorIndex | None,
    vectors_MD: Vectors,
    *,
    encoder: Encoder,
    model: Path,
) -> IndexMeta:
    """Sync the data and name it in `index.json`."""
    for name in (VECTORS, GRAPH, FUNCTIONS, "."):
        descriptor = os.open(data / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    meta = IndexMeta(
        model=str(model.resolve()),
        model_sha256=encoder.sha256,
        dim=encoder.dim,
        num_functions=tally.functions + (old.meta.num_functions if old else 0),
        num_bodies=len(vectors_MD),
        data=data.name,
        size_bytes={name: (data / name).stat().st_size for name in (VECTORS, GRAPH, FUNCTIONS)},
    )
    with atomic_output(folder / "index.json") as stream:
        stream.write((meta.model_dump_json(indent=1) + "\n").encode())
    return meta


# Functions into the database.


def _store(path: Path, old: VectorIndex | None, inputs: Sequence[Path], variants: Sequence[str]) -> Tally:
    """Write the functions of all inputs."""
    if old is not None:
        shutil.copyfile(old.folder / old.meta.data / FUNCTIONS, path)
    tally = Tally()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        # Until index.json names this file it is nothing, and then it is synced.
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        if old is None:
            database.executescript(_SCHEMA)
        database.execute("BEGIN")
        for given in _functions_of(inputs, variants, tally):
            _insert(database, given, tally)
        database.execute("COMMIT")
    return tally


def _insert(database: sqlite3.Connection, given: Given, tally: Tally) -> None:
    entry = json.dumps(asdict(given.entry))
    body = _text_id(database, "body", given.view)
    source = _text_id(database, "source", given.source) if given.source else None
    new = database.execute(
        "INSERT OR IGNORE INTO function (sha256, body, source, isa, project, entry) VALUES (?,?,?,?,?,?)",
        (_sha256(f"{body} {entry}"), body, source, given.entry.isa, given.entry.project, entry),
    ).rowcount
    tally.functions += new
    tally.known += 1 - new


def _text_id(database: sqlite3.Connection, table: str, text: str) -> int:
    """Number of a text in its table, from 0 on without a gap; it is put there if it is new."""
    sha256 = _sha256(text)
    found = database.execute(f"SELECT id FROM {table} WHERE sha256 = ?", (sha256,)).fetchone()
    if found is None:
        found = database.execute(
            f"INSERT INTO {table} SELECT ifnull(max(id) + 1, 0), ?, ? FROM {table} RETURNING id",
            (sha256, packed(text)),
        ).fetchone()
    number: int = found[0]
    return number


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _functions_of(inputs: Sequence[Path], variants: Sequence[str], tally: Tally) -> Iterator[Given]:
    """The functions of all corpora, then of all files; files that cannot be read are noted."""
    for path in inputs:
        if path.is_dir():
            yield from _functions_of_corpus(path, variants)
    for result in read_files([path for path in inputs if not path.is_dir()]):
        if isinstance(result, Failure):
            tally.failed.append(result)
            continue
        file = str(result.path)
        for function in result.functions:
            origin = ("", file, function.member, function.name, function.isa, function.isa)
            place = (function.address, function.size, result.sha256)
            yield Given(Entry(*origin, *place), function.view, "")


def _functions_of_corpus(path: Path, variants: Sequence[str]) -> Iterator[Given]:
    for shard in load_index(path).shards:
        for record in read_shard(path / shard.name):
            for name, text in record.assembly.items():
                if any(fnmatchcase(name, pattern) for pattern in variants):
                    meta, isa = record.meta, Variant.parse(name).isa
                    entry = Entry(
                        meta.project, meta.file, "", meta.name, isa, name, None, None, key=record.key
                    )
                    yield Given(entry, view(text, isa), record.source)


# Vectors.


def _write_vectors(data: Path, old: VectorIndex | None, encoder: Encoder) -> Vectors:
    """The old vectors, then those of the bodies that are new."""
    with contextlib.closing(sqlite3.connect(data / FUNCTIONS)) as database:
        (num_bodies,) = database.execute("SELECT count(*) FROM body").fetchone()
        num_old = old.meta.num_bodies if old else 0
        vectors_MD = np.lib.format.open_memmap(
            data / VECTORS, mode="w+", dtype=np.float32, shape=(num_bodies, encoder.dim)
        )
        if old is not None:
            vectors_MD[:num_old] = old.vectors_MD
        with terminal.progress_bar("embedding", num_bodies - num_old) as advance:
            for start in range(num_old, num_bodies, _TEXTS_PER_CHUNK):
                rows = database.execute(
                    "SELECT text FROM body WHERE id >= ? AND id < ? ORDER BY id",
                    (start, start + _TEXTS_PER_CHUNK),
                )
                texts = [unpacked(text) for (text,) in rows]
                vectors_MD[start : start + len(texts)] = embed_texts(encoder, texts, progress=advance)
    vectors_MD.flush()
    return vectors_MD


def _write_graph(path: Path, old: VectorIndex | None, vectors_MD: Vectors) -> None:
    """The old graph with the new vectors in it."""
    graph = new_graph(vectors_MD.shape[1])
    if old is not None:
        graph.load(old.folder / old.meta.data / GRAPH)
    new = np.arange(len(graph), len(vectors_MD), dtype=np.uint64)
    if len(new):
        graph.add(new, vectors_MD[len(graph) :])
    try:
        graph.save(path)
    except RuntimeError as error:
        raise OSError(str(error)) from None
