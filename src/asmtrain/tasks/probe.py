"""Probing: what a frozen vector tells of its function, by ridge regression.

In go models and a corpus, out come `probe.json` (settings, and a row a target and model), a picture and a
table. Input format: `asm.view`, as in retrieval. Targets: logarithms of instruction count and code bytes; -O
level, compiler and ISA. Beside the models stand their mnemonics' counts (`opcodes`) and the mean or commonest
class (`constant`). Fitted on training projects, judged on those of another split; one draw of bodies for all.

Targets are what is told, not what is wanted: a vector made to find a function whatever compiled it should
not tell level and compiler. Cost: a forward pass a body and model, then one eigendecomposition a target.
Shapes: N bodies, D length of a vector, P projects, R resamples, S statistics, K classes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from asmtrain import terminal
from asmtrain.tasks import leaks
from asmtrain.tasks.contenders import Contender
from asmtrain.tasks.features import opcodes
from asmtrain.tasks.pools import Floats
from asmtrain.tasks.projector import write_projector
from asmtrain.tasks.results import write_result
from asmtrain.tasks.retrieval import MIN_INSTRUCTIONS, contenders_of
from asmtrain.tasks.scores import resampled
from asmtrain.tasks.views import sha256_of
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import load_index, read_split

NUM_FITTED = 8000
"""Bodies of the training split that a probe is fitted on."""
NUM_JUDGED = 4000
ALPHAS = tuple(10.0**power for power in range(-1, 6))
"""Strengths of the penalty; leave-one-out over the fitted bodies chooses one a target."""
RARE = 5
"""Mnemonics in fewer fitted bodies are no feature."""
NUMBERS, CLASSES = ("instructions", "code_bytes"), ("level", "compiler", "isa")
CONSTANT, OPCODES = "constant", "opcodes"

Row: TypeAlias = dict[str, Any]
Features: TypeAlias = tuple[Floats, Floats]
"""(N, D) of the fitted bodies, and of the judged ones."""
Figures: TypeAlias = Callable[[Floats], dict[str, Floats]]


@dataclass(frozen=True)
class Sample:
    """N bodies of a split, no two equal, and what is asked of them."""

    texts: list[str]
    names: list[str]
    """Of the functions."""
    projects: npt.NDArray[np.str_]
    targets: Mapping[str, npt.NDArray[Any]]
    """Target to (N,) numbers or labels."""


def run(
    models: Sequence[str],
    corpus: Path,
    output: Path,
    *,
    split: str = "test",
    seed: int = 0,
    projector: Path | None = None,
) -> list[Row]:
    """Probe models; write `probe.json` and `probe.png` into `output`.

    Args:
        models: as in `retrieval.run`.
        corpus: probes are fitted on its training split.
        output: folder, made if it is not there.
        split: that they are judged on.
        seed: of the draw, the untrained weights and the bootstrap.
        projector: folder of TensorBoard events, which gets the judged vectors too.

    Raises:
        ModelError: one of `models` cannot embed.
        EmptyCorpus: one of the splits has no two bodies of enough instructions.
    """
    contenders = contenders_of(models, seed, {CONSTANT, OPCODES})
    seen = {leak.key for leak in leaks.leaks(corpus, split, corpus)}
    fitted = sample(corpus, "train", NUM_FITTED, seed=seed)
    judged = sample(corpus, split, NUM_JUDGED, seed=seed, without=seen)
    features = {CONSTANT: _no_features(fitted, judged), OPCODES: opcode_counts(fitted, judged)}
    for contender in contenders:
        features[contender.name] = _embedded(contender, fitted, judged)
    rows = [row for target in (*NUMBERS, *CLASSES) for row in probe(target, features, fitted, judged, seed)]
    settings = {
        "corpus": load_index(corpus).sha256(),
        "split": split,
        "seed": seed,
        "min_instructions": MIN_INSTRUCTIONS,
        "models": {contender.name: contender.sha256 for contender in contenders},
        "fitted": _census(fitted),
        "judged": _census(judged),
        "num_leaks": len(seen),
    }
    _save({"settings": settings, "rows": rows}, output)
    if projector:
        vectors = {contender.name: features[contender.name][1] for contender in contenders}
        write_projector(projector, vectors, _colours(judged))
    return rows


# What is asked of which bodies.


def sample(corpus: Path, split: str, num: int, *, seed: int, without: Collection[str] = ()) -> Sample:
    """Up to `num` distinct bodies of a split, in an order that seed, keys and variants alone decide.

    Reads the split twice, so that only the texts that are drawn are kept. `without` are keys left out.

    Raises:
        EmptyCorpus: there are no two.
    """
    drawn = sorted(
        (sha256_of(f"{seed}/{record.key}/{variant}"), item.body_sha256, record.key, variant)
        for record in read_split(corpus, split)
        if record.key not in without
        for variant, item in record.meta.variants.items()
        if item.num_instructions >= MIN_INSTRUCTIONS and item.code_bytes
    )
    owners: dict[str, tuple[str, str]] = {}  # equal bodies have one of their labels, by the draw
    for _, body, *owner in drawn:
        owners.setdefault(body, (owner[0], owner[1]))
    places = {owner: at for at, owner in enumerate(list(owners.values())[:num])}
    if len(places) < 2:
        raise EmptyCorpus(
            f"split {split!r} of {corpus} has no two bodies of {MIN_INSTRUCTIONS} instructions",
            remedy="build it with more projects in it",
        )
    found = sorted(
        (places[record.key, variant], record, variant)
        for record in read_split(corpus, split)
        for variant in record.assembly
        if (record.key, variant) in places
    )
    return _sample([(record, variant) for _, record, variant in found])


def _sample(drawn: Sequence[tuple[FunctionRecord, str]]) -> Sample:
    variants = [Variant.parse(variant) for _, variant in drawn]
    metas = [record.meta.variants[variant] for record, variant in drawn]
    return Sample(
        texts=[view(record.assembly[variant], Variant.parse(variant).isa) for record, variant in drawn],
        names=[record.meta.name for record, _ in drawn],
        projects=np.array([record.meta.project for record, _ in drawn]),
        targets={
            "instructions": np.log([meta.num_instructions for meta in metas]),
            "code_bytes": np.log([meta.code_bytes for meta in metas]),
            "level": np.array([f"O{variant.level[1:]}" for variant in variants]),
            "compiler": np.array([variant.compiler for variant in variants]),
            "isa": np.array([variant.isa for variant in variants]),
        },
    )


def _no_features(fitted: Sample, judged: Sample) -> Features:
    return np.zeros((len(fitted.texts), 0)), np.zeros((len(judged.texts), 0))


def opcode_counts(fitted: Sample, judged: Sample) -> Features:
    """Logarithms of 1 + how often a mnemonic stands in a body, for those that `RARE` fitted bodies have."""
    counter = CountVectorizer(analyzer=opcodes, min_df=min(RARE, len(fitted.texts)))
    counts = counter.fit_transform(fitted.texts), counter.transform(judged.texts)
    return np.log1p(counts[0].toarray()), np.log1p(counts[1].toarray())


def _embedded(contender: Contender, fitted: Sample, judged: Sample) -> Features:
    texts = [*fitted.texts, *judged.texts]
    with terminal.progress_bar(f"embedding, {contender.name}", len(texts)) as advance:
        vectors_ND = contender.embed(texts, advance)
    return vectors_ND[: len(fitted.texts)], vectors_ND[len(fitted.texts) :]


# Probes and their figures.


def probe(
    target: str, features: Mapping[str, Features], fitted: Sample, judged: Sample, seed: int
) -> Iterator[Row]:
    """A row a model; none where the target takes only one value in a split."""
    known, asked = fitted.targets[target], judged.targets[target]
    if min(len(np.unique(known)), len(np.unique(asked))) < 2:
        return
    projects = np.unique(judged.projects, return_inverse=True)[1]
    for model, (known_ND, asked_ND) in features.items():
        ridge = _ridge(model, is_number=target in NUMBERS).fit(known_ND, known)
        told = ridge.predict(asked_ND)
        row = {"target": target, "model": model, "dim": known_ND.shape[1]}
        row |= number_figures(asked, told, projects, seed) if target in NUMBERS else {}
        row |= class_figures(asked, told, projects, seed) if target in CLASSES else {}
        yield row | {"alpha": float(ridge[-1].alpha_) if model != CONSTANT else None}


def _ridge(model: str, *, is_number: bool) -> Any:
    if model == CONSTANT:
        return DummyRegressor() if is_number else DummyClassifier(strategy="most_frequent")
    ridge = RidgeCV(alphas=ALPHAS) if is_number else RidgeClassifierCV(alphas=ALPHAS)
    return make_pipeline(StandardScaler(), ridge)


def number_figures(
    asked_N: npt.NDArray[Any], told_N: npt.NDArray[Any], projects_N: npt.NDArray[np.intp], seed: int
) -> Row:
    """R2 (1 - squared error / variance of the judged) with its interval."""
    statistics_NS = np.stack([np.ones_like(asked_N), asked_N, asked_N**2, (asked_N - told_N) ** 2], axis=1)

    def figures(sums_RS: Floats) -> dict[str, Floats]:
        count_R, sum_R, squares_R, errors_R = sums_RS.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"r2": 1 - errors_R / (squares_R - sum_R**2 / count_R)}

    return _with_intervals(figures, statistics_NS, projects_N, seed)


def class_figures(
    asked_N: npt.NDArray[Any], told_N: npt.NDArray[Any], projects_N: npt.NDArray[np.intp], seed: int
) -> Row:
    """Accuracy, and F1 as the mean over classes, with their intervals."""
    names, places = np.unique(np.concatenate([asked_N, told_N]), return_inverse=True)
    num = len(names)
    cells_N = places[: len(asked_N)] * num + places[len(asked_N) :]

    def figures(sums_RS: Floats) -> dict[str, Floats]:
        confusion_RKK = sums_RS.reshape(-1, num, num)
        right_RK = np.diagonal(confusion_RKK, axis1=1, axis2=2)
        either_RK = confusion_RKK.sum(axis=1) + confusion_RKK.sum(axis=2)
        f1_RK = np.divide(2 * right_RK, either_RK, out=np.full(right_RK.shape, np.nan), where=either_RK > 0)
        accuracy_R = right_RK.sum(axis=1) / confusion_RKK.sum(axis=(1, 2))
        return {"accuracy": accuracy_R, "macro_f1": np.nanmean(f1_RK, axis=1)}

    return _with_intervals(figures, np.eye(num * num)[cells_N], projects_N, seed) | {
        "num_classes": len(np.unique(asked_N))
    }


def _with_intervals(
    figures: Figures, statistics_NS: Floats, projects_N: npt.NDArray[np.intp], seed: int
) -> Row:
    """Figures of sums over all bodies, and their 95 % intervals over projects drawn with replacement."""
    sums_PS = np.zeros((projects_N.max() + 1, statistics_NS.shape[1]))
    np.add.at(sums_PS, projects_N, statistics_NS)
    drawn = figures(resampled(len(sums_PS), seed=seed).astype(np.float64) @ sums_PS)
    row: Row = {}
    for name, value in figures(sums_PS.sum(axis=0, keepdims=True)).items():
        bounds = np.quantile(drawn[name], (0.025, 0.975))
        row |= {name: float(value[0]), f"{name}_ci95": [float(bound) for bound in bounds]}
    return row


# What comes out.


def _census(drawn: Sample) -> Row:
    return {"num_bodies": len(drawn.texts), "projects": sorted(set(drawn.projects.tolist()))}


def _colours(judged: Sample) -> dict[str, list[str]]:
    """What one may colour the judged functions by."""
    sizes = [str(round(size)) for size in np.exp(judged.targets["instructions"])]
    classes = {target: judged.targets[target].tolist() for target in CLASSES}
    return {"name": judged.names, "project": judged.projects.tolist(), **classes, "instructions": sizes}


def _save(result: Mapping[str, Any], output: Path) -> None:
    from asmtrain.tasks.figure import draw_probe

    write_result(output / "probe.json", result)
    path = draw_probe(result["rows"], output)
    show(result, terminal.console())
    print(f"{output}: probe.json, {path.name}")


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the table: a line a target, a column a model."""
    rows, settings = result["rows"], result["settings"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    title = "Probes: R2 of numbers; accuracy and macro F1 of classes"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    for model in models:
        table.add_column(model, justify="right")
    for target in dict.fromkeys(row["target"] for row in rows):
        of_target = {row["model"]: row for row in rows if row["target"] == target}
        label = f"log {target}" if target in NUMBERS else target
        table.add_row(label.replace("_", " "), *(_cell(of_target[model]) for model in models))
    console.print(table)
    fitted, judged = settings["fitted"], settings["judged"]
    console.print(
        f"Fitted on {fitted['num_bodies']:,} bodies of {len(fitted['projects'])} projects, judged on"
        f" {judged['num_bodies']:,} of {len(judged['projects'])} others. What finds a function whatever"
        " compiled it should not tell level and compiler: low there is no fault.",
        style="dim",
    )


def _cell(row: Row) -> str:
    return f"{row['r2']:.2f}" if "r2" in row else f"{row['accuracy']:.2f} {row['macro_f1']:.2f}"
