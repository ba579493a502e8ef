"""The losses against naive versions."""

import math

import pytest
import torch
from torch import nn

from asmtrain.losses import IGNORE, info_nce, num_predicted, token_loss_sum

NUM, DIM = 8, 4
TEMPERATURE = 0.1


def test_token_loss_is_the_sum_over_predicted_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    labels = torch.tensor([[IGNORE, 3, 4, IGNORE, 6], [IGNORE, 0, IGNORE, IGNORE, IGNORE]])
    expected = -sum(
        logits[row, place - 1].log_softmax(-1)[labels[row, place]]
        for row in range(2)
        for place in range(1, 5)
        if labels[row, place] != IGNORE
    )
    torch.testing.assert_close(token_loss_sum(logits, labels), expected)
    assert num_predicted(labels) == 4


def test_rows_of_padding_alone_give_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 7, requires_grad=True)
    loss = token_loss_sum(logits, torch.full((1, 4), IGNORE))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_sum_is_computed_in_fp32() -> None:
    logits = torch.randn(1, 100, 50).bfloat16()
    labels = torch.randint(0, 50, (1, 100))
    assert token_loss_sum(logits, labels).dtype == torch.float32
    torch.testing.assert_close(token_loss_sum(logits, labels), token_loss_sum(logits.float(), labels))


def unit_vectors(seed: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(NUM, DIM, generator=generator, dtype=dtype), dim=-1)


CLUSTERS = torch.tensor([0, 1, 2, 0, 4, 2, 6, 7])


def naive_info_nce(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Query by query, candidate by candidate."""
    losses = []
    for query, candidates in ((left, right), (right, left)):
        for i in range(NUM):
            used = [j for j in range(NUM) if j == i or CLUSTERS[j] != CLUSTERS[i]]
            scores = torch.stack([query[i] @ candidates[j] / TEMPERATURE for j in used])
            losses.append(scores.logsumexp(0) - query[i] @ candidates[i] / TEMPERATURE)
    return torch.stack(losses).mean()


def test_info_nce_equals_naive_version() -> None:
    left, right = unit_vectors(0), unit_vectors(1)
    loss = info_nce(left, right, CLUSTERS, temperature=TEMPERATURE)
    torch.testing.assert_close(loss.double(), naive_info_nce(left, right), rtol=1e-5, atol=0)


def test_no_gradient_pushes_members_of_a_cluster_apart() -> None:
    left, right = unit_vectors(0).requires_grad_(), unit_vectors(1)
    info_nce(left, right, CLUSTERS, temperature=TEMPERATURE).backward()
    moved = right.clone()
    moved[3] = -right[3]  # of function 0's cluster, so only its own query may heed it
    again = unit_vectors(0).requires_grad_()
    info_nce(again, moved, CLUSTERS, temperature=TEMPERATURE).backward()
    changed = (left.grad - again.grad).abs().amax(1) > 1e-9
    assert changed.tolist() == [False, True, True, True, True, True, True, True]


def test_loss_of_vectors_that_say_nothing_is_log_of_the_candidates() -> None:
    same = torch.ones(NUM, DIM) / math.sqrt(DIM)
    loss = info_nce(same, same, torch.arange(NUM), temperature=TEMPERATURE)
    assert loss.item() == pytest.approx(math.log(NUM))
