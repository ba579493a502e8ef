"""The losses: logits or vectors in, a scalar in fp32 out.

`token_losses` are summed by the trainer, which divides by the tokens of all ranks and micro-steps.
`info_nce` is a mean over the functions of all ranks, whose vectors it is given whole.

Shapes: B rows, T tokens, V vocabulary, M functions of all ranks, D vector length.
"""

import torch
import torch.nn.functional as F

IGNORE = -100
"""Label of a token that is not predicted: a document's first, and padding."""


def next_tokens(labels_BT: torch.Tensor) -> torch.Tensor:
    """What each place predicts: the label behind it, IGNORE at the end of a row."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)


def token_losses(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Cross entropy of what each place predicts, (B, T); 0 where its target is IGNORE."""
    logits = logits_BTV.flatten(0, 1).float()
    losses = F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORE, reduction="none")
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
