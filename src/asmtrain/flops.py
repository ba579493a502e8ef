"""What a training step must compute, and what GPUs can: the two sides of MFU.

In: a Llama whose `requires_grad` flags say what is trained. Out: its floating-point operations a token and a
pair of tokens. Invariant: only what the gradients need is counted, so work that a run does twice to save
memory (recomputed activations, chunks of the head, the scores again in a flash kernel's backward pass)
lowers the MFU. A frozen linear of N weights costs 4N a token, forward and the gradient of its input; a
trained one 6N. Counting both as 6N, as for full training, would call a LoRA step half as fast again as it is.

Adapters are taken to stand at all projections of attention: without one at the first layer's keys, say, their
gradient is not computed. Not counted: norms, activations, rotary embeddings, the loss, the optimizer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

_INTO_FIRST = re.compile(r"\blayers\.0\.self_attn\.[qkv]_proj\b")
_NOT_RUN = "original_module"
"""PEFT's frozen copy of a module that is trained in full."""


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of forward and backward pass."""

    per_token: int
    """Of the linear layers."""
    per_pair: int
    """Of attention, for each pair of a token and one that it sees."""

    def of_documents(self, lengths: Iterable[int]) -> int:
        """Of documents of these lengths, each attended to causally by itself: half of its square in pairs."""
        tokens = pairs = 0
        for length in lengths:
            tokens += length
            pairs += length * length
        return self.per_token * tokens + self.per_pair * pairs // 2


def training_flops(model: Any, *, headless: bool) -> TrainingFlops:
    """Count a Llama's, with or without an adapter, on any device and partitioned or not.

    `headless` leaves the output head out, which a contrastive loss does not run.
    """
    config = model.config
    # Embeddings that are not trained need no gradient, so the first projections give none to their input.
    trained_input = any(p.requires_grad for n, p in model.named_parameters() if "embed_tokens" in n)
    per_token = 0
    for name, module in model.named_modules():
        is_run = isinstance(module, nn.Linear) and _NOT_RUN not in name
        if is_run and not (headless and "lm_head" in name):
            wanted = trained_input or not _INTO_FIRST.search(name) or "lora_B" in name
            passes = 1 + wanted + module.weight.requires_grad
            per_token += 2 * passes * module.in_features * module.out_features
    # Scores and their product with the values, 2 x 2 x width each; the backward pass takes twice as many.
    width = config.num_attention_heads * config.head_dim
    return TrainingFlops(per_token, 3 * 4 * width * config.num_hidden_layers)


_PEAK_TFLOPS = (
    # The first that stands in the device's name counts. bf16, dense, from NVIDIA's and AMD's data sheets, of
    # which NVIDIA's later ones tell the rate with sparsity, twice the dense one.
    ("B200", 2250.0),  # NVIDIA DGX B200 data sheet: 36 sparse PF for 8 GPUs
    ("GH200", 989.4),  # NVIDIA GH200 data sheet: 1,979 sparse, as the H100 SXM
    ("H200 NVL", 835.5),  # NVIDIA H200 data sheet: 1,671 sparse
    ("H200", 989.4),  # NVIDIA H200 data sheet, SXM: 1,979 sparse
    ("H100 PCIe", 756.5),  # NVIDIA H100 data sheet: 1,513 sparse
    ("H100 NVL", 835.5),  # NVIDIA H100 NVL data sheet: 1,671 sparse a GPU
    ("H100", 989.4),  # NVIDIA H100 data sheet, SXM5: 1,979 sparse
    ("A100", 312.0),  # NVIDIA A100 data sheet
    ("L40S", 362.0),  # NVIDIA L40S data sheet: 733 sparse, 362.05 dense
    ("A40", 149.7),  # NVIDIA A40 data sheet
    ("MI300X", 1307.4),  # AMD Instinct MI300X data sheet
    ("MI250X", 383.0),  # AMD Instinct MI250X data sheet, both dies
)


def peak_flops(device_name: str) -> float | None:
    """Operations a second of a GPU in dense bf16, by the name its driver gives; None where unknown."""
    for name, tflops in _PEAK_TFLOPS:
        if name in device_name:
            return tflops * 1e12
    return None
