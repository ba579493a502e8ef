"""Batches: token caches in, the micro-batches of one rank out.

Every batch is a pure function of (step, seed, corpus, settings): a resumed run asks for the step it stopped
at, there is no iterator state. The global order of rows does not depend on the number of ranks.

Shapes: B rows or functions of a micro-batch, T tokens.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch

BatchT = TypeVar("BatchT", "RowBatch", "PairBatch")


@dataclass(frozen=True)
class RowBatch:
    """Packed rows for `causal_lm`, all int64 of shape (B, T)."""

    ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    """Count from 0 in each document; with attention_mask=None and use_cache=False they isolate documents."""
    labels_BT: torch.Tensor
    """The ids; -100 at each document's first token and in padding."""
    document_ids_BT: torch.Tensor
    """Number of the document in its row; -1 in padding."""


@dataclass(frozen=True)
class PairBatch:
    """Functions for `contrastive`, each in two variants with different bodies, padded on the right."""

    left_ids_BT: torch.Tensor
    left_mask_BT: torch.Tensor
    right_ids_BT: torch.Tensor
    right_mask_BT: torch.Tensor
    functions_B: torch.Tensor
    """Number of the function in its cache."""
    left_bodies_B: torch.Tensor
    """First 8 bytes of the body's sha256, as int64: equal for equal bodies of any functions."""
    right_bodies_B: torch.Tensor


def to_device(batch: BatchT, device: torch.device | str) -> BatchT:
    """The batch with every tensor on a device."""
    return type(batch)(**{item.name: getattr(batch, item.name).to(device) for item in fields(batch)})
