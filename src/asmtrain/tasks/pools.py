"""The retrieval protocol: which function pairs are asked for, among which others, and how ranks are counted.

In go the metadata of a split's records; out come lanes (one question each, such as "O0 against O3 on
aarch64"), the pairs a lane may use, with a count of those left out and why, and pools. Pure: no model, no
text. The invariant: nothing in a pool shares an identity (a body on either side, source, or name and
file) with anything else in it, so every query has exactly one right answer.

Exact dense search costs N x N x dim multiplications a lane, a tenth of a second at N = 1,000.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus_builder.record import FunctionMeta, Variant

TIE_TOLERANCE = 1e-6
"""Similarities closer than this are ties: the order of summation alone moves float32 cosines by 1e-7."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Lane:
    """One question: functions as `query` shows them, to be found as `answer` shows them."""

    task: str
    """`O0-O3`, `gcc-clang`, or the two ISAs."""
    isa: str
    compiler: str
    query: str
    """Variant name."""
    answer: str


@dataclass(frozen=True)
class Pair:
    """One function of a lane: where it comes from and its two bodies."""

    key: str
    project: str
    query_body: str
    """sha256 of the query variant's view."""
    answer_body: str


@dataclass(frozen=True)
class Census:
    """How many functions a lane had, and why it has fewer now."""

    num_functions: int
    """Compiled in both variants."""
    num_short: int
    """Left out: below the least number of instructions on either side."""
    num_identical: int
    """Left out: both variants have the same body, so there is nothing to find."""
    num_duplicate: int
    """Left out: a body, the source, or name and file are those of another function already in."""
    num_over_limit: int
    """Left out, in a seeded order, because the lane had enough."""

    def as_dict(self) -> dict[str, int]:
        """The counts under their names."""
        return asdict(self)


def lanes_of(variants: Iterable[str]) -> list[Lane]:
    """The lanes that a corpus with these variants allows.

    gcc stands for a compiler family here; where an ISA has none, its first compiler takes the place.
    """
    levels: dict[tuple[str, str], set[str]] = {}
    for isa, compiler, level in map(Variant.parse, variants):
        levels.setdefault((isa, compiler), set()).add(level)
    main: dict[str, str] = {}  # isa -> its gcc, or its first compiler
    for isa, compiler in sorted(levels, key=lambda pair: (not pair[1].startswith("gcc"), pair)):
        main.setdefault(isa, compiler)
    main = dict(sorted(main.items()))
    found = []
    for isa, compiler in main.items():
        if {"o0", "o3"} <= levels[isa, compiler]:
            found.append(_lane("O0-O3", isa, (isa, compiler, "o0"), (isa, compiler, "o3")))
    at_o2 = {pair for pair, known in levels.items() if "o2" in known}
    for isa, compiler in main.items():
        others = sorted(other for where, other in at_o2 if where == isa and not other.startswith("gcc"))
        if compiler.startswith("gcc") and (isa, compiler) in at_o2 and others:
            found.append(_lane("gcc-clang", isa, (isa, compiler, "o2"), (isa, others[0], "o2")))
    for left, right in combinations([isa for isa, compiler in main.items() if (isa, compiler) in at_o2], 2):
        name = f"{left}-{right}"
        found.append(_lane(name, name, (left, main[left], "o2"), (right, main[right], "o2")))
    return found


def _lane(task: str, isa: str, query: tuple[str, str, str], answer: tuple[str, str, str]) -> Lane:
    compiler = query[1] if query[1] == answer[1] else f"{query[1]}-{answer[1]}"
    return Lane(task, isa, compiler, str(Variant(*query)), str(Variant(*answer)))


def eligible(
    metas: Iterable[tuple[str, FunctionMeta]], lane: Lane, *, min_instructions: int, limit: int, seed: int
) -> tuple[list[Pair], Census]:
    """The pairs that a lane uses, in an order that depends on the seed and the keys alone.

    Args:
        metas: key and metadata of every function of the split.
        min_instructions: a function shorter than this on either side is left out.
        limit: most pairs to return.
    """
    in_both = [(key, meta) for key, meta in metas if {lane.query, lane.answer} <= meta.variants.keys()]
    in_both.sort(key=lambda item: hashlib.sha256(f"{seed}/{item[0]}".encode()).digest())
    short = identical = duplicate = 0
    seen: set[object] = set()
    pairs = []
    for key, meta in in_both:
        query, answer = meta.variants[lane.query], meta.variants[lane.answer]
        identity = {query.body_sha256, answer.body_sha256, meta.source_sha256, (meta.name, meta.file)}
        if min(query.num_instructions, answer.num_instructions) < min_instructions:
            short += 1
        elif query.body_sha256 == answer.body_sha256:
            identical += 1
        elif identity & seen:
            duplicate += 1
        else:
            seen |= identity
            pairs.append(Pair(key, meta.project, query.body_sha256, answer.body_sha256))
    census = Census(len(in_both), short, identical, duplicate, max(0, len(pairs) - limit))
    return pairs[:limit], census


def pool_sizes(num_pairs: int, wanted: Sequence[int]) -> list[int]:
    """The pool sizes that `num_pairs` functions allow: those wanted, the largest cut to what there is."""
    return sorted({min(size, num_pairs) for size in wanted})


def pools(num_pairs: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a lane's pairs into pools: (queries, pool) as ranges over the pairs, each query in one pool.

    Pools are disjoint, but for the last: it is filled up with the functions before it, which are not
    asked for again. As the pairs stand in a seeded random order, each pool is a random sample.
    """
    for start in range(0, num_pairs, size):
        stop = min(start + size, num_pairs)
        yield slice(start, stop), slice(stop - size, stop)


def expected_ranks(similarity_QN: Floats, answers_Q: npt.NDArray[np.intp]) -> Floats:
    """Rank of each query's right answer, from 1; among ties, the mean of the ranks they share.

    Args:
        similarity_QN: of each query to each function of the pool.
        answers_Q: position of the right answer in the pool.
    """
    own_Q1 = np.take_along_axis(similarity_QN, answers_Q[:, None], axis=1)
    above_Q = (similarity_QN > own_Q1 + TIE_TOLERANCE).sum(axis=1)
    tied_Q = (np.abs(similarity_QN - own_Q1) <= TIE_TOLERANCE).sum(axis=1) - 1
    ranks_Q: Floats = 1 + above_Q + tied_Q / 2
    return ranks_Q


def rank_lane(similarity: Callable[[slice, slice], Floats], num_pairs: int, size: int) -> Floats:
    """Ranks of all pairs of a lane in pools of one size; `similarity(queries, pool)` gives a block."""
    ranks = [
        expected_ranks(
            similarity(queries, pool), np.arange(queries.start, queries.stop, dtype=np.intp) - pool.start
        )
        for queries, pool in pools(num_pairs, size)
    ]
    return np.concatenate(ranks)


def recall_at_1(ranks: Floats) -> float:
    """Share of queries whose right answer comes first, alone."""
    return float((ranks <= 1).mean())


def mrr_at_10(ranks: Floats) -> float:
    """Mean reciprocal rank, counting 0 beyond rank 10."""
    return float(np.where(ranks <= 10, 1 / ranks, 0).mean())


def chance(size: int) -> tuple[float, float]:
    """Recall@1 and MRR@10 of a random order."""
    return 1 / size, float(sum(1 / rank for rank in range(1, min(size, 10) + 1)) / size)
