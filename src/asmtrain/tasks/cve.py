"""Vulnerabilities: find a vulnerable function in code of another ISA, and tell it from its fixed self.

In go models and two corpora of the same packages, before and after their security fixes; out come `cve.json`,
`cve.png` and a table. A query is a vulnerable function as x86-64 shows it (gcc, O2, default view). The pool
is every distinct body of at least `MIN_INSTRUCTIONS` in the AArch64 and RISC-V code of both corpora. For each
of the two ISAs the right answers are the function's own bodies there, vulnerable and fixed; its rank is that
of the nearest, with its bodies of the other ISA taken out of the pool, so that everything before it is
another function. Apart from that: of the two right answers, is the vulnerable one nearer to the vulnerable
query (`vulnerable_nearer`), and the fixed one to the fixed query (`fixed_nearer`)? A model that prefers the
shorter of two codes gets one of these for nothing and pays with the other.

A function that several CVEs change is asked for once. Cost: a forward pass a distinct body and model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from asmtrain import terminal
from asmtrain.encoder import Vectors
from asmtrain.tasks import bag, baselines, cve_summary
from asmtrain.tasks.contenders import Contender
from asmtrain.tasks.cve_questions import QUERY_ISA, Question, Target, pool_of, questions_of, seen_in
from asmtrain.tasks.fixes import Compared, Identity, compare
from asmtrain.tasks.pools import TIE_TOLERANCE, Floats, Similarity
from asmtrain.tasks.retrieval import MIN_INSTRUCTIONS, contenders_of
from asmtrain.tasks.scores import bootstrap, scores
from corpus_builder.errors import EmptyCorpus
from corpus_builder.shards import load_index

_AT_ONCE = 100
"""Queries whose similarities to the pool are in memory at once."""

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model said: a row a question and ISA."""

    ranks: Floats
    nearer: Floats
    """(R, 2): whether the vulnerable code, and the fixed code, is nearer to its like; nan without a pair."""


def run(
    models: Sequence[str],
    before: Path,
    after: Path,
    output: Path,
    *,
    trained_on: Path | None = None,
    seed: int = 0,
) -> list[Row]:
    """Judge models; write `cve.json` and `cve.png` into `output`; returns the summary's rows.

    Args:
        models: each `FOLDER` or `module:function`, or `NAME=` one of these.
        before: corpus of packages without their fixes, as `without_patches` makes it.
        after: corpus of the same packages, whole.
        output: folder, made if it is not there.
        trained_on: corpus whose training functions are not asked for; the bag is trained on it.
        seed: of the bootstrap and of random weights.

    Raises:
        ModelError: one of `models` cannot embed.
        ConfigError, ShardError: the corpora do not fit each other, or are damaged.
        EmptyCorpus: no patch changed a function that can be asked for.
    """
    judged = contenders_of(models, seed, {"random", "bag", *baselines.NEEDS})
    compared = compare(before, after)
    seen = seen_in(trained_on) if trained_on else frozenset[object]()
    questions, reasons = questions_of(compared, seen)
    if not questions:
        raise EmptyCorpus(
            f"no patch between {before} and {after} changed a function that can be asked for",
            remedy="build both with O2 for x86_64, aarch64 and riscv64, from packages with more fixes",
        )
    if trained_on:
        judged.insert(0, bag.contender(trained_on, output, view="default", seed=seed))
    pool = pool_of(compared)
    similarities = _similarities(judged, compared, questions, pool)
    answers = {name: _answers(similarity, questions, pool) for name, similarity in similarities.items()}
    summary = _summary(answers, questions, len(pool), seed)
    result = {
        "settings": {
            "before": load_index(before).sha256(),
            "after": load_index(after).sha256(),
            "trained_on": load_index(trained_on).sha256() if trained_on else None,
            "seed": seed,
            "min_instructions": MIN_INSTRUCTIONS,
            "query": f"{QUERY_ISA} gcc O2",
            "pool": len(pool),
            **_counts(compared, questions, reasons),
        },
        "models": [{"model": each.name, "sha256": each.sha256} for each in judged],
        "cves": cve_summary.fates(compared, questions, reasons),
        "summary": summary,
        "rows": _rows(answers, questions),
    }
    cve_summary.save(result, output)
    return summary


