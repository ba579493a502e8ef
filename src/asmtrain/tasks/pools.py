"""The retrieval protocol: which function pairs are asked for, among which others, and how ranks are counted.

In go a split's functions and a lane; out come the pairs that the lane uses, with a count of those left out
and why, and pools. Pure: no model, no text. The invariant: nothing in a pool shares an identity (a body on
either side, source, or name and file) with anything else in it, so every query has exactly one right answer.

Exact dense search costs Q x N x dim multiplications a lane: a tenth of a second for 1,000 queries in 1,000.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from asmtrain.tasks.lanes import Lane

TIE_TOLERANCE = 1e-6
"""Similarities closer than this are ties: the order of summation alone moves float32 cosines by 1e-7."""

_QUERIES_AT_ONCE = 250
"""Of a pool that is larger than the queries: bounds the memory of a block of similarities."""

Floats = npt.NDArray[np.floating[Any]]
Similarity: TypeAlias = Callable[[slice, slice], Floats]
"""Of some queries to some answers, both by their positions in the lane."""


class Body(NamedTuple):
    """A function in one variant, as a view shows it."""

    sha256: str
    num_instructions: int


@dataclass(frozen=True)
class Function:
    """What the protocol has to know of a function."""

    key: str
    project: str
    name: str
    file: str
    source_sha256: str
    bodies: Mapping[str, Body]
    """By variant name."""


@dataclass(frozen=True)
class Pair:
    """One function of a lane: where it comes from, what it drew, and its two bodies."""

    key: str
    project: str
    query: str
    """Variant name."""
    answer: str
    query_body: str
    """sha256 of the query variant's view."""
    answer_body: str


@dataclass(frozen=True)
class Census:
    """How many functions a lane had, and why it has fewer now."""

    num_functions: int
    """Compiled in two variants that the lane allows."""
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


def eligible(
    functions: Iterable[Function], lane: Lane, *, min_instructions: int, seed: int
) -> tuple[list[Pair], Census]:
    """The pairs that a lane may use, in an order that depends on the seed and the keys alone.

    Args:
        functions: those of the split.
        lane: each function draws one of the pairs of variants that it allows, by seed and key.
        min_instructions: a function shorter than this on either side is left out.
    """
    drawn = [(function, pair) for function in functions if (pair := _draw(function, lane, seed))]
    drawn.sort(key=lambda item: _digest(seed, item[0].key))
    short = identical = duplicate = 0
    seen: set[object] = set()
    pairs = []
    for function, (query, answer) in drawn:
        left, right = function.bodies[query], function.bodies[answer]
        identity = {left.sha256, right.sha256, function.source_sha256, (function.name, function.file)}
        if min(left.num_instructions, right.num_instructions) < min_instructions:
            short += 1
        elif left.sha256 == right.sha256:
            identical += 1
        elif identity & seen:
            duplicate += 1
        else:
            seen |= identity
            pairs.append(Pair(function.key, function.project, query, answer, left.sha256, right.sha256))
    return pairs, Census(len(drawn), short, identical, duplicate, 0)


def _draw(function: Function, lane: Lane, seed: int) -> tuple[str, str] | None:
    """One query and another variant as its answer; nothing where the function has no two."""
    allowed = [
        (query, answer)
        for query in lane.queries
        if query in function.bodies
        for answer in lane.answers
        if answer in function.bodies and answer != query
    ]
    if not allowed:
        return None
    return allowed[int.from_bytes(_digest(seed, f"{function.key}/draw")[:8], "big") % len(allowed)]


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def pool_sizes(num_pairs: int, wanted: Sequence[int]) -> list[int]:
    """The wanted sizes that `num_pairs` functions fill; where they do not fill 1,000, all of them too."""
    return sorted({size for size in wanted if size <= num_pairs} | {min(num_pairs, 1000)})


def pools(num_queries: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a lane into pools: (queries, pool) as ranges over its pairs, each query in one pool.

    Pools are disjoint, but for the last: it is filled up with the functions before it, which are not
    asked for again. A pool larger than the queries holds further functions behind them. As the pairs stand
    in a seeded random order, each pool is a random sample.
    """
    if size > num_queries:
        for start in range(0, num_queries, _QUERIES_AT_ONCE):
            yield slice(start, min(start + _QUERIES_AT_ONCE, num_queries)), slice(0, size)
        return
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
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


def rank_lane(similarity: Similarity, num_queries: int, size: int) -> Floats:
    """Ranks of all queries of a lane in pools of one size; `similarity(queries, pool)` gives a block."""
    ranks = [
        expected_ranks(
            similarity(queries, pool), np.arange(queries.start, queries.stop, dtype=np.intp) - pool.start
        )
        for queries, pool in pools(num_queries, size)
    ]
    return np.concatenate(ranks)
