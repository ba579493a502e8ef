"""Retrieval: find a function compiled one way among many compiled another way.

Input format: a function's `asm.view`, what a stripped binary shows. Evaluation: in go models and a corpus,
out come `retrieval.json` (settings, models, a census of each lane, and a row a lane, pool, bucket and model),
`pools.jsonl` (who stood in which pool), pictures and a table. `lanes` and `pools` hold the protocol,
`contenders` what can be judged, `baselines` and `bag` what stands beside it; `untrained` is the first of our
own models with random weights. docs/embedding.md says why it is judged so.

Every model answers the same queries in the same pools. Cost: a forward pass a distinct body and model, at
most `MAX_QUERIES` queries and the largest pool's answers a lane; the ranking takes a second a lane.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from asmtrain import terminal
from asmtrain.encoder import Vectors, untrained_twin
from asmtrain.errors import ModelError
from asmtrain.tasks import bag, baselines, benchmark, leaks, pools
from asmtrain.tasks.contenders import Contender, functions_per_s, load, of_encoder, one_thread
from asmtrain.tasks.lanes import Lane, lanes_of
from asmtrain.tasks.pools import Census, Floats, Function, Pair
from asmtrain.tasks.results import write_result
from asmtrain.tasks.scores import chance, scores
from asmtrain.tasks.views import function_of, import_names, text_of
from corpus_builder.errors import ConfigError, EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import load_index, read_split

POOLS = (32, 128, 1000, 10_000, 100_000)
MAX_QUERIES = 1000
"""Functions of a lane that are asked for; more would cost more embedding and say little more."""
MIN_INSTRUCTIONS = 10
"""Shorter functions are too alike to be told apart by anyone, and are left out on either side."""
TIMED_TEXTS = 128
"""Texts that functions a second are measured on."""

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One lane in one view, with the pairs that it uses: those asked for, then further answers."""

    view: str
    lane: Lane
    pairs: list[Pair]
    census: Census

    @property
    def num_queries(self) -> int:
        """How many of the pairs are asked for; they come first."""
        return min(len(self.pairs), MAX_QUERIES)


def run(
    models: Sequence[str],
    corpus: Path,
    output: Path,
    *,
    split: str = "test",
    seed: int = 0,
    views: Sequence[str] = ("default",),
    lanes: Sequence[str] = ("*",),
    with_bag: bool = True,
    export: Path | None = None,
    trained_on: Path | None = None,
) -> list[Row]:
    """Judge models on a split; write `retrieval.json`, `pools.jsonl` and pictures into `output`.

    Args:
        models: each `FOLDER` or `module:function`, or `NAME=` one of these.
        corpus: whose split is searched.
        output: folder, made if it is not there.
        split: of the corpus.
        seed: of the pools and the random weights.
        views: of `views.VIEWS`.
        lanes: globs of the lanes to ask, such as `XO*` and `XC O2 *`.
        with_bag: train the bag on the corpus, or use the one in `output`.
        export: folder to write each lane to, as corpus, queries and qrels.
        trained_on: corpus whose training split the models have seen and the bag learns from; `corpus` if not
            given.

    Raises:
        ModelError: one of `models` cannot embed.
        ConfigError: no lane fits the globs.
        EmptyCorpus: the split holds no lane with two pairs to tell apart.
    """
    judged = contenders_of(models, seed, {"random", "bag", *baselines.NEEDS})
    training = trained_on or corpus
    seen = {leak.key: leak.rule for leak in leaks.leaks(corpus, split, training)}
    rows: list[Row] = []
    costs: list[Row] = []
    tasks: list[Task] = []
    for view in views:
        of_view, texts = prepare(corpus, split=split, seed=seed, view=view, lanes=lanes, without=seen.keys())
        own = [*judged]
        if with_bag and _can_train(training):
            own.insert(0, bag.contender(training, output, view=view, seed=seed))
        vectors = {contender.name: _embedded(contender, texts, view) for contender in own}
        costs += _costs(own, vectors, list(texts.values()), view)
        table = baselines.text_table(texts)
        for task in of_view:
            rows += evaluate(task, table, vectors, seed=seed)
            if export:
                benchmark.export(export, task, texts)
        tasks += of_view
    result = {
        "settings": {
            "corpus": load_index(corpus).sha256(),
            "trained_on": load_index(training).sha256(),
            "split": split,
            "seed": seed,
            "min_instructions": MIN_INSTRUCTIONS,
            "leaks": {rule: list(seen.values()).count(rule) for rule in ("body", "name", "text")},
            "pools_sha256": benchmark.write_pools(output / "pools.jsonl", tasks),
        },
        "models": costs,
        "lanes": [_census(task) for task in tasks],
        "rows": rows,
    }
    _save(result, output)
    return rows