def _similarities(
    judged: Sequence[Contender], compared: Compared, questions: Sequence[Question], pool: Sequence[str]
) -> dict[str, Similarity]:
    """Each baseline and model: of the vulnerable queries, then the fixed ones, to the pool."""
    queries = [each.vulnerable for each in questions] + [each.fixed for each in questions]
    texts = {body: compared.texts[body] for body in dict.fromkeys([*queries, *pool])}
    found = dict(baselines.similarities(baselines.text_table(texts), queries, pool))
    for contender in judged:
        with terminal.progress_bar(f"embedding, {contender.name}", len(texts)) as advance:
            vectors: Vectors = contender.embed(list(texts.values()), advance)
        places = {body: place for place, body in enumerate(texts)}
        sides = [vectors[[places[body] for body in side]] for side in (queries, pool)]
        found[contender.name] = baselines.cosine(*sides)
    return found


def _answers(similarity: Similarity, questions: Sequence[Question], pool: Sequence[str]) -> Answers:
    """Rank and nearness of every question and ISA, in their order."""
    places = {body: place for place, body in enumerate(pool)}
    ranks, nearer = [], []
    for start in range(0, len(questions), _AT_ONCE):
        part = questions[start : start + _AT_ONCE]
        rows = slice(start, start + len(part))
        fixed = slice(len(questions) + start, len(questions) + start + len(part))
        blocks = [similarity(side, slice(0, len(pool))) for side in (rows, fixed)]
        for at, question in enumerate(part):
            for target in question.targets.values():
                ranks.append(rank_of(blocks[0][at], target, places))
                nearer.append(_nearer(blocks[0][at], blocks[1][at], target, places))
    return Answers(np.array(ranks, np.float64), np.array(nearer, np.float64))


def rank_of(similarity_N: Floats, target: Target, places: Mapping[str, int]) -> float:
    """Expected rank of the nearest right body among the bodies of other functions.

    Where `k` right ones tie with `m` others, the first of the right stands behind `m / (k + 1)` of them.
    """
    right = [places[body] for body in target.right]
    others = np.ones(len(similarity_N), dtype=bool)
    others[right + [places[body] for body in target.taken_out if body in places]] = False
    best = similarity_N[right].max()
    above = (similarity_N[others] > best + TIE_TOLERANCE).sum()
    tied = (np.abs(similarity_N[others] - best) <= TIE_TOLERANCE).sum()
    tied_right = (similarity_N[right] >= best - TIE_TOLERANCE).sum()
    return float(1 + above + tied / (tied_right + 1))


def _nearer(
    vulnerable_N: Floats, fixed_N: Floats, target: Target, places: Mapping[str, int]
) -> tuple[float, float]:
    """Whether like is nearer to like, for the vulnerable and the fixed query: 1, 0, or .5 for a tie."""
    if target.pair is None:
        return float("nan"), float("nan")
    first, second = (places[body] for body in target.pair)
    return _credit(vulnerable_N[first] - vulnerable_N[second]), _credit(fixed_N[second] - fixed_N[first])


def _credit(margin: float) -> float:
    return 0.5 if abs(margin) <= TIE_TOLERANCE else float(margin > 0)


def _asked(questions: Sequence[Question]) -> list[tuple[Question, str]]:
    """Question and ISA of each row of `Answers`."""
    return [(question, isa) for question in questions for isa in question.targets]


def _rows(answers: Mapping[str, Answers], questions: Sequence[Question]) -> list[Row]:
    return [
        {**question.identity._asdict(), "cves": question.cves, "isa": isa, "model": model}
        | {"rank": float(said.ranks[at]), "num_right": len(question.targets[isa].right)}
        | dict(zip(("vulnerable_nearer", "fixed_nearer"), _or_null(said.nearer[at]), strict=True))
        for model, said in answers.items()
        for at, (question, isa) in enumerate(_asked(questions))
    ]


