"""The losses: logits or vectors in, a scalar in fp32 out.

`token_losses` are summed by the trainer, which divides by the tokens of all ranks and micro-steps.
`info_nce` is a mean over the functions of all ranks, whose vectors it is given whole.

Shapes: B rows, T tokens, V vocabulary, M functions of all ranks, D vector length.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""Label of a token that is not predicted: a document's first, and padding."""

LOGITS_AT_ONCE = 1 << 26
"""Logits that a head makes at a time: 2,048 tokens of a vocabulary of 32K."""


def next_tokens(labels_BT: torch.Tensor) -> torch.Tensor:
    """What each place predicts: the label behind it, IGNORE at the end of a row."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)


def token_losses(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross entropy of what each place predicts, (B, T); 0 where its target is IGNORE."""
    logits = logits_BTV.flatten(0, -2).float()
    losses = F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets_BT)


def head_losses(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_BTD: torch.Tensor,
    targets_BT: torch.Tensor,
    *,
    vocab_size: int,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """`token_losses` of the head's logits, (B, T), without holding more than `logits_at_once` of them.

    The head runs over chunks of the places that have a target, and once more in the backward pass. It is
    called equally often for equal B x T, whatever the targets: at ZeRO 3 each call is collective.
    """
    count = -(-targets_BT.numel() * vocab_size // logits_at_once)
    wanted_N = (targets_BT.flatten() != IGNORE).nonzero().squeeze(1)
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1)[wanted_N], targets_BT.flatten()[wanted_N]
    chunks = zip(hidden_ND.tensor_split(count), targets_N.tensor_split(count), strict=True)

    def losses_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return token_losses(head(hidden), targets)

    if count == 1:
        losses_N = losses_of(hidden_ND, targets_N)
    else:
        losses_N = torch.cat([checkpoint(losses_of, *chunk, use_reentrant=False) for chunk in chunks])
    losses = losses_N.new_zeros(targets_BT.numel()).index_copy(0, wanted_N, losses_N)
    return losses.view_as(targets_BT)


def token_loss_sum(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Sum over labels aligned with the input ids: the logits at t-1 predict the label at t."""
    return token_losses(logits_BTV, next_tokens(labels_BT)).sum()


def num_predicted(labels_BT: torch.Tensor) -> int:
    """Tokens that `token_loss_sum` sums over."""
    return int((labels_BT[:, 1:] != IGNORE).sum())


def info_nce(
    left_MD: torch.Tensor, right_MD: torch.Tensor, clusters_M: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018, eq. 4) of unit vectors, a mean over M functions.

    Rows of equal number are a positive pair. Functions of one cluster are no negatives of each other.
    """
    own_M = torch.arange(len(left_MD), device=left_MD.device)
    masked_MM = clusters_M[:, None] == clusters_M
    masked_MM.fill_diagonal_(False)  # the positive itself stays
    total = left_MD.new_zeros((), dtype=torch.float32)
    for query_MD, candidates_MD in ((left_MD, right_MD), (right_MD, left_MD)):
        logits_MM = (query_MD @ candidates_MD.T).float() / temperature
        total = total + F.cross_entropy(logits_MM.masked_fill(masked_MM, float("-inf")), own_M)
    return total / 2
