"""The losses against naive versions."""

import itertools
import math

import pytest
import torch
from torch import nn

from asmtrain.attention import use_within_documents
from asmtrain.config import Full, Lora, ShapeConfig
from asmtrain.losses import (
    IGNORE,
    head_losses,
    info_nce,
    num_predicted,
    similarity_kl,
    token_loss_sum,
    token_losses,
)
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


def unit_vectors(seed: int, num_variants: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(NUM, num_variants, DIM, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(vectors, dim=-1)


CLUSTERS = torch.tensor([0, 1, 2, 0, 4, 2, 6, 7])


def bodies_of(num_variants: int) -> torch.Tensor:
    """All different, but that function 5 shows its first body again in its last variant, if it has three."""
    bodies = torch.arange(NUM * num_variants).view(NUM, num_variants)
    if num_variants > 2:
        bodies[5, -1] = bodies[5, 0]
    return bodies


def naive_info_nce(
    vectors: torch.Tensor,
    clusters: torch.Tensor,
    bodies: torch.Tensor,
    *,
    temperature: float,
    margin: float | None = None,
) -> torch.Tensor:
    """Vector by vector, candidate by candidate."""
    places = list(itertools.product(range(vectors.shape[0]), range(vectors.shape[1])))
    losses = []
    for m, k in places:
        query = vectors[m, k]
        positives = [query @ vectors[m, v] for v in range(vectors.shape[1]) if bodies[m, v] != bodies[m, k]]
        negatives = [query @ vectors[n, v] for n, v in places if clusters[n] != clusters[m]]
        if margin is not None:
            negatives = [score for score in negatives if score <= max(positives) + margin]
        total = (torch.stack(positives + negatives) / temperature).logsumexp(0)
        losses.append(torch.stack([total - score / temperature for score in positives]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("num_variants", [2, 3, 4])
def test_info_nce_equals_naive_version(num_variants: int, margin: float | None) -> None:
    bodies, settings = bodies_of(num_variants), {"temperature": TEMPERATURE, "margin": margin}
    gradients = []
    for loss_of in (info_nce, naive_info_nce):
        vectors = unit_vectors(0, num_variants).requires_grad_()
        loss = loss_of(vectors, CLUSTERS, bodies, **settings)
        gradients.append((loss.detach().double(), *torch.autograd.grad(loss, vectors)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_two_variants_give_nt_xent() -> None:
    """Chen et al. 2020, eq. 1: cross entropy of the other variant among all vectors but the own."""
    vectors = unit_vectors(0)
    flat = vectors.transpose(0, 1).flatten(0, 1)
    logits = (flat @ flat.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    expected = nn.functional.cross_entropy(logits, torch.arange(2 * NUM).roll(NUM))
    found = info_nce(vectors, torch.arange(NUM), temperature=TEMPERATURE)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_the_margin_leaves_out_what_is_nearer_than_every_positive() -> None:
    vectors = unit_vectors(0)
    vectors[1, 0] = vectors[0, 0]  # a copy under another name
    clusters = torch.arange(NUM)
    gradients = {}
    for margin in (None, 0.1):
        moved = vectors.clone().requires_grad_()
        info_nce(moved, clusters, temperature=TEMPERATURE, margin=margin).backward()
        gradients[margin] = moved.grad[0, 0] @ vectors[0, 0]  # how far it is pushed away from itself
    assert gradients[None] > gradients[0.1]


def test_nothing_pushes_members_of_a_cluster_apart() -> None:
    vectors = unit_vectors(0)[[0, 3]].requires_grad_()
    loss = info_nce(vectors, CLUSTERS[[0, 3]], temperature=TEMPERATURE)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, vectors)[0].abs().max() < 1e-6
    assert info_nce(vectors, CLUSTERS[[0, 1]], temperature=TEMPERATURE) > 0.1


def test_loss_of_vectors_that_say_nothing_is_log_of_the_candidates() -> None:
    same = torch.ones(NUM, 2, DIM) / math.sqrt(DIM)
    loss = info_nce(same, torch.arange(NUM), temperature=TEMPERATURE)
    assert loss.item() == pytest.approx(math.log(2 * NUM - 1))


def test_similarity_kl_equals_its_definition_and_is_zero_for_the_teachers_own_similarities() -> None:
    student, teacher = unit_vectors(0).flatten(0, 1), unit_vectors(1, 3).flatten(0, 1)[: 2 * NUM]
    expected = 0.0
    for row in range(2 * NUM):
        others = [column for column in range(2 * NUM) if column != row]
        ours, theirs = (((side @ side[row])[others] / TEMPERATURE).softmax(0) for side in (student, teacher))
        expected += float((theirs * (theirs / ours).log()).sum()) / (2 * NUM)
    assert float(similarity_kl(student, teacher, temperature=TEMPERATURE)) == pytest.approx(
        expected, rel=1e-5
    )
    turned = student @ torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64))[0]
    assert float(similarity_kl(turned, student, temperature=TEMPERATURE)) == pytest.approx(0, abs=1e-5)
