"""What a run will be, before it is one: parameters, memory, tokens and steps, for `--dry-run`.

In: a config. Out: text. Invariant: neither weights, corpus, network nor GPU is needed, but that the length of
an epoch is told only where corpus and tokenizer are there; parameters are counted on the very modules that
training builds, without memory behind them. Memory is an estimate (`memory`), and tokens/s assume a model
FLOPs utilisation.
"""

from pathlib import Path
from typing import Any

import yaml

from asmtrain.cache import estimate_tokens
from asmtrain.config import StageConfig, TrainConfig
from asmtrain.flops import peak_flops, training_flops
from asmtrain.memory import activation_bytes, step_bytes
from asmtrain.mixture import mixture
from asmtrain.model import ParameterCount, count_parameters, meta_model, planned_config
from asmtrain.tokens import load_tokenizer
from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.shards import load_index

_GPUS = (1, 2, 4, 8, 16)
_GIB = 1 << 30
_GPU, _ASSUMED_MFU = "H100", 0.4
_PEAK_FLOPS = peak_flops(_GPU) or 0.0


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
        head = shape.hidden_size * stage.embedding.dim * (2 if stage.embedding.pooling == "learned" else 1)
        count = ParameterCount(count.total + head, count.trainable + head)
    flops = training_flops(model, headless=contrastive)
    passes = {keep: activation_bytes(model, config, stage, keep_gradients=keep) for keep in (False, True)}
    length = stage.embedding.max_tokens if contrastive and stage.embedding else stage.context
    lines = [
        f"stage {stage.name}: {stage.objective}, {stage.trainable.kind}",
        f"  parameters     {count.total:,}, of which trainable {count.trainable:,}"
        f" ({count.trainable / count.total:.2%}), frozen {count.total - count.trainable:,}",
        *_describe_mixture(config, stage),
        f"  tokens a step  {tokens_per_step(stage):,} at most; {stage.steps:,} steps,"
        f" {tokens_per_step(stage) * stage.steps:,} tokens in all",
        f"  steps an epoch {_epoch(config, stage)}",
        f"  speed          {flops.of_documents([length]) / length / 1e9:,.3g} GFLOP a token of documents of"
        f" {length:,}; at an assumed MFU of {_ASSUMED_MFU:.0%},"
        f" {_ASSUMED_MFU * _PEAK_FLOPS * length / flops.of_documents([length]):,.0f} tokens/s on an {_GPU}",
        f"  memory a GPU   GiB, {passes[False] / _GIB:.2f} of them for the passes of a micro-step",
        "    GPUs     " + "".join(f"{gpus:>9}" for gpus in _GPUS),
    ]
    for zero_stage in range(4):
        sizes = [
            step_bytes(count, passes, config, stage, zero_stage=zero_stage, world_size=gpus) for gpus in _GPUS
        ]
        chosen = " <- this config" if zero_stage == config.engine.zero_stage else ""
        lines.append(f"    ZeRO {zero_stage}   " + "".join(f"{size / _GIB:9.2f}" for size in sizes) + chosen)
    return "\n".join(lines) + "\n"


def _describe_mixture(config: TrainConfig, stage: StageConfig) -> list[str]:
    """Each part's share of the rows, where there are several."""
    parts = mixture(config, stage)
    total = sum(part.weight for part in parts)
    lines = [f"    {part.weight / total:7.2%}  {part.name} ({part.objective})" for part in parts]
    return ["  mixture        share of the rows", *lines] if len(parts) > 1 else []


def _epoch(config: TrainConfig, stage: StageConfig) -> str:
    """Steps until a part of the mixture starts over, where corpora and tokenizer are at hand."""
    folder = config.run / "tokenizer"
    path = folder if folder.exists() else Path(config.model.path or "")
    try:
        if stage.embedding is not None:
            least = min(_num_functions(part.corpus) / part.weight for part in stage.data)
            functions = int(least * sum(part.weight for part in stage.data))
            return f"{functions // stage.embedding.functions_per_step:,} at most"
        if not (path / "tokenizer.json").exists():
            return "known when the run has its tokenizer"
        tokenizer, parts = load_tokenizer(path), mixture(config, stage)
        total = sum(part.weight for part in parts)
        tokens = [estimate_tokens(part.data, "train", tokenizer) * total / part.weight for part in parts]
        return f"about {min(tokens) / tokens_per_step(stage):,.1f}, from a sample of functions"
    except (ShardError, EmptyCorpus):
        return "known when the corpus is there"


def _num_functions(corpus: Path) -> int:
    return sum(shard.num_functions for shard in load_index(corpus).shards if shard.split == "train")


def tokens_per_step(stage: StageConfig) -> int:
    """Tokens in an optimizer step over all ranks, if nothing were padding."""
    if stage.objective == "contrastive":
        assert stage.embedding is not None
        embedding = stage.embedding
        return embedding.functions_per_step * embedding.variants * embedding.max_tokens
    return stage.rows_per_step * stage.context
