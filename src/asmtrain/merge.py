"""A stage's weights with its adapter folded in, written without ever holding the model.

In: a stage result, whatever ZeRO stage trained it. Out: a Hugging Face folder's config and weights. Each base
tensor is read a block of rows at a time, in the stage's dtype; its update is computed and added in fp32,
and rounded once. LoRA adds s B A to a weight W (Hu et al. 2021), s being alpha/rank, or alpha/sqrt(rank) with
rsLoRA (Kalajdzievski 2023); DoRA then gives each row the length that was learnt (Liu et al. 2024, equation
5); modules and token rows trained in full take the base's place. Invariant: names and shapes are
those of the architecture, and of an adapter for it. Cost: base and adapter read once, the output written
once and read once.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from asmtrain.checkpoint import StageResult, base_path, read_result
from asmtrain.config import Dtype, EmbeddingConfig, Lora
from asmtrain.errors import ExportError
from asmtrain.model import ADAPTER_FILE, DTYPES, NEW_TOKENS, attach_lora, new_rows, set_attention
from asmtrain.weights import (
    Shapes,
    TensorFiles,
    blocks,
    copy_generation_config,
    model_files,
    model_folder,
    refuse_unsound,
    write_shards,
)


@dataclass
class Update:
    """What rounding left of the low-rank updates."""

    wanted: float = 0.0
    kept: float = 0.0
    moved: int = 0
    total: int = 0

    def add(self, delta: torch.Tensor, change: torch.Tensor) -> None:
        """Count a block: the update that was learnt, and the change that the stored weights show."""
        self.wanted += float((delta * delta).sum())
        self.kept += float((delta * change).sum())
        self.moved += int((change != 0).sum())
        self.total += delta.numel()

    def figures(self) -> dict[str, float]:
        """Share of the update along itself that was kept, and share of the weights that moved."""
        kept = self.kept / self.wanted if self.wanted else 1.0
        return {"update_kept": kept, "weights_moved": self.moved / max(self.total, 1)}


class MergedRows:
    """Rows of the merged weights, by the names that the language model gives them."""

    def __init__(self, stage: Path, result: StageResult, lm: PreTrainedModel, *, dtype: torch.dtype) -> None:
        self.dtype, self.base_dtype = dtype, DTYPES[result.dtype]
        self.update = Update()
        self.shapes: Shapes = _shapes(lm)
        lora = result.trainable if isinstance(result.trainable, Lora) else None
        self.base = model_files(str(stage) if lora is None else base_path(stage, result))
        _refuse_misfit(self.base, self.shapes, "weights")
        self.adapter = TensorFiles([])
        self.first_token = 0
        if lora is not None:
            self.first_token = min((rows.start for rows in new_rows(lm.config, lora).values()), default=0)
            self.scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
            self.adapter = open_adapter(stage, lora, lm)

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows in the output's dtype."""
        module = f"base_model.model.{name.removesuffix('.weight')}"
        trained = f"base_model.model.{name}"
        if trained in self.adapter.shapes:
            return self.adapter.rows(trained, start, stop).to(self.dtype)
        base = self.base.rows(name, start, stop).to(self.base_dtype)
        if f"{module}.lora_A.weight" in self.adapter.shapes:
            return self._adapted(module, base.float(), start, stop)
        tokens = f"{module}.token_adapter.trainable_tokens_delta"
        if tokens in self.adapter.shapes:
            return self._with_tokens(tokens, base, start, stop).to(self.dtype)
        return base.to(self.dtype)

    def _adapted(self, module: str, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        low, high = (
            self.adapter.whole(f"{module}.lora_A.weight").float(),
            self.adapter.rows(f"{module}.lora_B.weight", start, stop).float(),
        )
        delta = (high @ low).mul_(self.scale)
        lengths = f"{module}.lora_magnitude_vector"
        if lengths in self.adapter.shapes:
            direction = base + delta
            length = self.adapter.rows(lengths, start, stop).float() / direction.norm(dim=1)
            delta = direction.mul_(length[:, None]).sub_(base)
        merged = (base + delta).to(self.dtype)
        self.update.add(delta, merged.float() - base)
        return merged

    def _with_tokens(self, name: str, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        first, num_rows = self.first_token, self.adapter.shapes[name][0]
        low, high = max(start, first), min(stop, first + num_rows)
        if low >= high:
            return base
        rows = self.adapter.rows(name, low - first, high - first)
        return torch.cat([base[: low - start], rows.to(base.dtype), base[high - start :]])


def write_merged(
    stage: Path, folder: Path, *, dtype: Dtype | None = None, shard_bytes: int, headless: bool = False
) -> dict[str, float]:
    """Write config and weights of a stage, its adapter folded in; returns what rounding left of the update.

    `dtype` is the stage's own if not given. `headless` leaves out the output head: what a backbone is.

    Raises:
        ExportError: a tensor is empty, partial or not finite, or was not stored as computed.
        ModelError: the base is gone or damaged.
    """
    result = read_result(stage)
    source = model_folder(base_path(stage, result) if isinstance(result.trainable, Lora) else str(stage))
    lm = meta_model(source)
    rows = MergedRows(stage, result, lm, dtype=DTYPES[dtype or result.dtype])
    shapes, prefix = rows.shapes, ""
    if headless:
        prefix = f"{lm.base_model_prefix}."
        shapes = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
    write_shards(
        folder,
        shapes,
        lambda name, start, stop: rows(prefix + name, start, stop),
        dtype=rows.dtype,
        shard_bytes=shard_bytes,
    )
    _write_config(folder, source, lm, embedding=result.embedding, dtype=rows.dtype, headless=headless)
    return rows.update.figures()


def _write_config(
    folder: Path,
    source: Path,
    lm: PreTrainedModel,
    *,
    embedding: EmbeddingConfig | None,
    dtype: torch.dtype,
    headless: bool,
) -> None:
    config = AutoConfig.from_pretrained(source)
    set_attention(config, embedding)
    if hasattr(config, NEW_TOKENS):
        delattr(config, NEW_TOKENS)  # a later run does not have to train them again
    config.architectures = [type(lm.base_model if headless else lm).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    if not headless and not copy_generation_config(source, folder):
        lm.generation_config.save_pretrained(folder)


def meta_model(folder: Path) -> PreTrainedModel:
    """The language model of a folder without any memory behind it."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def open_adapter(stage: Path, lora: Lora, lm: PreTrainedModel) -> TensorFiles:
    """The adapter of a stage, which has to fit the language model; `lm` is wrapped by it.

    Raises:
        ExportError: a tensor is missing, empty or partial.
    """
    adapter = TensorFiles([stage / ADAPTER_FILE])
    with torch.device("meta"):
        wrapped = attach_lora(lm, lora, base="")
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    _refuse_misfit(adapter, {name: tuple(tensor.shape) for name, tensor in expected.items()}, "adapter")
    if odd := sorted(adapter.shapes.keys() - expected.keys()):
        raise ExportError(
            f"adapter: tensor {odd[0]} is none of its config's", remedy="export a stage that is whole"
        )
    return adapter


def check_adapter(stage: Path) -> None:
    """Raise ExportError for an adapter that is not whole, not finite, or not one for its base."""
    result = read_result(stage)
    assert isinstance(result.trainable, Lora)
    adapter = open_adapter(stage, result.trainable, meta_model(model_folder(base_path(stage, result))))
    for name, shape in adapter.shapes.items():
        for start, stop in blocks(shape):
            refuse_unsound(name, adapter.rows(name, start, stop), (stop - start, *shape[1:]))


def _shapes(lm: PreTrainedModel) -> Shapes:
    """Each tensor once: a tied head is its embedding."""
    state = lm.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: tuple(state[name].shape) for name in reversed(first.values())}


def _refuse_misfit(found: TensorFiles, expected: Shapes, what: str) -> None:
    for name, shape in expected.items():
        if found.shapes.get(name) != shape:
            raise ExportError(
                f"{what}: tensor {name} is {'empty or partial' if name in found.shapes else 'missing'}:"
                f" its shape is {found.shapes.get(name)}, not {shape}",
                remedy="export a stage or checkpoint that is whole, with the base it was trained on",
            )
