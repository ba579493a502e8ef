"""Long rows split over ranks: sequence parallelism as DeepSpeed Ulysses does it (Jacobs et al. 2023).

In: a group of ranks that read the same rows, each a span of their tokens. Out: that span, and an attention
that sees whole rows: before it, ranks exchange their spans of all heads for all tokens of some heads, and
back behind it. Everything else in a model works on each token by itself.

Invariant: the ranks of a group together give the losses and gradients that one process gives. Each rank adds
the gradient of its own tokens' losses, so the sum over all ranks is right at every ZeRO stage, with no
process group of DeepSpeed's own. Cost: a layer sends its queries, keys, values and outputs once forward and
once backward, (P - 1) / P of them to others; activations shrink to 1 / P a rank.

Shapes: P ranks of a group, B rows, T tokens of whole rows, S = T / P of this rank, H heads, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.distributed as c10d
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_to_all_single_autograd

from asmtrain import dist
from asmtrain.dist import World


@dataclass(frozen=True)
class RowShare:
    """This rank's span of each row."""

    group: c10d.ProcessGroup | None
    index: int
    size: int

    def part(self, values_BT: torch.Tensor) -> torch.Tensor:
        """This rank's span, (B, S) of (B, T); T is a multiple of the group's size."""
        return values_BT.chunk(self.size, dim=1)[self.index]

    def pad(self, values_BT: torch.Tensor, value: int) -> torch.Tensor:
        """Rows filled up to a length that the group can split."""
        return F.pad(values_BT, (0, -values_BT.shape[1] % self.size), value=value)

    def whole(self, values_BS: torch.Tensor) -> torch.Tensor:
        """The spans of all ranks of the group, (B, T), without gradients."""
        if self.group is None:
            return values_BS
        spans = [torch.empty_like(values_BS) for _ in range(self.size)]
        c10d.all_gather(spans, values_BS.contiguous(), group=self.group)
        return torch.cat(spans, dim=1)


WHOLE = RowShare(None, 0, 1)
"""A rank that reads its rows alone."""


def row_share(world: World, size: int) -> RowShare:
    """Group `size` neighbouring ranks; all ranks call it together."""
    return RowShare(dist.subgroup(size), world.rank % size, size) if size > 1 else WHOLE


def over_whole_rows(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention of transformers that, given a `share` of several ranks, sees whole rows of its heads.

    Its queries, keys and values come as (B, H, S, D), its output goes as (B, S, H, D). Keys and values of
    fewer heads than ranks are repeated.
    """

    @wraps(attention)
    def attend(
        module: torch.nn.Module,
        query_BHSD: torch.Tensor,
        key_BHSD: torch.Tensor,
        value_BHSD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        share: RowShare | None = None,
        **named: Any,
    ) -> tuple[torch.Tensor, None]:
        sides = (query_BHSD, key_BHSD, value_BHSD)
        if share is None or share.group is None:
            return attention(module, *sides, attention_mask, **named)  # type: ignore[no-any-return]
        whole = [_heads_for_tokens(side, share) for side in sides]
        output, _ = attention(module, *whole, attention_mask, **named)
        return _tokens_for_heads(output, share), None

    return attend


def _heads_for_tokens(side_BHSD: torch.Tensor, share: RowShare) -> torch.Tensor:
    """(B, H / P, T, D): this rank's heads over whole rows."""
    heads = side_BHSD.shape[1]
    repeats = math.lcm(heads, share.size) // heads
    side_BHSD = side_BHSD.repeat_interleave(repeats, dim=1) if repeats > 1 else side_BHSD
    received = _exchange(side_BHSD, share)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _tokens_for_heads(output_BTHD: torch.Tensor, share: RowShare) -> torch.Tensor:
    """(B, S, H, D): all heads over this rank's span."""
    received = _exchange(output_BTHD, share)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _exchange(values: torch.Tensor, share: RowShare) -> torch.Tensor:
    """Give part p of the second dimension to rank p of the group; returns what each gave, stacked."""
    assert share.group is not None
    batch, count, *rest = values.shape
    parts = values.reshape(batch, share.size, count // share.size, *rest).transpose(0, 1).contiguous()
    received: torch.Tensor = all_to_all_single_autograd(parts.flatten(0, 1), None, None, share.group)
    return received.view(parts.shape)
