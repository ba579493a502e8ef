"""Finished runs for tests of what comes after training: stage folders as the trainer writes them, untrained.

The weights are random, adapters included, so that a merge or a head that was forgotten shows at once.
"""

from pathlib import Path
from typing import Any

import torch

from asmtrain import checkpoint
from asmtrain.checkpoint import StageResult, atomic_folder, result_files, write_result
from asmtrain.config import EmbeddingConfig, Full, Lora, ShapeConfig
from asmtrain.embedding import new_head
from asmtrain.model import DTYPES, attach_lora, llama_config, load_model, new_model, result_names

SHAPE = ShapeConfig(
    vocab_size=1024, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
LORA = Lora(kind="lora", rank=4, alpha=8, unfreeze=("lm_head",))


def make_run(
    run: Path, tokenizer: Any, *, dtype: str = "fp32", scale: float = 0.05, **embedding: Any
) -> Path:
    """A run of three stages: full, LoRA with its head, contrastive LoRA; `scale` is the adapters' size."""
    tokenizer.save_pretrained(run / "tokenizer")
    (run / "config.yaml").write_text(f"run: {run}\nseed: 0\n")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    base = new_model(llama_config(SHAPE, **ids), dtype=dtype, seed=0)
    _write(run, 0, "pretrain", base, trainable=Full(kind="full"), dtype=dtype, base="base")
    home = checkpoint.stage_folder(run, 0, "pretrain")
    settings = EmbeddingConfig.model_validate({"dim": 16, "max_tokens": 48, **embedding})
    for index, (name, form) in enumerate((("lora", None), ("embed", settings)), 1):
        model = attach_lora(load_model(str(home), dtype=dtype), LORA, base=str(home))
        _randomise(model, seed=index, scale=scale)
        options = {
            "trainable": LORA,
            "dtype": dtype,
            "base": str(home.relative_to(run)),
            "embedding": form,
        }
        _write(run, index, name, model, **options)
    return run


def _randomise(model: Any, *, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (noise * scale).to(parameter.dtype)
        elif "modules_to_save" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = (parameter.data.float() + noise * 0.01).to(parameter.dtype)


def _write(
    run: Path,
    index: int,
    name: str,
    model: Any,
    *,
    trainable: Full | Lora,
    dtype: str,
    base: str,
    embedding: EmbeddingConfig | None = None,
) -> None:
    result = StageResult(
        name=name,
        index=index,
        step=1,
        objective="contrastive" if embedding else "causal_lm",
        trainable=trainable,
        embedding=embedding,
        dtype=dtype,
        base=base,
        corpora={"corpus": "0" * 64},
    )
    head = {}
    if embedding:
        torch.manual_seed(index)
        module = new_head(SHAPE.hidden_size, embedding).to(DTYPES[dtype])
        torch.nn.init.normal_(module.dense.weight[embedding.dim :])  # learned queries start at zero
        head = {key: value.detach() for key, value in module.state_dict().items()}
    parameters = dict(model.named_parameters())
    tensors = {key: parameters[key].detach() for key in result_names(model)}
    with atomic_folder(checkpoint.stage_folder(run, index, name)) as draft:
        write_result(draft, result, model=model, files=result_files(model, tensors, head))
