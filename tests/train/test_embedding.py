"""Pooling ignores padding on either side and equals sentence-transformers' own modules."""

from typing import Literal

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from asmtrain.config import ShapeConfig
from asmtrain.embedding import EmbeddingHead, hidden_states, last_token_pool, max_pool, mean_pool
from asmtrain.errors import ConfigError
from asmtrain.model import EmbeddingModel, llama_config, new_model

LENGTHS = (1, 4, 6)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Hidden states with noise in the padding, the mask, and the states of the tokens alone."""
    hidden = torch.randn(len(LENGTHS), max(LENGTHS), 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    alone = []
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)
        mask[row, place] = 1
        alone.append(hidden[row, place])
    return hidden, mask, alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_ignores_padding(side: str) -> None:
    hidden, mask, alone = padded(side)
    torch.testing.assert_close(mean_pool(hidden, mask), torch.stack([item.mean(0) for item in alone]))
    assert torch.equal(max_pool(hidden, mask), torch.stack([item.amax(0) for item in alone]))
    assert torch.equal(last_token_pool(hidden, mask), torch.stack([item[-1] for item in alone]))


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_head_equals_sentence_transformers(pooling: str) -> None:
    hidden, mask, _ = padded("right")
    head = EmbeddingHead(8, 5, pooling=pooling)
    dense = Dense(8, 5, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight = head.dense.weight
    features = {"token_embeddings": hidden, "attention_mask": mask}
    for module in (Pooling(8, pooling_mode=pooling), dense, Normalize()):
        features = module(features)
    vectors = head(hidden, mask)
    torch.testing.assert_close(vectors, features["sentence_embedding"])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(LENGTHS)))


def test_learned_pooling_equals_sentence_transformers_and_starts_as_the_mean() -> None:
    hidden, mask, alone = padded("right")
    head = EmbeddingHead(8, 5, pooling="learned")
    mean = EmbeddingHead(8, 5, pooling="mean")
    mean.dense.weight = torch.nn.Parameter(head.dense.weight[:5])
    torch.testing.assert_close(head(hidden, mask), mean(hidden, mask))
    torch.nn.init.normal_(head.dense.weight)
    dense = Dense(8, 10, bias=False, activation_function=torch.nn.GLU(), module_input_name="token_embeddings")
    dense.linear.weight = head.dense.weight
    features = {"token_embeddings": hidden, "attention_mask": mask}
    for module in (dense, Pooling(5, pooling_mode="mean"), Normalize()):
        features = module(features)
    vectors = head(hidden, mask)
    torch.testing.assert_close(vectors, features["sentence_embedding"])
    values, queries = head.dense.weight.split(5)
    by_hand = torch.stack([((own @ queries.T).sigmoid() * (own @ values.T)).sum(0) for own in alone])
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(by_hand, dim=-1))


def test_starts_orthogonal() -> None:
    weight = EmbeddingHead(16, 4, pooling="mean").dense.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))


@pytest.mark.parametrize("pooling", ["mean", "learned"])
def test_members_are_heads_of_their_own_slices(pooling: Literal["mean", "learned"]) -> None:
    hidden, mask, _ = padded("right")
    head = EmbeddingHead(8, 6, pooling=pooling, members=2)
    torch.testing.assert_close(head.dense.weight[:6] @ head.dense.weight[:6].T, torch.eye(6))
    with torch.no_grad():
        head.dense.weight += torch.randn_like(head.dense.weight)  # where a member may not look, too
    alone = [EmbeddingHead(4, 3, pooling=pooling) for _ in range(2)]
    for at, member in enumerate(alone):
        rows = [copy[3 * at : 3 * at + 3] for copy in head.dense.weight.split(6)]
        member.dense.weight = torch.nn.Parameter(torch.cat(rows)[:, 4 * at : 4 * at + 4])
    parts = zip(alone, hidden.split(4, dim=-1), strict=True)
    expected = [member(part, mask) for member, part in parts]
    found = torch.nn.functional.normalize(head(hidden, mask).unflatten(-1, (2, 3)), dim=-1)
    torch.testing.assert_close(found, torch.stack(expected, 1))


def test_a_hidden_state_that_has_no_such_slices_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 numbers has no 3 equal slices"):
        EmbeddingHead(8, 6, pooling="mean", members=3)


@pytest.mark.parametrize("pooling", ["mean", "learned"])
def test_a_model_without_layers_computes_each_token_once(pooling: Literal["mean", "learned"]) -> None:
    """The same vectors and gradients as a state for each place gives."""
    shape = ShapeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_layers=0, num_heads=2, num_kv_heads=2
    )
    lm = new_model(llama_config(shape), dtype="fp32", seed=1)
    head = EmbeddingHead(16, 8, pooling=pooling)
    torch.nn.init.normal_(head.dense.weight)
    ids_BT = torch.tensor([[3, 4, 3, 9, 0], [9, 9, 0, 0, 0], [7, 3, 4, 11, 12]])
    mask_BT = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = head(hidden_states(lm.model, ids_BT, mask_BT), mask_BT)
    found = EmbeddingModel(lm, head)(ids_BT, mask_BT)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    table = lm.model.embed_tokens.weight
    grads = [torch.autograd.grad((each * weights).sum(), table)[0] for each in (expected, found)]
    torch.testing.assert_close(*grads)