def _save(result: Mapping[str, Any], output: Path) -> None:
    from asmtrain.tasks.figure import draw
    from asmtrain.tasks.summary import show

    write_result(output / "retrieval.json", result)
    paths = draw(result["rows"], output)
    show(result, terminal.console())
    print(f"{output}: {', '.join(('retrieval.json', 'pools.jsonl', *(path.name for path in paths)))}")


def contenders_of(models: Sequence[str], seed: int, baseline_names: Collection[str]) -> list[Contender]:
    """The untrained twin of the first of our own models, and the models.

    Raises:
        ModelError: one cannot embed, or is called as a baseline or another one is.
    """
    judged = []
    for given in models:
        name, is_named, spec = given.partition("=")
        if not is_named:
            name, spec = ("trained" if len(models) == 1 else given), given
        judged.append(load(spec, name))
    taken = {"untrained", *baseline_names}
    for contender in judged:
        if contender.name in taken:
            raise ModelError(f"two models are called {contender.name!r}", remedy="write --model NAME=FOLDER")
        taken.add(contender.name)
    folder = next((contender.folder for contender in judged if contender.folder), None)
    if folder:
        judged.insert(0, of_encoder(untrained_twin(folder, seed=seed), "untrained"))
    return judged


def _can_train(corpus: Path) -> bool:
    return any(shard.split == "train" for shard in load_index(corpus).shards)


def prepare(
    corpus: Path,
    *,
    split: str,
    seed: int,
    view: str = "default",
    lanes: Sequence[str] = ("*",),
    without: Any = (),
) -> tuple[list[Task], dict[str, str]]:
    """The lanes of a split with their pairs, and the text of every body they need, by its sha256.

    Reads the split twice, so that only the texts that are asked for are kept. `without` are keys left out.

    Raises:
        ConfigError, EmptyCorpus: as `run`.
    """
    imports = import_names(corpus) if view == "imports" else frozenset()
    functions = [
        function_of(record, view, imports)
        for record in read_split(corpus, split)
        if record.key not in without
    ]
    known = lanes_of({variant for function in functions for variant in function.bodies})
    chosen = [lane for lane in known if any(fnmatchcase(lane.name, glob) for glob in lanes)]
    if known and not chosen:
        names = ", ".join(lane.name for lane in known)
        raise ConfigError(f"no lane is like {', '.join(lanes)}", remedy=f"the corpus has {names}")
    tasks = [task for lane in chosen if (task := _task(functions, lane, view, seed)).num_queries > 1]
    if not tasks:
        raise EmptyCorpus(
            f"split {split!r} of {corpus} has no two functions of {MIN_INSTRUCTIONS} instructions to compare",
            remedy="build it with levels O0 and O3, two compilers or two ISAs, and more projects in it",
        )
    wanted = {
        (pair.key, variant): body
        for task in tasks
        for at, pair in enumerate(task.pairs)
        for variant, body in ((pair.answer, pair.answer_body), (pair.query, pair.query_body))
        if variant == pair.answer or at < task.num_queries
    }
    texts: dict[str, str] = {}
    for record in read_split(corpus, split):
        for variant, assembly in record.assembly.items():
            body = wanted.get((record.key, variant))
            if body and body not in texts:
                texts[body] = text_of(assembly, Variant.parse(variant).isa, view, imports)
    return tasks, texts


