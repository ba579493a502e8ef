"""Find the nearest functions in a vector index: queries in, neighbours with their origins out.

Two ways: the graph proposes candidates whose cosines are then computed exactly from the float32 vectors, or
all vectors are compared (`exact`, which evaluation wants, and which a search among one project or ISA is).
Equal bodies share a vector, so a neighbour is a body first; it then stands for each function that has it.
Invariant: similarities are exact cosines, best first, ties by number; the graph can only miss a neighbour.
Cost of one query by itself: through the graph a third of a millisecond, half a one among a million vectors;
exact, one product with all vectors, 1 ms among 56,000 and 14 among a million (benchmarks/search.py).
Shapes: M vectors, Q queries, D vector length.
"""

import contextlib
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from asmtrain import terminal
from asmtrain.binary import BinaryFunction
from asmtrain.embed import Failure, read_files
from asmtrain.encoder import Vectors, embed_texts
from asmtrain.errors import BinaryError
from asmtrain.store import Entry, VectorIndex, its_encoder, load

_CANDIDATES_PER_RESULT = 4
"""Half precision may swap neighbours that are nearly as near: more than asked for are computed anew."""
_QUERIES_PER_BLOCK = 256


@dataclass(frozen=True)
class Neighbour:
    """A function of the index, as near as `similarity` says."""

    number: int
    similarity: float
    """Cosine, from -1 to 1."""
    entry: Entry


@dataclass(frozen=True)
class Asked:
    """A function of a file that is searched for."""

    file: str
    function: BinaryFunction


Hits = list[tuple[int, float]]
"""Rows and cosines, best first."""


def search(
    index: VectorIndex,
    queries_QD: Vectors,
    *,
    top: int,
    exact: bool = False,
    isa: str = "",
    project: str = "",
) -> list[list[Neighbour]]:
    """The `top` functions nearest to each query, best first; of one ISA and project where one is named.

    Raises:
        VectorIndexError: the index is damaged.
    """
    if isa or project:
        rows = np.array(index.bodies(isa=isa, project=project), dtype=np.int64)
        found = nearest(index.vectors_MD, queries_QD, top, rows=rows)
    elif exact:
        found = nearest(index.vectors_MD, queries_QD, top)
    else:
        found = through_graph(index.graph, index.vectors_MD, queries_QD, top)
    bodies = sorted({row for hits in found for row, _ in hits})
    functions = index.functions_of(bodies, isa=isa, project=project)
    return [
        [Neighbour(number, cosine, entry) for row, cosine in hits for number, entry in functions[row]][:top]
        for hits in found
    ]


def nearest(
    vectors_MD: Vectors,
    queries_QD: Vectors,
    top: int,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    rows_per_block: int = 1 << 16,
) -> list[Hits]:
    """Rows and cosines of the `top` vectors nearest to each query, best first; ties by row.

    Args:
        vectors_MD: all vectors.
        queries_QD: what is asked for.
        top: how many of each.
        rows: the only ones that are compared, ascending; all without it.
        rows_per_block: memory is this many numbers for each of 256 queries.
    """
    num_rows = len(vectors_MD) if rows is None else len(rows)
    found: list[Hits] = []
    for first in range(0, len(queries_QD), _QUERIES_PER_BLOCK):
        some_QD = queries_QD[first : first + _QUERIES_PER_BLOCK]
        hits: list[Hits] = [[] for _ in some_QD]
        for start in range(0, num_rows, rows_per_block):
            block = slice(start, start + rows_per_block)
            block_MD = vectors_MD[block if rows is None else rows[block]]
            for best, cosines_M in zip(hits, some_QD @ block_MD.T, strict=True):
                best += [(start + int(at), float(cosines_M[at])) for at in _largest(cosines_M, top)]
        found += [sorted(best, key=lambda hit: (-hit[1], hit[0]))[:top] for best in hits]
    if rows is not None:
        return [[(int(rows[at]), cosine) for at, cosine in hits] for hits in found]
    return found


def _largest(values: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.int64]:
    """Positions of the `top` largest values and of all that equal the last of them, in no order."""
    if top >= len(values):
        return np.arange(len(values))
    return np.flatnonzero(values >= np.partition(values, -top)[-top])


