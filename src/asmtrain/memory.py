"""How much memory a stage's step takes on one GPU, told from its shapes alone.

In: a config and a model without memory. Out: bytes of tensors at the step's peak. The module that training
builds runs one micro-batch forward and backward on the meta device, and every storage that lives is counted:
activations, their gradients, recomputation, chunks of the head as they are. What DeepSpeed holds beside it is
arithmetic over the numbers of weights, held against measurements by `benchmarks/train_memory.py`. Cost: a
second or two.

Not counted: the device's context, libraries' workspaces, NCCL's buffers, fragmentation.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asmtrain.attention import use_within_documents
from asmtrain.config import StageConfig, TrainConfig
from asmtrain.embedding import new_head
from asmtrain.engine import samples_per_step
from asmtrain.model import (
    DTYPES,
    EmbeddingModel,
    LanguageModel,
    ParameterCount,
    TokenLossModel,
    enable_recompute,
)

_MOST_GATHERED = 10**9
"""Parameters that DeepSpeed leaves gathered at ZeRO 3 (`stage3_max_live_parameters`)."""


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made while it is active and not freed yet, and their peak."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes = {p.untyped_storage()._cdata: 0 for p in (*known.parameters(), *known.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def activation_bytes(
    model: LanguageModel, config: TrainConfig, stage: StageConfig, *, keep_gradients: bool = False
) -> int:
    """The peak of one micro-step of `model`, which is on the meta device, beside its weights.

    Gradients come in while activations go; they are taken away at once, as ZeRO does, unless kept.
    A row is taken for one document. Contrastive steps that keep the activations of all micro-batches are
    taken for one micro-batch's.
    """
    if config.model.gradient_checkpointing:
        enable_recompute(model)
    model.train()
    run = _contrastive_step if stage.objective == "contrastive" else _token_step
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        for parameter in ([] if keep_gradients else trained)
    ]
    with _config.patch(  # type: ignore[attr-defined]
        meta_nonzero_assume_all_nonzero=True
    ):  # every place has a target
        peak = run(model, config, stage)
    for hook in hooks:
        hook.remove()
    return peak


def _token_step(model: LanguageModel, config: TrainConfig, stage: StageConfig) -> int:
    use_within_documents(model)
    # Ranks that split rows hold a span of each, and in attention as many heads less.
    shape = (stage.micro_rows, stage.context // config.engine.sequence_parallel)
    module = TokenLossModel(model)
    with _Live(module) as live:
        ids_BT = torch.zeros(shape, dtype=torch.long, device="meta")
        module(ids_BT, ids_BT, ids_BT, [shape[1]] * stage.micro_rows).sum().backward()
    return int(live.peak)


def _contrastive_step(model: LanguageModel, config: TrainConfig, stage: StageConfig) -> int:
    assert stage.embedding is not None
    embedding = stage.embedding
    with torch.device("meta"):
        head = new_head(model.config.hidden_size, embedding)
    use_within_documents(model)
    module = EmbeddingModel(model, head.to(DTYPES[config.model.dtype]))
    shape = (embedding.variants * stage.micro_rows, embedding.max_tokens)
    with _Live(module) as live:
        ids_BT = torch.zeros(shape, dtype=torch.long, device="meta")
        module(ids_BT, ids_BT).sum().backward()
    return int(live.peak)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of what DeepSpeed holds on one rank."""

    resident: int
    """Always: weights, fp32 copies, Adam's moments, gradients that are kept."""
    backward: int
    """Beside it in forward and backward pass."""
    step: int
    """Beside it in the optimizer's step."""

    def peak(self, activations: int) -> int:
        """The most at any time of a step."""
        return self.resident + max(self.step, self.backward + activations)


def step_bytes(
    count: ParameterCount,
    passes: Mapping[bool, int],
    config: TrainConfig,
    stage: StageConfig,
    *,
    zero_stage: int,
    world_size: int,
) -> int:
    """The peak of a step on one of `world_size` ranks; `passes`: `activation_bytes` by `keep_gradients`."""
    micro_steps = samples_per_step(stage) // world_size // stage.micro_rows
    adds_up = micro_steps > 1
    states = state_bytes(
        count,
        zero_stage=zero_stage,
        world_size=world_size,
        bf16=config.model.dtype == "bf16",
        adds_up=adds_up,
    )
    return states.peak(passes[zero_stage == 0 and not adds_up])


def state_bytes(
    count: ParameterCount, *, zero_stage: int, world_size: int, bf16: bool, adds_up: bool
) -> StateBytes:
    """What DeepSpeed 0.19 and torch's AdamW were measured to hold (after Rajbhandari et al. 2020, section 3).

    Every stage but 0 in fp32 keeps fp32 copies of what it trains, in fp32 as well. AdamW's root and quotient
    are two temporary tensors of the size of what it updates, which is flat from stage 1 on. `adds_up`: there
    are gradients of earlier micro-steps.
    """
    width, trained = (2 if bf16 else 4), count.trainable
    own = trained // world_size if zero_stage else trained
    weights = count.total * width // (world_size if zero_stage == 3 else 1)
    if zero_stage == 0:
        kept = weights + trained * (12 if bf16 else 8)
        return StateBytes(kept, trained * width * adds_up, trained * (width + 4))
    kept, bucket = weights + own * 12, trained * width
    if zero_stage == 3:
        gathered = min(count.total, _MOST_GATHERED) * width if world_size > 1 else 0
        return StateBytes(kept + own * 4 + bucket, gathered, own * 12)
    if zero_stage == 1 and bf16:  # fp32 gradients of all of the weights, as long as the run
        return StateBytes(kept + trained * 4, 0, own * 10)
    return StateBytes(kept, bucket + own * 4 * adds_up, own * (12 if bf16 else 16))
