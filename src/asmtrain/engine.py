"""Our config to DeepSpeed's, and the one object through which a stage's model is stepped.

In: a config, a stage, a module. Out: an `Engine`: forward, backward, step, and its state as whole tensors
(weights) or slices of this rank (optimizer). Invariants: the gradient of a step is that of the loss whose
parts were given to `backward` on all ranks and micro-steps, at every ZeRO stage; the optimizer state goes to
files as plain tensors, so that nothing is unpickled when a run goes on.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asmtrain import slices
from asmtrain.config import OptimizerConfig, StageConfig, TrainConfig
from asmtrain.dist import World
from asmtrain.errors import ConfigError, LaunchError
from asmtrain.slices import Slice
from asmtrain.watch import beat

_NEVER = 2**31
# They follow from rows_per_step, micro_rows and the ranks; another value would weigh the tokens wrongly.
_DERIVED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def samples_per_step(stage: StageConfig) -> int:
    """Packed rows, or functions, in one optimizer step over all ranks."""
    if stage.objective == "contrastive":
        assert stage.embedding is not None
        return stage.embedding.functions_per_step
    return stage.rows_per_step


def ranks_per_row(config: TrainConfig, stage: StageConfig) -> int:
    """Ranks that split each row of a stage among them."""
    return 1 if stage.objective == "contrastive" else config.engine.sequence_parallel


def accumulation(config: TrainConfig, stage: StageConfig, world_size: int) -> int:
    """Micro-steps in one optimizer step of a rank.

    Raises:
        LaunchError: the step's rows or functions cannot be shared out evenly over the ranks.
    """
    sharing, samples = ranks_per_row(config, stage), samples_per_step(stage)
    if world_size % sharing:
        raise LaunchError(
            f"engine.sequence_parallel is {sharing}, which does not divide {world_size} ranks",
            remedy=f"start a multiple of {sharing} ranks",
        )
    groups = world_size // sharing
    if samples % groups:
        key = "embedding.functions_per_step" if stage.objective == "contrastive" else "rows_per_step"
        who = f"{groups} ranks" if sharing == 1 else f"{groups} groups of {sharing} ranks"
        raise LaunchError(
            f"stage {stage.name!r}: {key} is {samples}, which {who} cannot share evenly",
            remedy=f"make it a multiple of {groups}, or start another number of ranks",
        )
    return -(-samples // groups // stage.micro_rows)


def deepspeed_config(config: TrainConfig, stage: StageConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dictionary of one stage; the config's `deepspeed` group is merged last.

    Raises:
        ConfigError: that group sets what follows from the stage's own keys.
        LaunchError: the step cannot be shared out over the ranks.
    """
    for key in _DERIVED:
        if key in config.deepspeed:
            raise ConfigError(
                f"deepspeed.{key} is set to {config.deepspeed[key]!r}, but follows from the stages",
                remedy="set rows_per_step and micro_rows of each stage instead",
            )
    bf16 = config.model.dtype == "bf16"
    zero: dict[str, Any] = {"stage": config.engine.zero_stage}
    if config.engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": stage.micro_rows,
        "gradient_accumulation_steps": accumulation(config, stage, world_size),
        "gradient_clipping": stage.optimizer.clip_norm,
        "optimizer": _optimizer(stage.optimizer),
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        # Progress is ours to print.
        "steps_per_print": _NEVER,
    }
    if bf16 and config.engine.zero_stage:
        # bf16 sums over micro-steps and ranks would lose the small gradients; stage 0 knows no other.
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
        derived["communication_data_type"] = "fp32"
    return _merged(derived, config.deepspeed)


def _optimizer(optimizer: OptimizerConfig) -> dict[str, Any]:
    return {
        "type": "AdamW",
        "params": {
            "lr": optimizer.lr,
            "betas": list(optimizer.betas),
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            # torch's own: DeepSpeed's would have to be compiled on the machine.
            "torch_adam": True,
        },
    }


def _merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in extra.items():
        inner = result.get(key)
        result[key] = (
            _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
        )
    return result