def through_graph(graph: Any, vectors_MD: Vectors, queries_QD: Vectors, top: int) -> list[Hits]:
    """As `nearest`, among the candidates that the graph gives for each query."""
    matches = graph.search(queries_QD, min(_CANDIDATES_PER_RESULT * top, len(graph)))
    found = []
    for query_D, one in zip(queries_QD, [matches] if len(queries_QD) == 1 else matches, strict=True):
        rows = one.keys.astype(np.int64)
        cosines = vectors_MD[rows] @ query_D
        order = np.lexsort((rows, -cosines))[:top]
        found.append([(int(rows[at]), float(cosines[at])) for at in order])
    return found


def run_search(
    index: Path,
    files: Sequence[Path],
    *,
    function: str | None = None,
    top: int = 5,
    exact: bool = False,
    isa: str = "",
    project: str = "",
    model: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print the nearest neighbours of the functions of files.

    Args:
        index: its folder.
        files: `.s`, ELF or archive.
        function: the only one wanted, by name.
        top: neighbours shown of each.
        exact: compare with every vector instead of walking the graph.
        isa: of the neighbours; any without it.
        project: of the neighbours; any without it.
        model: the embedding folder, if it no longer lies where it was when the index was built.
        as_json: print JSON instead of tables.

    Returns 0, or 2 if some file could not be read: each is told in a line, and the others are searched for.

    Raises:
        BinaryError: no file holds such a function, or none can be read.
        VectorIndexError: the index is damaged, or another model made it.
    """
    asked, failed = _asked(files, function)
    with contextlib.closing(load(index)) as opened:
        encoder = its_encoder(index, opened.meta, model)
        queries_QD = embed_texts(encoder, [item.function.view for item in asked])
        found = search(opened, queries_QD, top=top, exact=exact, isa=isa, project=project)
    if as_json:
        queries = [answer(item, hits) for item, hits in zip(asked, found, strict=True)]
        print(json.dumps({"index": str(index), "exact": exact, "queries": queries}, indent=1))
    else:
        terminal.console().print(_table(asked, found))
    for failure in failed:
        print(f"error: {failure.line()}", file=sys.stderr)
    return 2 if failed else 0


def answer(asked: Asked, neighbours: Sequence[Neighbour]) -> dict[str, Any]:
    """A query and its neighbours as JSON carries them."""
    query = asdict(asked.function) | {"file": asked.file}
    del query["view"]
    rows = [
        {"rank": rank, "similarity": round(near.similarity, 6), "number": near.number} | asdict(near.entry)
        for rank, near in enumerate(neighbours, 1)
    ]
    return query | {"neighbours": rows}


def _asked(files: Sequence[Path], name: str | None) -> tuple[list[Asked], list[Failure]]:
    """The functions asked for, and what is wrong with files that cannot be read."""
    asked, failed = [], []
    for result in read_files(files):
        if isinstance(result, Failure):
            failed.append(result)
        else:
            asked += [Asked(str(result.path), function) for function in result.functions]
    if not asked:
        raise failed[-1].error
    return (chosen(asked, name) if name else asked), failed


def chosen(asked: Sequence[Asked], name: str) -> list[Asked]:
    """Those of that name.

    Raises:
        BinaryError: there is none; the message names similar ones.
    """
    named = [item for item in asked if item.function.name == name]
    if not named:
        names = sorted({item.function.name for item in asked})
        near = difflib.get_close_matches(name, names, n=1)
        listed = ", ".join(names[:8]) + (", .." if len(names) > 8 else "")
        raise BinaryError(
            f"{', '.join(dict.fromkeys(item.file for item in asked))} has no function {name!r}",
            remedy=f"did you mean {near[0]}?" if near else f"it has {listed}",
        )
    return named


def _table(asked: Sequence[Asked], found: Sequence[Sequence[Neighbour]]) -> Table:
    """A line a neighbour; what was asked for stands at the first, with its file where there are several."""
    files = list(dict.fromkeys(item.file for item in asked))
    title = terminal.plain(f"Nearest to functions of {files[0]}") if len(files) == 1 else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("asked", overflow="fold")
    table.add_column("", justify="right")
    table.add_column("similarity", justify="right")
    for heading in ("project", "file", "function", "variant"):
        table.add_column(heading, overflow="fold")
    for item, neighbours in zip(asked, found, strict=True):
        places = ([item.file] if len(files) > 1 else []) + [item.function.member, item.function.name]
        name = terminal.plain(": ".join(filter(None, places)))
        for rank, near in enumerate(neighbours, 1):
            entry = near.entry
            texts = map(terminal.plain, (entry.project, entry.file, entry.name, entry.variant))
            own = name if rank == 1 else ""
            table.add_row(
                own, str(rank), f"{near.similarity:.3f}", *texts, end_section=rank == len(neighbours)
            )
    return table
