"""Validation in the midst of training: rows of that split in, losses by part, ISA and -O level out.

All ranks take part, each with its share of the rows. Invariants: training goes on as if nothing had been: no
weight, gradient or random state changes; Slurm's notice is heeded between batches. Cost: one forward pass a
micro-batch and two additions a token.

Shapes: B rows, T tokens, S of this rank's span, G groups: each part's ISAs and levels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from asmtrain import dist, notice
from asmtrain.data import RowBatches, to_device
from asmtrain.engine import Engine
from asmtrain.losses import IGNORE, next_tokens
from asmtrain.metrics import Evaluated
from asmtrain.packing import IntArray
from asmtrain.rowlosses import losses
from asmtrain.ulysses import WHOLE, RowShare
from corpus_builder.record import Variant


@contextmanager
def undisturbed(engine: Engine) -> Iterator[None]:
    """Evaluation mode, without gradients; what was before comes back at the end."""
    state = dist.random_state()
    engine.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train(True)
        dist.set_random_state(state)


class Validation:
    """Packed rows of the validation split, whose tokens are told apart by part, ISA and level."""

    def __init__(self, rows: RowBatches, names: Sequence[str], num_rows: int) -> None:
        """`names` are the parts', in the order of the caches; `num_rows` those measured, of all ranks."""
        self.rows, self._names, self._num_rows = rows, names, num_rows
        self._cells = sorted({_cell(name) for cache in rows.caches for name in np.unique(cache.variants)})
        self._cell_of_document = [self._numbers(cache.variants) for cache in rows.caches]

    def _numbers(self, variants: np.typing.NDArray[np.str_]) -> IntArray:
        names, places = np.unique(variants, return_inverse=True)
        return np.array([self._cells.index(_cell(name)) for name in names])[places]

    def measure(self, engine: Engine, share: RowShare = WHOLE) -> Evaluated:
        """Mean losses over the predicted tokens of all ranks; raises Warned."""
        device = engine.world.device
        num_groups = len(self._names) * len(self._cells)
        sums_2G = torch.zeros(2, num_groups + 1, dtype=torch.float64, device=device)
        documents = self.rows.evaluation_documents(self._num_rows)
        for batch, lying in zip(self.rows.evaluation(self._num_rows), documents, strict=True):
            notice.heed(device)
            moved = to_device(batch, device)
            groups = share.part(self._groups(lying, none=num_groups)).flatten().to(device)
            is_predicted_BS = share.part(next_tokens(moved.labels_BT) != IGNORE)
            sums_2G[0].index_add_(0, groups, losses(engine, moved, share).double().flatten())
            sums_2G[1].index_add_(0, groups, is_predicted_BS.double().flatten())
        return self._evaluated(dist.all_reduce_sum(sums_2G)[:, :-1].cpu())

    def _groups(self, documents: list[list[tuple[int, int, int]]], *, none: int) -> torch.Tensor:
        """The group of each place, (B, T); `none` in padding."""
        groups_BT = torch.full((len(documents), self.rows.context), none)
        for line, row in enumerate(documents):
            at = 0
            for part, document, length in row:
                cell = int(self._cell_of_document[part][document])
                groups_BT[line, at : at + length] = part * len(self._cells) + cell
                at += length
        return groups_BT

    def _evaluated(self, sums_2G: torch.Tensor) -> Evaluated:
        sums = sums_2G.view(2, len(self._names), len(self._cells))
        cells = _means(self._cells, sums.sum(1))
        return Evaluated(
            loss=float(sums[0].sum() / sums[1].sum().clamp(min=1)),
            perplexity={name: math.exp(min(loss, 700.0)) for name, loss in cells.items()},
            num_tokens={
                name: int(count) for name, count in zip(self._cells, sums[1].sum(0), strict=True) if count
            },
            losses=_means(self._names, sums.sum(2)) if len(self._names) > 1 else {},
        )


def _cell(variant: str) -> str:
    """`aarch64.o2` for `aarch64.gcc12.o2`."""
    isa, _, level = Variant.parse(str(variant))
    return f"{isa}.{level}"


def _means(names: Sequence[str], sums_2N: torch.Tensor) -> dict[str, float]:
    """Loss a token under each name that has one."""
    return {
        name: float(total / count) for name, total, count in zip(names, *sums_2N, strict=True) if count > 0
    }
