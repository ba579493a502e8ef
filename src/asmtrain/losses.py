"""The losses: logits or vectors in, a scalar in fp32 out.

`token_loss_sum` is a sum, not a mean: the trainer divides by the tokens of all ranks and micro-steps.
`info_nce` is a mean over the rows given to it; the mean of its values over ranks of equal size is what one
process computes over all rows.

Shapes: B rows, T tokens, V vocabulary, N functions of this rank, M functions of all ranks, D vector length.
"""

import torch
import torch.nn.functional as F

IGNORE = -100
"""Label of a token that is not predicted: a document's first, and padding."""


def token_loss_sum(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Sum of the cross entropy over the tokens whose label is not IGNORE.

    Labels are aligned with the input ids; the shift is done here: the logits at t-1 predict the label at t.
    """
    logits = logits_BTV[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(logits, labels_BT[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def num_predicted(labels_BT: torch.Tensor) -> int:
    """Tokens that `token_loss_sum` sums over."""
    return int((labels_BT[:, 1:] != IGNORE).sum())


def info_nce(
    left_ND: torch.Tensor,
    right_ND: torch.Tensor,
    *,
    all_left_MD: torch.Tensor,
    all_right_MD: torch.Tensor,
    all_functions_M: torch.Tensor,
    all_left_bodies_M: torch.Tensor,
    all_right_bodies_M: torch.Tensor,
    offset: int,
    temperature: float,
) -> torch.Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018, eq. 4) of unit vectors, a mean over N functions.

    Row i of this rank is row `offset + i` of the gathered tensors. A candidate is no negative, and masked,
    when it is of the query's function or its body equals either body of the positive pair.
    """
    own_N = torch.arange(offset, offset + len(left_ND), device=left_ND.device)
    left_bodies_N, right_bodies_N = all_left_bodies_M[own_N], all_right_bodies_M[own_N]
    same_function_NM = all_functions_M[own_N, None] == all_functions_M
    total = left_ND.new_zeros((), dtype=torch.float32)
    for query_ND, candidates_MD, bodies_M in (
        (left_ND, all_right_MD, all_right_bodies_M),
        (right_ND, all_left_MD, all_left_bodies_M),
    ):
        masked_NM = same_function_NM | _equals_either(bodies_M, left_bodies_N, right_bodies_N)
        masked_NM = masked_NM.scatter(1, own_N[:, None], False)  # the positive itself stays
        logits_NM = (query_ND @ candidates_MD.T).float() / temperature
        total = total + F.cross_entropy(logits_NM.masked_fill(masked_NM, float("-inf")), own_N)
    return total / 2


def _equals_either(bodies_M: torch.Tensor, first_N: torch.Tensor, second_N: torch.Tensor) -> torch.Tensor:
    return (bodies_M == first_N[:, None]) | (bodies_M == second_N[:, None])
