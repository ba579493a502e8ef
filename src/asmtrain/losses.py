"""The losses: logits or vectors in, a scalar in fp32 out.

`token_losses` are summed by the trainer, which divides by the tokens of all ranks and micro-steps.
`info_nce` and `similarity_kl` are means over the functions of all ranks, whose vectors they are given whole.

Shapes: B rows, T tokens, V vocabulary, M functions of all ranks, K variants of each, N = M x K vectors, D
vector length, E a teacher's.
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
    vectors_MKD: torch.Tensor,
    clusters_M: torch.Tensor,
    bodies_MK: torch.Tensor | None = None,
    *,
    temperature: float,
    margin: float | None = None,
) -> torch.Tensor:
    """Multi-positive InfoNCE of unit vectors, a mean over the K variants of M functions.

    The L_out of Khosla et al. 2020 (SupCon, eq. 2): of each vector, the mean over its positives of the
    log-softmax among all other vectors. At K = 2 it is NT-Xent (Chen et al. 2020, SimCLR). Positives are a
    function's other variants; of equal `bodies_MK` (one shown twice) they are left out, and so are other
    functions of one cluster, and those more similar than every positive by more than `margin`.
    """
    vectors_ND = vectors_MKD.flatten(0, 1)
    clusters_N = clusters_M.repeat_interleave(vectors_MKD.shape[1])
    similarities_NN = (vectors_ND @ vectors_ND.T).float()
    positive_NN = _positives(vectors_MKD, bodies_MK)
    used_NN = positive_NN | (clusters_N[:, None] != clusters_N)
    if margin is not None:
        nearest_N1 = similarities_NN.masked_fill(~positive_NN, -torch.inf).amax(1, keepdim=True)
        used_NN &= similarities_NN <= nearest_N1 + margin
    logits_NN = similarities_NN / temperature
    totals_N1 = logits_NN.masked_fill(~used_NN, -torch.inf).logsumexp(1, keepdim=True)
    losses_NN = (totals_N1 - logits_NN).masked_fill(~positive_NN, 0.0)
    return (losses_NN.sum(1) / positive_NN.sum(1)).mean()


def _positives(vectors_MKD: torch.Tensor, bodies_MK: torch.Tensor | None) -> torch.Tensor:
    """(N, N), N = M x K: other variants of the same function, with another body."""
    num_functions, num_variants, _ = vectors_MKD.shape
    device = vectors_MKD.device
    if bodies_MK is None:
        bodies_MK = torch.arange(num_variants, device=device).expand(num_functions, num_variants)
    functions_N = torch.arange(num_functions, device=device).repeat_interleave(num_variants)
    bodies_N = bodies_MK.flatten()
    return (functions_N[:, None] == functions_N) & (bodies_N[:, None] != bodies_N)


def similarity_kl(vectors_ND: torch.Tensor, teacher_NE: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """KL divergence of the model's in-batch similarities from the teacher's, a mean over N unit vectors.

    Each vector's similarities to the others, through a softmax, are a distribution (SEED, Fang et al. 2021,
    eq. 5, with the step in place of a queue). Zero where the similarities are equal.
    """
    student_NN, teacher_NN = (
        ((side @ side.T).float() / temperature).fill_diagonal_(-1e9).log_softmax(1)
        for side in (vectors_ND, teacher_NE)
    )
    return F.kl_div(student_NN, teacher_NN, reduction="batchmean", log_target=True)