def _or_null(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _summary(
    answers: Mapping[str, Answers], questions: Sequence[Question], size: int, seed: int
) -> list[Row]:
    """A row an ISA and model; `random` is what a random order gives."""
    rows = []
    asked = _asked(questions)
    projects = np.unique([question.identity.project for question, _ in asked], return_inverse=True)[1]
    for isa in dict.fromkeys(isa for _, isa in asked):
        own = np.array([of == isa for _, of in asked])
        targets = [question.targets[isa] for question, of in asked if of == isa]
        where = {
            "isa": isa,
            "pool": size,
            "num_cves": _num_cves(question for question, of in asked if of == isa),
        }
        rows.append({**where, "model": "random", **_chance(targets, size)})
        for model, said in answers.items():
            figures = scores(said.ranks[own], projects[own], seed=seed)
            figures["median_rank"] = float(np.median(said.ranks[own]))
            figures |= _pair_figures(said.nearer[own], projects[own], seed)
            rows.append({**where, "model": model, **figures})
    return rows


def _num_cves(questions: Any) -> int:
    return len({cve for question in questions for cve in question.cves})


def _pair_figures(nearer_R2: Floats, projects_R: Any, seed: int) -> Row:
    is_pair = ~np.isnan(nearer_R2[:, 0])
    figures: Row = {"num_pairs": int(is_pair.sum())}
    if not is_pair.any():
        return figures
    _, places = np.unique(projects_R[is_pair], return_inverse=True)
    counts_P = np.bincount(places).astype(np.float64)
    for side, name in enumerate(("vulnerable_nearer", "fixed_nearer")):
        hits_P = np.bincount(places, weights=nearer_R2[is_pair, side]).astype(np.float64)
        figures[name] = float(hits_P.sum() / counts_P.sum())
        figures[f"{name}_ci95"] = bootstrap(hits_P, counts_P, seed=seed)
    return figures


def _chance(targets: Sequence[Target], size: int) -> Row:
    """The figures of a random order, exactly."""
    first_T10 = np.array(
        [_first_ranks(len(target.right), size - len(target.taken_out)) for target in targets]
    )
    expected = [1 + (size - len(t.taken_out) - len(t.right)) / (len(t.right) + 1) for t in targets]
    recall = float(first_T10[:, 0].mean())
    return {
        "recall_at_1": recall,
        "recall_at_10": float(first_T10.sum(axis=1).mean()),
        "mrr_at_10": float((first_T10 / np.arange(1, 11)).sum(axis=1).mean()),
        "ci95": [recall, recall],
        "num_queries": len(targets),
        "median_rank": float(np.median(expected)),
        "num_pairs": sum(target.pair is not None for target in targets),
        "vulnerable_nearer": 0.5,
        "fixed_nearer": 0.5,
    }


def _first_ranks(num_right: int, size: int) -> list[float]:
    """Chance that the first of the right answers stands at rank 1, 2, .. 10 of a random order."""
    chances, none_yet = [], 1.0
    for rank in range(10):
        here = min(1.0, num_right / (size - rank)) if size > rank else 0.0
        chances.append(none_yet * here)
        none_yet *= 1 - here
    return chances


def _counts(
    compared: Compared, questions: Sequence[Question], reasons: Mapping[Identity, str]
) -> dict[str, Any]:
    targets = [target for question in questions for target in question.targets.values()]
    return {
        "num_patches": sum(patch.left_out and bool(patch.cves) for patch in compared.patches),
        "num_functions_changed": len(compared.changed),
        "num_functions_asked": len(questions),
        "num_identical_pairs": sum(target.pair is None for target in targets),
        "not_asked": {why: list(reasons.values()).count(why) for why in sorted(set(reasons.values()))},
    }
