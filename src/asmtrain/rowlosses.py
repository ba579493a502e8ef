"""The loss of packed rows: micro-batches in, gradients in the engine and figures of all ranks out.

Invariant: the loss, and so its gradient, is the mean over the predicted tokens of all ranks and
micro-batches, whatever ranks share rows. The losses of parts and objectives ride on its two all-reduces.

Shapes: B rows, T tokens, S of this rank's span, P parts of the mixture.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from asmtrain import dist
from asmtrain.attention import document_lengths
from asmtrain.data import RowBatch
from asmtrain.engine import Engine
from asmtrain.losses import IGNORE, next_tokens
from asmtrain.mixture import Part
from asmtrain.ulysses import WHOLE, RowShare


class Taken(NamedTuple):
    """What the passes of one step gave, over all ranks."""

    loss: float
    num_tokens: int
    """Read, without padding."""
    num_places: int
    """With padding."""
    losses: Mapping[str, float]
    """Of each part and each objective, where there are several."""


def causal_lm_backward(
    engine: Engine,
    batches: Sequence[RowBatch],
    share: RowShare = WHOLE,
    *,
    parts: Sequence[Part] = (),
    parts_of_rows: Sequence[torch.Tensor] = (),
) -> Taken:
    """Gradients of the mean cross entropy over the predicted tokens of all ranks and micro-batches.

    Ranks that share rows are given the same batches. `parts_of_rows` are the batches' parts_B, numbers in
    `parts`; where there are several, each gets its loss.
    """
    device, num_parts = engine.world.device, max(len(parts), 1)
    rows = [parts_B.to(device) for parts_B in parts_of_rows] or [
        batch.ids_BT.new_zeros(len(batch.ids_BT)) for batch in batches
    ]
    counts = torch.zeros(2 + num_parts, dtype=torch.long, device=device)
    for batch, parts_B in zip(batches, rows, strict=True):
        counts[0] += (batch.document_ids_BT >= 0).sum()
        counts[1] += batch.ids_BT.numel()
        counts[2:].index_add_(0, parts_B, (next_tokens(batch.labels_BT) != IGNORE).sum(1))
    read, places, *predicted = (dist.all_reduce_sum(counts) // share.size).tolist()
    sums = torch.zeros(1 + num_parts, device=device)
    for batch, parts_B in zip(batches, rows, strict=True):
        losses_BS = losses(engine, batch, share)
        summand = losses_BS.sum() / max(sum(predicted), 1)
        engine.backward(summand)
        sums[0] += summand.detach()
        sums[1:].index_add_(0, parts_B, losses_BS.detach().sum(1))
    loss, *totals = dist.all_reduce_sum(sums).tolist()
    return Taken(loss, read, places, _named(parts, totals, predicted) if num_parts > 1 else {})


def losses(engine: Engine, batch: RowBatch, share: RowShare) -> torch.Tensor:
    """The losses of this rank's span of the rows, (B, S)."""
    sides = (batch.ids_BT, batch.position_ids_BT, next_tokens(batch.labels_BT))
    lengths = document_lengths(batch.document_ids_BT)
    losses_BS: torch.Tensor = engine(*(share.part(side_BT) for side_BT in sides), lengths, share)
    return losses_BS


def whole_losses(engine: Engine, batch: RowBatch, share: RowShare) -> torch.Tensor:
    """The losses of rows of any length, whole on every rank that shares them."""
    fillings = {"ids_BT": 0, "position_ids_BT": 0, "labels_BT": IGNORE, "document_ids_BT": -1}
    padded = RowBatch(**{name: share.pad(getattr(batch, name), value) for name, value in fillings.items()})
    return share.whole(losses(engine, padded, share))[:, : batch.ids_BT.shape[1]]


def _named(parts: Sequence[Part], totals: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """Loss a token of each part that has one in this step, and of each objective, where there are several."""
    groups = {part.name: [number] for number, part in enumerate(parts)}
    if len({part.objective for part in parts}) > 1:
        for number, part in enumerate(parts):
            groups.setdefault(part.objective, []).append(number)
    sums = {
        name: (sum(totals[number] for number in own), sum(counts[number] for number in own))
        for name, own in groups.items()
    }
    return {name: total / count for name, (total, count) in sums.items() if count}