def _task(functions: Sequence[Function], lane: Lane, view: str, seed: int) -> Task:
    pairs, census = pools.eligible(functions, lane, min_instructions=MIN_INSTRUCTIONS, seed=seed)
    kept = pairs[: max(pools.pool_sizes(len(pairs), POOLS))]
    return Task(view, lane, kept, replace(census, num_over_limit=len(pairs) - len(kept)))


def _embedded(contender: Contender, texts: Mapping[str, str], view: str) -> dict[str, Vectors]:
    """The vector of each body."""
    with terminal.progress_bar(f"embedding, {contender.name}, {view} view", len(texts)) as advance:
        vectors = contender.embed(list(texts.values()), advance)
    return dict(zip(texts, vectors, strict=True))


def _costs(
    judged: Sequence[Contender], vectors: Mapping[str, Mapping[str, Vectors]], texts: list[str], view: str
) -> list[Row]:
    """What each model costs, on some of the texts and one CPU thread."""
    sample = texts[:: max(1, len(texts) // TIMED_TEXTS)][:TIMED_TEXTS]
    with one_thread():
        costs = baselines.costs(sample)
    for contender in judged:
        vector = next(iter(vectors[contender.name].values()))
        costs[contender.name] = {
            "functions_per_s": functions_per_s(contender, sample),
            "bytes_per_vector": vector.nbytes,
        }
    hashes = {contender.name: contender.sha256 for contender in judged}
    return [{"view": view, "model": name, "sha256": hashes.get(name)} | cost for name, cost in costs.items()]


def evaluate(
    task: Task,
    table: baselines.TextTable,
    vectors: Mapping[str, Mapping[str, Vectors]],
    *,
    seed: int,
) -> list[Row]:
    """The rows of one lane: every pool size, baseline, model and bucket.

    Args:
        task: the lane and its pairs.
        table: what is counted in the texts.
        vectors: model name to body sha256 to unit vector.
        seed: of the bootstrap.
    """
    num_queries = task.num_queries
    queries = [pair.query_body for pair in task.pairs[:num_queries]]
    answers = [pair.answer_body for pair in task.pairs]
    similarities = baselines.similarities(table, queries, answers)
    for name, known in vectors.items():
        sides = [np.stack([known[body] for body in side]) for side in (queries, answers)]
        similarities[name] = baselines.cosine(*sides)
    projects = np.unique([pair.project for pair in task.pairs[:num_queries]], return_inverse=True)[1]
    rows = []
    for size in pools.pool_sizes(len(task.pairs), POOLS):
        ranks: dict[str, Floats | None] = {"random": None}
        ranks |= {name: pools.rank_lane(each, num_queries, size) for name, each in similarities.items()}
        for bucket, members in buckets(table.blocks(queries)).items():
            for name, found in ranks.items():
                own = projects[members]
                figures = chance(size, own) if found is None else scores(found[members], own, seed=seed)
                rows.append(_row(task, size, bucket, name) | figures)
    return rows


def buckets(blocks_Q: Any) -> dict[str, Any]:
    """Masks of the queries by their number of basic blocks; those without any query are left out."""
    masks = {
        "all": blocks_Q >= 0,
        "<20": blocks_Q < 20,
        "20-100": (blocks_Q >= 20) & (blocks_Q <= 100),
        ">100": blocks_Q > 100,
        ">=5": blocks_Q >= 5,
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def _row(task: Task, size: int, bucket: str, model: str) -> Row:
    where = {"view": task.view, "task": task.lane.task, "isa": task.lane.isa}
    return where | {"pool": size, "bucket": bucket, "model": model}


def _census(task: Task) -> Row:
    projects = {pair.project for pair in task.pairs[: task.num_queries]}
    counts = {"num_queries": task.num_queries, "num_pairs": len(task.pairs), "num_projects": len(projects)}
    return {"view": task.view} | asdict(task.lane) | counts | task.census.as_dict()
