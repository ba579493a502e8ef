"""What a run will be, before it is one: parameters, memory, tokens and steps, for `--dry-run`.

In: a config. Out: text. Invariant: neither weights, corpus, network nor GPU is needed; parameters are counted
on the very modules that training builds, without memory behind them. Memory is an estimate: DeepSpeed's
buffers and fragmentation come on top.
"""

from typing import Any

import yaml

from asmtrain.config import StageConfig, TrainConfig
from asmtrain.model import ParameterCount, count_parameters, meta_model, planned_config

_GPUS = (1, 2, 4, 8, 16)
_GIB = 1 << 30


def describe(config: TrainConfig) -> str:
    """The resolved config, and each stage's numbers; raises ModelError where no architecture is at hand."""
    shape = planned_config(config.model)
    parts = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)]
    parts += [_describe_stage(config, stage, shape) for stage in config.stages]
    return "\n".join(parts)


def _describe_stage(config: TrainConfig, stage: StageConfig, shape: Any) -> str:
    contrastive = stage.objective == "contrastive"
    model = meta_model(shape, stage.trainable, dtype=config.model.dtype, headless=contrastive)
    count = count_parameters(model)
    if contrastive and stage.embedding is not None:
        head = shape.hidden_size * stage.embedding.dim
        count = ParameterCount(count.total + head, count.trainable + head)
    bf16 = config.model.dtype == "bf16"
    activations = activation_bytes(stage, shape, bf16=bf16, recompute=config.model.gradient_checkpointing)
    lines = [
        f"stage {stage.name}: {stage.objective}, {stage.trainable.kind}",
        f"  parameters     {count.total:,}, of which trainable {count.trainable:,}"
        f" ({count.trainable / count.total:.2%}), frozen {count.total - count.trainable:,}",
        f"  tokens a step  {tokens_per_step(stage):,} at most; {stage.steps:,} steps,"
        f" {tokens_per_step(stage) * stage.steps:,} tokens in all",
        f"  memory a GPU   GiB, about {activations / _GIB:.2f} of them activations of a micro-step",
        "    GPUs     " + "".join(f"{gpus:>9}" for gpus in _GPUS),
    ]
    for zero_stage in range(4):
        sizes = [
            model_state_bytes(count, zero_stage=zero_stage, world_size=gpus, bf16=bf16) + activations
            for gpus in _GPUS
        ]
        chosen = " <- this config" if zero_stage == config.engine.zero_stage else ""
        lines.append(f"    ZeRO {zero_stage}   " + "".join(f"{size / _GIB:9.2f}" for size in sizes) + chosen)
    return "\n".join(lines) + "\n"


def tokens_per_step(stage: StageConfig) -> int:
    """Tokens in an optimizer step over all ranks, if nothing were padding."""
    if stage.objective == "contrastive":
        assert stage.embedding is not None
        return stage.embedding.functions_per_step * 2 * stage.embedding.max_tokens
    return stage.rows_per_step * stage.context


def model_state_bytes(count: ParameterCount, *, zero_stage: int, world_size: int, bf16: bool) -> int:
    """Bytes a GPU needs for weights, gradients and AdamW (Rajbhandari et al. 2020, section 3)."""
    weights = count.total * (2 if bf16 else 4)
    gradients = count.trainable * 4
    # Two moments and fp32 weights of their own; stage 0 in fp32 updates the weights in place.
    optimizer = count.trainable * (8 if not bf16 and zero_stage == 0 else 12)
    return (
        weights // (world_size if zero_stage >= 3 else 1)
        + gradients // (world_size if zero_stage >= 2 else 1)
        + optimizer // (world_size if zero_stage >= 1 else 1)
    )


def activation_bytes(stage: StageConfig, shape: Any, *, bf16: bool, recompute: bool) -> int:
    """About what one micro-step keeps for its backward pass, logits included; `shape` is a Llama's config.

    A layer keeps some ten vectors of the hidden size and four of the feed-forward's a token (fused attention
    keeps no scores). With recomputation it keeps its input alone, while one layer at a time is whole.
    """
    contrastive = stage.objective == "contrastive"
    tokens = stage.micro_rows * stage.context
    if contrastive and stage.embedding is not None:
        tokens = stage.micro_rows * 2 * stage.embedding.max_tokens
    width = 2 if bf16 else 4
    layer = tokens * (10 * shape.hidden_size + 4 * shape.intermediate_size) * width
    layers = shape.num_hidden_layers * layer
    if recompute:
        layers = shape.num_hidden_layers * tokens * shape.hidden_size * width + layer
    # The logits, their fp32 copy and its gradient.
    logits = 0 if contrastive else tokens * shape.vocab_size * (width + 8)
    return int(layers + logits)
