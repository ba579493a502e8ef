"""Figures of ranks: recall, reciprocal rank, and how sure they are.

In go the ranks of a lane's queries with their projects, out come figures. The interval is a bootstrap over
projects, not queries (Efron 1979; a cluster bootstrap): functions of one project are alike, and what is
claimed is a figure on other projects.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asmtrain.tasks.pools import Floats

RESAMPLES = 1000


def recall_at(ranks: Floats, place: int) -> float:
    """Share of queries whose right answer stands at `place` or before; at 1, alone."""
    return float((ranks <= place).mean())


def mrr_at_10(ranks: Floats) -> float:
    """Mean reciprocal rank, counting 0 beyond rank 10."""
    return float(np.where(ranks <= 10, 1 / ranks, 0).mean())


def scores(ranks: Floats, projects: npt.NDArray[np.intp], *, seed: int) -> dict[str, Any]:
    """The figures of some queries.

    Args:
        ranks: (Q,), from 1.
        projects: (Q,), a number a project.
        seed: of the bootstrap.
    """
    _, places = np.unique(projects, return_inverse=True)
    hits_P = np.bincount(places, weights=ranks <= 1).astype(np.float64)
    counts_P = np.bincount(places).astype(np.float64)
    return {
        "recall_at_1": recall_at(ranks, 1),
        "recall_at_10": recall_at(ranks, 10),
        "mrr_at_10": mrr_at_10(ranks),
        "ci95": bootstrap(hits_P, counts_P, seed=seed),
        "macro_recall_at_1": float((hits_P / counts_P).mean()),
        "num_queries": len(ranks),
        "num_projects": len(counts_P),
    }


def bootstrap(hits_P: Floats, counts_P: Floats, *, seed: int) -> list[float]:
    """95 % interval of sum(hits) / sum(counts) over projects drawn with replacement, percentiles."""
    weights_RP = resampled(len(counts_P), seed=seed)
    shares_R = (weights_RP @ hits_P) / (weights_RP @ counts_P)
    return [float(bound) for bound in np.quantile(shares_R, (0.025, 0.975))]


def resampled(num: int, *, seed: int) -> npt.NDArray[np.int64]:
    """(R, P) how often each of `num` projects is drawn, with replacement, in each of RESAMPLES draws."""
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), RESAMPLES)


def chance(size: int, projects: Sequence[int] | npt.NDArray[np.intp]) -> dict[str, Any]:
    """The figures of a random order."""
    recall = 1 / size
    return {
        "recall_at_1": recall,
        "recall_at_10": min(10, size) / size,
        "mrr_at_10": float(sum(1 / rank for rank in range(1, min(size, 10) + 1)) / size),
        "ci95": [recall, recall],
        "macro_recall_at_1": recall,
        "num_queries": len(projects),
        "num_projects": len(np.unique(projects)),
    }
