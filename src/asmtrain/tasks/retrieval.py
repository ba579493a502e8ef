"""Retrieval: find a function compiled one way among many compiled another way.

Input format: a function's `asm.view`, what a stripped binary shows. Evaluation: in go an `embedding/` folder
and a corpus, out come `retrieval.json` (a row a lane, pool and model), `retrieval.png` and a table. `pools`
holds the protocol, `baselines` what stands beside the model; `untrained` is the same architecture and
tokenizer with random weights.

Every model answers the same queries in the same pools. Cost: two forward passes a distinct body, at most
`MAX_PAIRS` pairs a lane; the ranking takes seconds.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from asmtrain import terminal
from asmtrain.encoder import Encoder, Vectors, embed_texts, load_encoder, untrained_twin
from asmtrain.tasks import pools
from asmtrain.tasks.baselines import BASELINES
from asmtrain.tasks.pools import Census, Floats, Lane, Pair
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import atomic_output, read_split

POOLS = (100, 1000)
MAX_PAIRS = 1000
"""Pairs of a lane that are asked for; more would cost more embedding and say little more."""
MIN_INSTRUCTIONS = 10
"""Shorter functions are too alike to be told apart by anyone, and are left out on either side."""

_LEGEND = f"""\
Functions compiled both ways, less those under {MIN_INSTRUCTIONS} instructions on a side (short), with equal
bodies on both (identical), or sharing a body, the source, or name and file with one already in
(duplicate), less those beyond the number asked for (surplus). A tie counts as its mean rank."""

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One lane with the pairs that it asks for."""

    lane: Lane
    pairs: list[Pair]
    census: Census


def run(model: Path, corpus: Path, output: Path, *, split: str = "test", seed: int = 0) -> list[Row]:
    """Evaluate an `embedding/` folder on a split; write `retrieval.json` and `.png` into `output`.

    Raises:
        ModelError: `model` is not an embedding export.
        EmptyCorpus: the split holds no lane with two pairs to tell apart.
    """
    console = terminal.console()
    trained = load_encoder(model)
    tasks, texts = prepare(corpus, split=split, seed=seed)
    vectors = {
        "untrained": _embedded(untrained_twin(model, seed=seed), texts, "untrained", console),
        "trained": _embedded(trained, texts, "trained", console),
    }
    shared = {
        "split": split,
        "seed": seed,
        "min_instructions": MIN_INSTRUCTIONS,
        "model_sha256": trained.sha256,
    }
    rows = [row | shared for task in tasks for row in evaluate(task, texts, vectors)]
    with atomic_output(output / "retrieval.json") as stream:
        stream.write((json.dumps(rows, indent=1) + "\n").encode())
    from asmtrain.tasks.figure import draw

    draw(rows, output / "retrieval.png")
    show(rows, console)
    console.print(f"{output / 'retrieval.json'}, {output / 'retrieval.png'}")
    return rows


def prepare(corpus: Path, *, split: str, seed: int) -> tuple[list[Task], dict[str, str]]:
    """The lanes of a split with their pairs, and the view of every body they need, by its sha256.

    Reads the split twice, so that only the texts that are asked for are kept.
    """
    metas = [(record.key, record.meta) for record in read_split(corpus, split)]
    tasks = []
    for lane in pools.lanes_of({name for _, meta in metas for name in meta.variants}):
        pairs, census = pools.eligible(
            metas, lane, min_instructions=MIN_INSTRUCTIONS, limit=MAX_PAIRS, seed=seed
        )
        if len(pairs) > 1:
            tasks.append(Task(lane, pairs, census))
    if not tasks:
        raise EmptyCorpus(
            f"split {split!r} of {corpus} has no two functions of {MIN_INSTRUCTIONS} instructions to compare",
            remedy="build it with levels O0 and O3, two compilers or two ISAs, and more projects in it",
        )
    wanted = {body for task in tasks for pair in task.pairs for body in (pair.query_body, pair.answer_body)}
    return tasks, _views(corpus, split, wanted)


