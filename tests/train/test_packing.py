"""Packing against a naive version; and that packed rows train a model exactly as single documents do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from asmtrain.losses import IGNORE, num_predicted, token_loss_sum
from asmtrain.model import enable_recompute
from asmtrain.packing import pack


def naive_rows(lengths: list[int], context: int) -> list[list[int]]:
    """Sizes in each row by best fit decreasing, looking at every row."""
    pieces = [
        min(context, total - start)
        for total in lengths
        for start in range(0, total, context)
        if total - start >= 2
    ]
    rows: list[list[int]] = []
    for size in sorted(pieces, reverse=True):
        fitting = [row for row in rows if context - sum(row) >= size]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return rows


@settings(max_examples=300, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), max_size=60), context=st.integers(2, 32))
def test_rows_are_as_full_as_those_of_a_naive_version(lengths: list[int], context: int) -> None:
    rows = pack(np.array(lengths, dtype=np.int64), context)
    fills = sorted(sum(length for _, _, length in rows.pieces(row)) for row in range(len(rows)))
    assert fills == sorted(map(sum, naive_rows(lengths, context)))


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(2, 200), min_size=1, max_size=80), context=st.integers(8, 64))
def test_every_token_is_in_one_row(lengths: list[int], context: int) -> None:
    rows = pack(np.array(lengths, dtype=np.int64), context)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for row in range(len(rows)):
        pieces = rows.pieces(row)
        assert 0 < sum(length for _, _, length in pieces) <= context
        for document, start, length in pieces:
            seen[document][start : start + length] += 1
    for length, counts in zip(lengths, seen, strict=True):
        left_out = (
            1 if length % context == 1 and length > 1 else 0
        )  # a last piece of one token predicts nothing
        assert counts[: length - left_out].tolist() == [1] * (length - left_out)
        assert counts[length - left_out :].tolist() == [0] * left_out
    assert 0 < rows.fill <= 1


def test_rows_are_nearly_full_on_lengths_as_functions_have_them() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 5000).astype(np.int64) + 2
    assert pack(lengths, 1024).fill > 0.995
    assert pack(np.minimum(lengths, 1024), 1024).fill > 0.995, "as many examples left whole"


def test_equal_lengths_are_packed_in_their_order_and_always_alike() -> None:
    lengths = np.random.default_rng(1).integers(2, 40, 500)
    first, second = pack(lengths, 64), pack(lengths, 64)
    assert all(first.pieces(row) == second.pieces(row) for row in range(len(first)))
    pairs = pack(np.full(6, 8, dtype=np.int64), 16)
    assert [pairs.pieces(row) for row in range(3)] == [[(i, 0, 8), (i + 1, 0, 8)] for i in (0, 2, 4)]


def test_no_documents_give_no_rows() -> None:
    assert len(pack(np.array([], dtype=np.int64), 16)) == 0


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=request.param,
    )
    return LlamaForCausalLM(config).double()


# Lengths 1 and 2 stand between others; the second row is one document that fills it: the batch is mixed.
ROWS = [[5, 1, 7, 2, 3], [20], [9, 8]]
CONTEXT = 20


def packed_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Ids, positions, labels of the rows, and the documents alone."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (len(ROWS), CONTEXT), generator=generator)
    positions, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    documents = []
    for row, lengths in enumerate(ROWS):
        at = 0
        for length in lengths:
            documents.append(ids[row, at : at + length][None])
            positions[row, at : at + length] = torch.arange(length)
            labels[row, at + 1 : at + length] = ids[row, at + 1 : at + length]
            at += length
        positions[row, at:] = torch.arange(CONTEXT - at)
    return ids, positions, labels, documents


def gradients(model: LlamaForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_packed_loss_and_gradients_equal_unpacked_ones(model: LlamaForCausalLM) -> None:
    ids, positions, labels, documents = packed_batch()
    logits = model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits
    packed = token_loss_sum(logits, labels)
    alone = torch.stack(
        [
            token_loss_sum(model(input_ids=item, use_cache=False).logits, item)
            for item in documents
            if item.numel() > 1
        ]
    ).sum()
    assert num_predicted(labels) == sum(item.numel() - 1 for item in documents)
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(model, packed), gradients(model, alone), rtol=1e-5, atol=1e-6)


def test_a_document_does_not_see_the_others_in_its_row(model: LlamaForCausalLM) -> None:
    ids, positions, _, _ = packed_batch()
    other = ids.clone()
    other[0, :6] = (ids[0, :6] + 1) % 50  # the first two documents of the first row
    options = {"position_ids": positions, "attention_mask": None, "use_cache": False}
    with torch.no_grad():
        before, after = (model(input_ids=item, **options).logits for item in (ids, other))
    assert torch.equal(before[0, 6:], after[0, 6:])
    assert not torch.allclose(before[0, :6], after[0, :6])


def test_the_default_call_would_mix_documents(model: LlamaForCausalLM) -> None:
    """Why the trainer passes attention_mask=None: a mask of ones switches isolation off without a word."""
    ids, positions, labels, _ = packed_batch()
    with torch.no_grad():
        isolated = model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits
        masked = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    assert abs(token_loss_sum(isolated, labels) - token_loss_sum(masked, labels)) > 1e-3


def test_isolation_holds_with_gradient_checkpointing(model: LlamaForCausalLM) -> None:
    ids, positions, labels, _ = packed_batch()
    options = {"input_ids": ids, "position_ids": positions, "attention_mask": None, "use_cache": False}
    plain = gradients(model, token_loss_sum(model(**options).logits, labels))
    enable_recompute(model)
    model.train()
    torch.testing.assert_close(gradients(model, token_loss_sum(model(**options).logits, labels)), plain)
