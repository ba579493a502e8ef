"""Search through the graph against exact search: build time, size, queries a second, neighbours missed.

Vectors that lie in clusters (a thousand centres, each as wide as the variants of a function lie apart) in
growing numbers, and an index's own. A tenth, 1,000 at most, are taken out and asked for. `graph` is what
`asmtrain index search` does: float16, four candidates a result, cosines computed anew; beside it other
precisions, and the graph's own order without that. All by all cores, one batch; and one query at a time.
Prints tables, and as its last line one JSON object; `--save` keeps it in results/search.json, and the rows of
`exact` and `graph` in docs/search.md. Ten minutes at the default sizes on two cores.

    python benchmarks/search.py [--index runs/demo/index] [--sizes 10000 100000 1000000] [--save]
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _report import markdown, report
from _saved import save
from rich.console import Console
from rich.table import Table

from asmtrain.encoder import Vectors
from asmtrain.search import Hits, nearest, through_graph
from asmtrain.store import load, new_graph

PAGE = Path("docs/search.md")
TOP = 10
CENTRES = 1000
SPREAD = 0.07
"""Standard deviation a dimension: at 128, members of a cluster have a cosine of about .6."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, default=Path("runs/demo/index"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128, help="of the vectors in clusters")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/search.json")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with contextlib.closing(load(options.index)) as opened:
        figures["index"] = measured("of the index", np.array(opened.vectors_MD))
    for size in options.sizes:
        figures[f"clusters_{size}"] = measured("in clusters", clusters(size, options.dim))
    if options.save:
        save("search", {"top": TOP, "sets": figures})
        report(PAGE, {"speed": table(figures.values())})
    print(json.dumps(figures))


def clusters(size: int, dim: int) -> Vectors:
    """Unit vectors around random centres."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(CENTRES, dim)).astype(np.float32))
    noise = rng.normal(size=(size, dim)).astype(np.float32) * SPREAD
    return unit(centres[rng.integers(0, CENTRES, size)] + noise)


def unit(vectors_ND: Vectors) -> Vectors:
    scaled: Vectors = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return scaled


def measured(what: str, vectors_ND: Vectors) -> dict[str, Any]:
    """Figures of every way to search some vectors for others; prints them."""
    order = np.random.default_rng(1).permutation(len(vectors_ND))
    num_queries = min(1000, len(order) // 10)
    queries_QD, kept_MD = vectors_ND[order[:num_queries]], vectors_ND[order[num_queries:]]
    exact = figures_of(lambda some: nearest(kept_MD, some, TOP), queries_QD, None)
    truth = exact.pop("hits")
    rows: dict[str, dict[str, Any]] = {"exact": exact | {"build_s": 0.0, "graph_bytes": 0}}
    for name, dtype in (("graph", "f16"), ("graph f32", "f32"), ("graph i8", "i8")):
        started = time.perf_counter()
        graph = new_graph(kept_MD.shape[1], dtype=dtype)
        graph.add(np.arange(len(kept_MD), dtype=np.uint64), kept_MD)
        built = {"build_s": round(time.perf_counter() - started, 2), "graph_bytes": size_of(graph)}
        ways = {
            name: lambda some, graph=graph: through_graph(graph, kept_MD, some, TOP),
            f"{name}, its own order": lambda some, graph=graph: in_its_own_order(graph, some),
        }
        for way, search in ways.items():
            rows[way] = figures_of(search, queries_QD, truth) | built
            del rows[way]["hits"]
    show(f"{len(kept_MD):,} vectors {what}, {num_queries:,} queries", rows)
    return {"what": what, "num_vectors": len(kept_MD), "num_queries": num_queries, "ways": rows}


def in_its_own_order(graph: Any, queries_QD: Vectors) -> list[Hits]:
    """What the graph gives, as it gives it."""
    matches = graph.search(queries_QD, TOP)
    each = [matches] if len(queries_QD) == 1 else matches
    return [[(int(key), 0.0) for key in one.keys] for one in each]


def size_of(graph: Any) -> int:
    """On disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        graph.save(path)
        return path.stat().st_size


def figures_of(
    search: Callable[[Vectors], list[Hits]], queries_QD: Vectors, truth: Sequence[Hits] | None
) -> dict[str, Any]:
    """Queries a second, in one batch and one at a time, and the share of the true neighbours found."""
    search(queries_QD[:2])  # memory is mapped, threads have begun
    started = time.perf_counter()
    hits = search(queries_QD)
    batch_s = time.perf_counter() - started
    started = time.perf_counter()
    for at in range(0, min(100, len(queries_QD))):
        search(queries_QD[at : at + 1])
    single_s = (time.perf_counter() - started) / min(100, len(queries_QD))
    return {
        "queries_per_s": round(len(queries_QD) / batch_s, 1),
        "milliseconds_one_query": round(single_s * 1e3, 3),
        "recall_at_1": round(recall(hits, truth or hits, 1), 5),
        "recall_at_10": round(recall(hits, truth or hits, TOP), 5),
        "hits": hits,
    }


def recall(hits: Sequence[Hits], truth: Sequence[Hits], top: int) -> float:
    """Share of the `top` true neighbours among the `top` found."""
    shares = []
    for found, true in zip(hits, truth, strict=True):
        wanted = {row for row, _ in true[:top]}
        shares.append(len(wanted & {row for row, _ in found[:top]}) / len(wanted))
    return float(np.mean(shares))


def table(sets: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: exact search and the graph as it is used."""
    costs = ("build_s", "queries_per_s", "milliseconds_one_query")
    cells = [
        [
            f"{one['num_vectors']:,} {one['what']}",
            way,
            *(one["ways"][way][key] for key in costs),
            *(f"{one['ways'][way][f'recall_at_{top}']:.4f}" for top in (1, TOP)),
        ]
        for one in sets
        for way in ("exact", "graph")
    ]
    headings = ("", "build s", "queries/s", "ms, one alone", "nearest found", f"of {TOP} nearest")
    return markdown(["vectors", *headings], cells)


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table("", "build s", "graph MB", "queries/s", "ms alone", "recall@1", "recall@10", title=title)
    for name, row in rows.items():
        shares = (f"{row[f'recall_at_{top}']:.4f}" for top in (1, TOP))
        sizes = (f"{row['build_s']:.1f}", f"{row['graph_bytes'] / 1e6:.0f}")
        table.add_row(
            name, *sizes, f"{row['queries_per_s']:,.0f}", f"{row['milliseconds_one_query']:.2f}", *shares
        )
    Console().print(table)


if __name__ == "__main__":
    main()