def _views(corpus: Path, split: str, wanted: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for record in read_split(corpus, split):
        for name, meta in record.meta.variants.items():
            if meta.body_sha256 in wanted and meta.body_sha256 not in texts:
                texts[meta.body_sha256] = view(record.assembly[name], Variant.parse(name).isa)
    return texts


def _embedded(encoder: Encoder, texts: Mapping[str, str], name: str, console: Console) -> dict[str, Vectors]:
    """The vector of each body."""
    started = time.perf_counter()
    with terminal.progress_bar(f"embedding, {name} model", len(texts)) as advance:
        vectors = embed_texts(encoder, list(texts.values()), progress=advance)
    rate = len(texts) / (time.perf_counter() - started)
    console.print(
        f"{name}: {len(texts):,} bodies, {rate:,.0f} a second, {vectors.shape[1] * 4} bytes a vector"
    )
    return dict(zip(texts, vectors, strict=True))


def evaluate(task: Task, texts: Mapping[str, str], vectors: Mapping[str, Mapping[str, Vectors]]) -> list[Row]:
    """The rows of one lane: every pool size, every baseline and model.

    Args:
        task: the lane and its pairs.
        texts: body sha256 to view.
        vectors: model name to body sha256 to unit vector.
    """
    queries = [pair.query_body for pair in task.pairs]
    answers = [pair.answer_body for pair in task.pairs]
    contenders: dict[str, Callable[[slice, slice], Floats]] = {}
    for name, featurise in BASELINES.items():
        features = featurise([texts[body] for body in queries + answers])
        contenders[name] = _cosine(features[: len(queries)], features[len(queries) :])
    for name, known in vectors.items():
        sides = [np.stack([known[body] for body in side]) for side in (queries, answers)]
        contenders[name] = _cosine(*sides)
    rows = []
    for size in pools.pool_sizes(len(task.pairs), POOLS):
        recall, mrr = pools.chance(size)
        rows.append(_row(task, size, "random", recall, mrr))
        for name, similarity in contenders.items():
            ranks = pools.rank_lane(similarity, len(task.pairs), size)
            rows.append(_row(task, size, name, pools.recall_at_1(ranks), pools.mrr_at_10(ranks)))
    return rows


def _cosine(queries: Any, answers: Any) -> Callable[[slice, slice], Floats]:
    """Similarity of two lists of unit vectors, dense or sparse, block by block."""

    def similarity(rows: slice, columns: slice) -> Floats:
        block = queries[rows] @ answers[columns].T
        dense: Floats = block if isinstance(block, np.ndarray) else block.toarray()
        return dense

    return similarity


def _row(task: Task, size: int, model: str, recall: float, mrr: float) -> Row:
    lane = task.lane
    return {
        "task": lane.task,
        "isa": lane.isa,
        "compiler": lane.compiler,
        "query": lane.query,
        "answer": lane.answer,
        "pool": size,
        "model": model,
        "recall_at_1": recall,
        "mrr_at_10": mrr,
        "num_queries": len(task.pairs),
        "num_projects": len({pair.project for pair in task.pairs}),
        **task.census.as_dict(),
    }


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table, a line a lane and pool, and under it what was asked and left out in each lane."""
    models = [name for name in dict.fromkeys(row["model"] for row in rows) if name != "random"]
    table = Table(
        title="Retrieval: Recall@1 MRR@10 (random order: 1/pool)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("task", no_wrap=True)
    table.add_column("pool", justify="right", no_wrap=True)
    for model in models:
        table.add_column(model.replace("_", " "), justify="right", width=9)
    for (task, isa, pool), group in _grouped(rows).items():
        best = max(group[model]["recall_at_1"] for model in models)
        table.add_row(_lane_name(task, isa), str(pool), *(_cell(group[model], best) for model in models))
    console.print(table)
    console.print(_LEGEND, style="dim")
    for (task, isa, _), group in _grouped(rows, by_pool=False).items():
        line = f"  {_lane_name(task, isa):<18} {_census_line(next(iter(group.values())))}"
        console.print(line, style="dim", soft_wrap=True)


def _lane_name(task: str, isa: str) -> str:
    return task if task == isa else f"{task} {isa}"


def _cell(row: Row, best: float) -> str:
    text = f"{row['recall_at_1']:.2f} {row['mrr_at_10']:.2f}"
    return f"[bold]{text}[/bold]" if row["recall_at_1"] == best else text


def _census_line(row: Row) -> str:
    return (
        f"{row['query']} to {row['answer']}: {row['num_functions']} - {row['num_short']} short"
        f" - {row['num_identical']} identical - {row['num_duplicate']} duplicate"
        f" - {row['num_over_limit']} surplus = {row['num_queries']} of {row['num_projects']} projects"
    )


def _grouped(rows: Sequence[Row], *, by_pool: bool = True) -> dict[tuple[str, str, int], dict[str, Row]]:
    """Rows by task, ISA and pool, each group by model."""
    groups: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        pool = row["pool"] if by_pool else 0
        groups.setdefault((row["task"], row["isa"], pool), {})[row["model"]] = row
    return groups
