"""Pooling ignores padding on either side and equals sentence-transformers' own modules."""

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from asmtrain.embedding import EmbeddingHead, last_token_pool, max_pool, mean_pool

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
