"""Functions of corpora and files into the database of a vector index.

In go corpora (their functions in some variants) and files; out comes `functions.sqlite` as `store` describes
it: each distinct body and source once, no function twice. Files that cannot be read are noted.
Invariant: bodies are numbered from 0 on without a gap, those that were there before first.
Cost: what reading takes; functions are written as they are read, so memory does not grow with the index.
"""

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from asmtrain.embed import Failure, read_files
from asmtrain.store import FUNCTIONS, Entry, VectorIndex, packed
from corpus_builder.asm import view
from corpus_builder.record import Variant
from corpus_builder.shards import load_index, read_shard

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


def gather(path: Path, old: VectorIndex | None, inputs: Sequence[Path], variants: Sequence[str]) -> Tally:
    """Write a database of what an old index holds, if any, and of all inputs.

    Raises:
        ShardError: a corpus cannot be read.
    """
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
