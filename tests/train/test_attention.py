"""Attention within documents: what each document would give alone, and nothing across."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from asmtrain.attention import (
    choose_attention,
    document_ends,
    document_lengths,
    has_varlen,
    use_within_documents,
)
from asmtrain.config import Lora, ShapeConfig
from asmtrain.model import TokenLossModel, attach_lora, compile_blocks, llama_config, new_model

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


def test_flash_for_documents_is_not_chosen_without_cuda(model: LlamaForCausalLM) -> None:
    choose_attention(model, torch.device("cpu"), torch.bfloat16)
    assert model.config._attn_implementation == "documents"
    assert has_varlen() == torch.cuda.is_available()


def test_ends_are_counted_through_the_rows() -> None:
    ends = document_ends(document_lengths(IDS_BT), torch.device("cpu"))
    assert ends.tolist() == [0, 3, 5, 8, 9, 13, 16]
    assert ends.dtype == torch.int32


@pytest.mark.gpu
@pytest.mark.skipif(not has_varlen(), reason="needs a CUDA device and torch 2.11")
def test_flash_for_documents_gives_their_losses_and_gradients(model: LlamaForCausalLM) -> None:
    tokens_BT, positions_BT = (side.cuda() for side in rows())
    given = []
    for name in ("documents", "documents_varlen"):
        copied = copy.deepcopy(model).to("cuda", torch.bfloat16)
        use_within_documents(copied, name)
        loss = TokenLossModel(copied)(tokens_BT, positions_BT, tokens_BT, document_lengths(IDS_BT)).mean()
        loss.backward()
        given.append((loss, copied.model.layers[0].self_attn.q_proj.weight.grad))
    for one, other in zip(*given, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # as dynamo looks at a tensor
def test_compiled_layers_give_the_same_losses_and_gradients(model: LlamaForCausalLM) -> None:
    """By the backend that needs no compiler: what is traced is what runs."""
    tokens_BT, positions_BT = rows()
    use_within_documents(model)
    given = []
    for compiled in (False, True):
        if compiled:
            compile_blocks(model, backend="aot_eager")
        model.zero_grad()
        module = TokenLossModel(model)
        loss = module(tokens_BT, positions_BT, tokens_BT, document_lengths(IDS_BT)).mean()
        loss.backward()
        given.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for one, other in zip(*given, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