class Engine:
    """A module under DeepSpeed at some ZeRO stage."""

    def __init__(self, module: nn.Module, config: TrainConfig, stage: StageConfig, *, world: World) -> None:
        _quiet()
        import deepspeed

        # On CPU gloo serves; DeepSpeed's shared memory would be compiled, and a C++ compiler may be absent.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.module = module
        self.world = world
        self.accumulation = accumulation(config, stage, world.size)
        settings = deepspeed_config(config, stage, world.size)
        settings["zero_optimization"].setdefault("reduce_bucket_size", bucket_size(module))
        try:
            self._engine = deepspeed.initialize(
                model=module,
                model_parameters=_decay_groups(module, stage.optimizer.weight_decay),
                config=settings,
            )[0]
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"DeepSpeed refuses the configuration: {str(error).splitlines()[0]}",
                remedy="check `engine` and `deepspeed` in the config",
            ) from error
        self.zero_stage = int(self._engine.zero_optimization_stage())
        self._held = slices.held(self._engine.optimizer, dict(module.named_parameters()), rank=world.rank)
        # transformers loads models in evaluation mode, in which they do not recompute activations.
        self.train(True)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The module's forward pass."""
        beat()
        return self._engine(*inputs, **named)

    def backward(self, part: torch.Tensor) -> None:
        """Add the gradient of `part`, one summand of a loss summed over all ranks and micro-steps.

        DeepSpeed takes the mean over ranks and micro-steps; this turns it back into the sum.
        """
        beat()
        self._engine.backward(part * (self.world.size * self.accumulation))
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-step

    def step(self, lr: float) -> float:
        """After the last micro-step: clip, update at rate `lr`; returns the norm before clipping.

        A norm that is not finite leaves the weights as they are, which DeepSpeed sees to from stage 1 on.
        """
        assert self._engine.is_gradient_accumulation_boundary()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        norm = self._stage0_norm() if self.zero_stage == 0 else None
        if norm is not None and not norm.isfinite():
            return float(norm)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _stage0_norm(self) -> torch.Tensor:
        """DeepSpeed keeps no norm at stage 0; there every rank holds the whole gradient."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self._engine.train(mode)

    def close(self) -> None:
        """Let go of the module: another stage's engine may follow."""
        self._engine.destroy()

    def gather(self, module: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named parameters of a part of the module, whole, on the CPU; empty but on rank 0."""
        import deepspeed

        parameters = dict(module.named_parameters())
        gathered = {}
        for name in names:
            beat()
            parameter = parameters[name]
            partitioned = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter]) if partitioned else nullcontext():
                if self.world.is_main:
                    # A copy: the memory behind a gathered parameter is given back.
                    gathered[name] = parameter.detach().to("cpu", copy=True).contiguous()
        return gathered

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """This rank's share of fp32 weights and Adam's moments, as copies for a file; see `slices`."""
        held: Iterable[Slice] = self._held
        if self.zero_stage == 0:
            held = slices.shared_out(held, self.world.rank, self.world.size)
        return slices.to_tensors(held, self._engine.basic_optimizer.state)

    def load_optimizer_state(self, paths: Iterable[Path]) -> None:
        """Take back what `optimizer_state` gave on all ranks, whatever their number and ZeRO stage.

        `paths` are their files, each once; those after the last that is needed are not read.

        Raises:
            CheckpointError: a file cannot be read, or part of a parameter is in none.
        """
        slices.load(self._held, self._engine.basic_optimizer.state, paths)


def bucket_size(module: nn.Module) -> int:
    """Gradients that ZeRO reduces at a time: all, or DeepSpeed's 5e8, for which it keeps room."""
    return min(sum(p.numel() for p in module.parameters() if p.requires_grad), 500_000_000)


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _quiet() -> None:
    """Keep DeepSpeed's own log out of the console, but for errors."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls what torch 2.13 deprecates.
    deprecated = r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor`"
    warnings.filterwarnings("ignore", deprecated, FutureWarning)
