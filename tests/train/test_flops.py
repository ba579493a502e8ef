"""Training FLOPs against torch's own counter, and against the figures known for Code Llama 7B."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asmtrain.config import Full, Lora, ShapeConfig
from asmtrain.flops import peak_flops, training_flops
from asmtrain.model import backbone, llama_config, meta_model

TINY = ShapeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
CODE_LLAMA = ShapeConfig(
    vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32
)
KINDS = {
    "full": Full(kind="full"),
    "lora": Lora(kind="lora", rank=4, alpha=8),
    "lora and head": Lora(kind="lora", rank=4, alpha=8, unfreeze=("lm_head",)),
    "lora and embeddings": Lora(kind="lora", rank=4, alpha=8, unfreeze=("lm_head", "embed_tokens")),
    "lora on some": Lora(kind="lora", rank=4, alpha=8, targets=("q_proj", "k_proj", "v_proj", "down_proj")),
}


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_counts_the_same(kind: str, headless: bool) -> None:
    """Eager attention, whose every multiplication the counter sees; it takes the masked half as well."""
    rows, length = 2, 24
    model = meta_model(llama_config(TINY), KINDS[kind], dtype="fp32", headless=headless)
    model = model.to_empty(device="cpu")  # whatever numbers stand in it
    (model if kind == "full" else model.get_base_model()).set_attn_implementation("eager")
    ids_BT = torch.zeros(rows, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        module = backbone(model) if headless else model
        module(input_ids=ids_BT, use_cache=False)[0].sum().backward()
    flops = training_flops(model, headless=headless)
    assert counter.get_total_flops() == rows * (flops.per_token * length + flops.per_pair * length**2)
    assert flops.of_documents([length] * rows) == rows * (
        flops.per_token * length + flops.per_pair * length**2 // 2
    )


def test_code_llama_costs_what_is_known_of_it() -> None:
    """29.9 and 39.6 GF a token at r16; those figures let the first layer's input have a gradient (0.1 GF)."""
    lora = Lora(kind="lora", rank=16, alpha=32)
    model = meta_model(llama_config(CODE_LLAMA), lora, dtype="bf16", headless=False)
    flops = training_flops(model, headless=False)
    first = 2 * 3 * 4096 * (4096 + 16)
    for context, known in ((4096, 29.9e9), (16384, 39.6e9)):
        assert flops.of_documents([context]) / context + first == pytest.approx(known, rel=2e-3)
    # Functions of 300 tokens see little: the same row costs a tenth less.
    assert flops.of_documents([300] * 13) / 3900 < 0.91 * flops.of_documents([4096]) / 4096


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peaks_go_by_the_name_of_the_device(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_flops("Some other GPU") is None
