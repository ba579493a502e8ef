"""Attention within documents: what each document would give alone, and nothing across."""

import pytest
import torch
from transformers import LlamaForCausalLM

from asmtrain.attention import document_lengths, use_within_documents
from asmtrain.config import Lora, ShapeConfig
from asmtrain.model import attach_lora, llama_config, new_model

SHAPE = ShapeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
IDS_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, -1, -1, -1]])


@pytest.fixture
def model() -> LlamaForCausalLM:
    return new_model(llama_config(SHAPE), dtype="fp32", seed=1)


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens_BT, and positions_BT that count from 0 in each document."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(0, 64, IDS_BT.shape, generator=generator)
    lengths = document_lengths(IDS_BT)
    positions = torch.cat([torch.arange(length) for length in lengths]).view(IDS_BT.shape)
    return tokens_BT, positions


def test_runs_of_equal_ids_are_documents_and_padding_is_one() -> None:
    assert document_lengths(IDS_BT) == [3, 2, 3, 1, 4, 3]


def test_packed_rows_give_what_each_document_gives_alone(model: LlamaForCausalLM) -> None:
    tokens_BT, positions_BT = rows()
    alone = [
        model(input_ids=part.unsqueeze(0), use_cache=False).logits[0]
        for part in tokens_BT.flatten().split(document_lengths(IDS_BT))
    ]
    use_within_documents(model)
    packed = model(
        input_ids=tokens_BT,
        position_ids=positions_BT,
        use_cache=False,
        document_lengths=document_lengths(IDS_BT),
    ).logits
    assert torch.allclose(packed.flatten(0, 1), torch.cat(alone), atol=1e-6)


def test_gradients_equal_those_of_masked_attention(model: LlamaForCausalLM) -> None:
    tokens_BT, positions_BT = rows()
    adapted = attach_lora(model, Lora(kind="lora", rank=4, alpha=8), base="base")
    gradients = []
    for within in (False, True):
        if within:
            use_within_documents(adapted)
        adapted.zero_grad()
        lengths = {"document_lengths": document_lengths(IDS_BT)} if within else {}
        logits = adapted(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False, **lengths).logits
        logits[IDS_BT >= 0].square().sum().backward()
        gradients.append([p.grad.clone() for p in adapted.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(*gradients, strict=True))


def test_no_token_sees_another_document(model: LlamaForCausalLM) -> None:
    use_within_documents(model)
    tokens_BT, positions_BT = rows()
    changed_BT = tokens_BT.clone()
    changed_BT[0, 0] = (changed_BT[0, 0] + 1) % 64
    one, other = (
        model(
            input_ids=ids,
            position_ids=positions_BT,
            use_cache=False,
            document_lengths=document_lengths(IDS_BT),
        ).logits
        for ids in (tokens_BT, changed_BT)
    )
    same = torch.isclose(one, other).all(dim=-1)
    assert not same[0, :3].any()
    assert same[0, 3:].all()
    assert same[1].all()
