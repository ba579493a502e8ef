"""The losses against naive versions."""

import math

import pytest
import torch
from torch import nn

from asmtrain.attention import use_within_documents
from asmtrain.config import Full, Lora, ShapeConfig
from asmtrain.losses import IGNORE, head_losses, info_nce, num_predicted, token_loss_sum, token_losses
from asmtrain.model import TokenLossModel, attach_lora, llama_config, new_model, set_trainable

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


SHAPE = ShapeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=2
)
TIED = SHAPE.model_copy(update={"tie_embeddings": True})
HEADS = {
    "full": (SHAPE, Full(kind="full")),
    "tied": (TIED, Full(kind="full")),
    "frozen": (SHAPE, Lora(kind="lora")),
    "unfrozen": (SHAPE, Lora(kind="lora", unfreeze=("lm_head",))),
    "adapted": (SHAPE, Lora(kind="lora", targets=("q_proj", "lm_head"), dropout=0.3)),
}


@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_of_the_head_give_the_plain_loss_and_gradients(kind: str, chunks: int) -> None:
    shape, trainable = HEADS[kind]
    model = new_model(llama_config(shape), dtype="fp32", seed=0)
    if isinstance(trainable, Lora):
        model = attach_lora(model, trainable, base="base")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    set_trainable(model, trainable, headless=False)
    use_within_documents(model)
    # Dropout draws one mask for a chunk and another for the whole: compared without it.
    model.eval()
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, 64, (2, 21), generator=generator)
    targets_BT = ids_BT.masked_fill(torch.rand(2, 21, generator=generator) < 0.4, IGNORE)
    positions_BT = torch.arange(21).expand(2, 21)
    logits = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False, document_lengths=[21, 21])
    plain_BT = token_losses(logits.logits, targets_BT)
    chunked = TokenLossModel(model, logits_at_once=-(-2 * 21 * 64 // chunks))
    losses_BT = chunked(ids_BT, positions_BT, targets_BT, [21, 21])
    torch.testing.assert_close(losses_BT, plain_BT, rtol=1e-6, atol=1e-6)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights_BT = torch.rand(2, 21, generator=generator)
    gradients = [torch.autograd.grad((each * weights_BT).sum(), trained) for each in (losses_BT, plain_BT)]
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_recomputed_with_the_dropout_it_had() -> None:
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 16, bias=False)).train()
    hidden = torch.randn(1, 12, 8, requires_grad=True)
    targets = torch.arange(12)[None]
    torch.manual_seed(1)
    losses = head_losses(head, hidden, targets, vocab_size=16, logits_at_once=3 * 16)
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    torch.manual_seed(1)
    plain = torch.cat(
        [token_losses(head(h), t) for h, t in zip(hidden[0].split(3), targets[0].split(3), strict=True)]
    )
    torch.testing.assert_close(losses[0], plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), hidden)[0])


class Counted(nn.Linear):
    rows: list[int]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_head_runs_equally_often_on_every_batch_and_only_where_there_is_a_target(share: float) -> None:
    """ZeRO 3 fetches its weights at each call, on all ranks together."""
    head = Counted(8, 16, bias=False)
    head.rows = []
    hidden = torch.randn(2, 50, 8, requires_grad=True)
    targets = torch.where(torch.arange(100) < share * 100, 3, IGNORE).view(2, 50)
    losses = head_losses(head, hidden, targets, vocab_size=16, logits_at_once=10 * 16)
    losses.sum().backward()
    assert len(head.rows) == 10 + 10  # forward, and again in the backward pass
    assert sum(head.rows[:10]) == round(share * 100)
    assert max(head.rows) <= 10
    assert torch.equal(losses == 0, targets == IGNORE)
    assert torch.equal(hidden.grad.abs().sum(-1) == 0, targets == IGNORE)


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
