"""What a vector index is on disk, and how it is opened.

    INDEX/index.json                the model that made it (path and hash), counts, data folder; written last
    INDEX/data-N/vectors.npy        a unit vector a distinct body (M, D), float32, memory-mapped
    INDEX/data-N/graph.usearch      the same vectors as a graph (HNSW, cosine, float16), memory-mapped
    INDEX/data-N/functions.sqlite   the functions, the body of each, and texts: each body's view, the C source

An index needs neither the corpus nor the files it was made from. Equal bodies share a vector: a graph in
which hundreds of vectors are the same loses its way among them. `index.json` is replaced in one step when a
new data folder is whole, so a reader meets the old index or the new one (`index` writes, `search` searches).
Invariant: row i of the vectors, key i of the graph and body i of the database are the same.
Cost: opening takes milliseconds at any size; texts are read when asked for.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from usearch.index import Index as Graph

from asmtrain.encoder import Encoder, Vectors, default_model, load_encoder
from asmtrain.errors import ModelError, VectorIndexError

VECTORS, GRAPH, FUNCTIONS = "vectors.npy", "graph.usearch", "functions.sqlite"
SCHEMA_VERSION = 2
SEARCH_WIDTH = 128
"""Candidates that the graph keeps while it searches: twice the library's own choice, for .9998 of the ten
nearest where that finds .999 (`benchmarks/search.py`)."""

_REMEDY = "build it again with asmtrain index build"


class IndexMeta(BaseModel):
    """`index.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    model: str
    """Folder of the model, as it was when the index was built."""
    model_sha256: str
    dim: int
    num_functions: int
    num_bodies: int
    """Distinct ones: as many as there are vectors."""
    data: str = Field(pattern=r"^data-\d+$")
    """Folder of the files."""
    size_bytes: dict[str, int]
    """File name to its size."""


@dataclass(frozen=True)
class Entry:
    """Where a function comes from."""

    project: str
    """Empty for a function that came from a file."""
    file: str
    member: str
    """Of an archive; empty elsewhere."""
    name: str
    isa: str
    variant: str
    """The ISA alone for a function that came from a file."""
    address: int | None
    """In its file; None for text and corpora."""
    size: int | None
    """Bytes of machine code; None for text and corpora."""
    key: str
    """Of the record in its corpus; for a function of a file, the file's sha256."""


@dataclass(frozen=True)
class Texts:
    """What can be read of a function."""

    assembly: str
    """Its view: what the model saw."""
    source: str
    """C; empty for a function that came from a file."""


@dataclass(frozen=True)
class VectorIndex:
    """An index that is open; threads may share it."""

    folder: Path
    meta: IndexMeta
    vectors_MD: Vectors
    graph: Any
    database: sqlite3.Connection

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def functions_of(
        self, bodies: Sequence[int], *, isa: str = "", project: str = ""
    ) -> dict[int, list[tuple[int, Entry]]]:
        """The functions with each of these bodies, by number: of one ISA and project where one is named."""
        found: dict[int, list[tuple[int, Entry]]] = {body: [] for body in bodies}
        condition, values = _condition(isa, project)
        for start in range(0, len(bodies), 500):  # SQLite limits the number of values
            some = [int(body) for body in bodies[start : start + 500]]
            marks = ",".join("?" * len(some))
            for number, body, entry in self._rows(
                f"SELECT id, body, entry FROM function WHERE body IN ({marks}) AND {condition} ORDER BY id",
                (*some, *values),
            ):
                found[body].append((number, Entry(**json.loads(entry))))
        return found

    def bodies(self, *, isa: str = "", project: str = "") -> list[int]:
        """The distinct bodies of one ISA and project, in order."""
        condition, values = _condition(isa, project)
        rows = self._rows(f"SELECT DISTINCT body FROM function WHERE {condition} ORDER BY body", values)
        return [body for (body,) in rows]

    def counts(self, column: str) -> dict[str, int]:
        """Number of functions by `isa` or `project`."""
        return dict(self._rows(f"SELECT {column}, count(*) FROM function GROUP BY 1 ORDER BY 1"))

    def function(self, number: int) -> tuple[Entry, Texts] | None:
        """One function and its texts; None if there is no such number."""
        rows = self._rows(
            "SELECT entry, body.text, source.text FROM function JOIN body ON body.id = function.body"
            " LEFT JOIN source ON source.id = function.source WHERE function.id = ?",
            (number,),
        )
        for entry, assembly, source in rows:
            return Entry(**json.loads(entry)), Texts(unpacked(assembly), unpacked(source) if source else "")
        return None

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self.database.execute(query, tuple(values)).fetchall()
        except sqlite3.DatabaseError as error:
            raise _damaged(self.folder, f"{FUNCTIONS}: {error}") from None


def _condition(isa: str, project: str) -> tuple[str, list[str]]:
    wanted = {name: value for name, value in (("isa", isa), ("project", project)) if value}
    return " AND ".join(["1", *(f"{name} = ?" for name in wanted)]), list(wanted.values())


def packed(text: str) -> bytes:
    """A text as the database keeps it."""
    return zstandard.ZstdCompressor(level=3).compress(text.encode("utf-8", "surrogatepass"))


def unpacked(content: bytes) -> str:
    """The text of `packed`."""
    return zstandard.ZstdDecompressor().decompress(content).decode("utf-8", "surrogatepass")


def new_graph(dim: int, *, dtype: str = "f16") -> Any:
    """An empty graph. Half precision: half the size of float32, and quicker; `search` makes good for it."""
    return Graph(ndim=dim, metric="cos", dtype=dtype, expansion_search=SEARCH_WIDTH)


def read_meta(folder: Path) -> IndexMeta:
    """Read `index.json`.

    Raises:
        VectorIndexError: there is none, it is damaged, or it is of another version.
    """
    try:
        return IndexMeta.model_validate_json((folder / "index.json").read_bytes())
    except FileNotFoundError:
        raise VectorIndexError(f"{folder} holds no index: index.json is missing", remedy=_REMEDY) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(folder, f"index.json: {where}: {first['msg']}") from None
    except OSError as error:
        raise _damaged(folder, str(error)) from None


def load(folder: Path) -> VectorIndex:
    """Open an index.

    Raises:
        VectorIndexError: there is none, or its files do not fit each other.
    """
    meta = read_meta(folder)
    try:
        return _opened(folder, meta)
    except VectorIndexError:
        if (now := read_meta(folder)) == meta:
            raise
        return _opened(folder, now)  # it was replaced in between


def _opened(folder: Path, meta: IndexMeta) -> VectorIndex:
    data = folder / meta.data
    try:
        for name in (VECTORS, GRAPH, FUNCTIONS):
            size = (data / name).stat().st_size
            if size != meta.size_bytes.get(name):
                raise _damaged(folder, f"{name} has {size} bytes, not {meta.size_bytes.get(name)}")
        vectors_MD = np.load(data / VECTORS, mmap_mode="r", allow_pickle=False)
        graph = Graph.restore(data / GRAPH, view=True)
        place = f"file:{quote(str((data / FUNCTIONS).resolve()))}?mode=ro&immutable=1"
        database = sqlite3.connect(place, uri=True, check_same_thread=False)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise VectorIndexError(f"{folder} holds no index: {missing} is missing", remedy=_REMEDY) from None
    except (OSError, ValueError, RuntimeError, sqlite3.DatabaseError) as error:
        raise _damaged(folder, str(error).splitlines()[0]) from None
    shape = (meta.num_bodies, meta.dim)
    if graph is None or not vectors_MD.shape == (len(graph), graph.ndim) == shape:
        raise _damaged(folder, f"it records {shape[0]} vectors of {shape[1]}, its files hold others")
    graph.expansion_search = SEARCH_WIDTH
    return VectorIndex(folder, meta, vectors_MD, graph, database)


def _damaged(folder: Path, reason: str) -> VectorIndexError:
    return VectorIndexError(f"index {folder} is damaged: {reason}", remedy=_REMEDY)


def its_encoder(folder: Path, meta: IndexMeta, model: Path | None) -> Encoder:
    """The model that made the index, and no other: from `model`, where it was, or this package's own.

    Raises:
        VectorIndexError: it is gone, or `model` is another.
        ModelError: `model` is no embedding export.
    """
    place = model or _place(folder, meta)
    encoder = load_encoder(place)
    if encoder.sha256 != meta.model_sha256:
        raise VectorIndexError(
            f"index {folder} was made by model {meta.model_sha256[:12]}, {place} is {encoder.sha256[:12]}: "
            "vectors of different models cannot be compared",
            remedy="build the index again with this model, or name the one that made it with --model FOLDER",
        )
    return encoder


def _place(folder: Path, meta: IndexMeta) -> Path:
    if Path(meta.model).is_dir():
        return Path(meta.model)
    try:
        shipped = default_model()
        if load_encoder(shipped).sha256 == meta.model_sha256:
            return shipped
    except ModelError:
        pass
    raise VectorIndexError(
        f"the model of index {folder} is gone from {meta.model}", remedy="say where it is with --model FOLDER"
    )
