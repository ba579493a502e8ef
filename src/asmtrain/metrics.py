"""A run's figures: one console line a step, TensorBoard events, `metrics.jsonl` in full precision.

In: the figures of each step and each evaluation, on rank 0. Out: the three of them, and `evaluations.jsonl`.
Invariant: after a run was killed and went on, both files hold every step once, with the figures of the state
that was kept.
"""

import json
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from asmtrain.config import TrainConfig
from corpus_builder.shards import atomic_output

MEASURED = ("seconds", "data_s", "memory_gib", "mfu")
"""Figures of a step that differ from run to run of the same config."""
_SCALARS = ("loss", "lr", "grad_norm", "padding_share", "memory_gib")
_RECENT_STEPS = 20
_GIB = 1 << 30


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step gave."""

    stage: str
    step: int
    """Counted from 1 in its stage."""
    loss: float
    """Mean over the tokens, or functions, of all ranks and micro-steps."""
    lr: float
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    """Tokens read by all ranks, without padding."""
    seconds: float
    data_s: float = 0.0
    """Of these, waiting for rank 0's batches."""
    padding_share: float = 0.0
    """Places without a token among those computed."""
    memory_gib: float = 0.0
    """Of rank 0: the most that its GPU has held, or what the process holds in CPU memory."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Of each part of the mixture and each objective, where a stage has several: means over their tokens."""


@dataclass(frozen=True)
class Sample:
    """How the model went on with a validation text."""

    part: str
    key: str
    variant: str
    prompt: str
    completion: str
    truth: str
    """What follows the prompt in the corpus."""


@dataclass(frozen=True)
class Evaluated:
    """What one evaluation gave."""

    loss: float
    """Mean over the tokens, or functions, of the validation rows."""
    perplexity: Mapping[str, float] = field(default_factory=dict)
    """A token, by ISA and -O level (`aarch64.o2`)."""
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    """That it is a mean of."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """By part of the mixture, where a stage has several."""
    samples: Sequence[Sample] = ()


class Metrics:
    """Writes the figures of one stage of a run, of which `done_steps` steps are done.

    `mfu_per_rate` is the MFU at one token a second, None where the devices' peak is not known.
    """

    def __init__(
        self, run: TrainConfig, index: int, done_steps: int, *, mfu_per_rate: float | None = None
    ) -> None:
        self._mfu_per_rate = mfu_per_rate
        self._stage = run.stages[index]
        self._before = sum(stage.steps for stage in run.stages[:index])
        self._run_steps = sum(stage.steps for stage in run.stages)
        self._seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._log, self._evaluations = run.run / "metrics.jsonl", evaluations_of(run.run)
        self._events = SummaryWriter(str(run.run / "tb"), purge_step=self._before + done_steps + 1)
        for log in (self._log, self._evaluations):
            _forget_after(log, self._before + done_steps)

    def step(self, figures: StepFigures) -> None:
        """Record one step and print its line."""
        global_step = self._before + figures.step
        tokens_per_s = figures.num_tokens / figures.seconds
        mfu = {} if self._mfu_per_rate is None else {"mfu": tokens_per_s * self._mfu_per_rate}
        _append(self._log, {"global_step": global_step} | asdict(figures) | mfu)
        scalars = mfu | {name: getattr(figures, name) for name in _SCALARS}
        scalars |= {"tokens_per_s": tokens_per_s, "data_share": figures.data_s / figures.seconds}
        scalars |= {f"loss/{name}": loss for name, loss in figures.losses.items()}
        self._add_scalars(figures.stage, scalars, global_step)
        self._seconds.append(figures.seconds)
        left_s = sum(self._seconds) / len(self._seconds) * (self._run_steps - global_step)
        print(
            f"{figures.stage} {figures.step}/{self._stage.steps}"
            f"  loss {figures.loss:.4f}  lr {figures.lr:.2e}  grad norm {figures.grad_norm:.3f}"
            f"  {tokens_per_s:,.0f} tokens/s"
            + "".join(f"  MFU {value:.1%}" for value in mfu.values())
            + f"  left {_duration(left_s)}",
            flush=True,
        )

    def evaluation(self, step: int, evaluated: Evaluated) -> None:
        """Record what the model gives on the validation split after `step` steps of the stage."""
        name, global_step = self._stage.name, self._before + step
        head = {"global_step": global_step, "stage": name, "step": step}
        _append(self._evaluations, head | asdict(evaluated))
        scalars = {"loss": evaluated.loss}
        scalars |= {f"perplexity/{cell}": value for cell, value in evaluated.perplexity.items()}
        scalars |= {f"loss/{part}": loss for part, loss in evaluated.losses.items()}
        self._add_scalars(f"{name}/valid", scalars, global_step)
        for number, sample in enumerate(evaluated.samples, 1):
            self._events.add_text(f"{name}/samples/{number}", _markdown(sample), global_step)
        print(f"{name}: validation loss {evaluated.loss:.4f} after {step} steps", flush=True)

    def _add_scalars(self, group: str, scalars: Mapping[str, float], global_step: int) -> None:
        for name, value in scalars.items():
            self._events.add_scalar(f"{group}/{name}", value, global_step)

    def close(self) -> None:
        """Hand what TensorBoard still holds back to its file."""
        self._events.close()


def memory_gib(device: torch.device) -> float:
    """The most that this process's GPU has held since it started, or on CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return float(psutil.Process().memory_info().rss) / _GIB


def evaluations_of(run: Path) -> Path:
    """The file of a run's evaluations."""
    return run / "evaluations.jsonl"


def recorded_loss(run: Path, stage: str, step: int) -> float | None:
    """The validation loss after a stage's `step` steps, if it was measured."""
    for line in read_lines(evaluations_of(run)):
        if (line["stage"], line["step"]) == (stage, step):
            return float(line["loss"])
    return None


def recent_losses(log: Path, stage: str, done_steps: int, count: int) -> list[float]:
    """The losses of a stage's last `count` steps up to `done_steps`, oldest first."""
    taken = [
        line["loss"] for line in read_lines(log) if line["stage"] == stage and line["step"] <= done_steps
    ]
    return taken[-count:]


def read_lines(log: Path) -> list[dict[str, Any]]:
    """The figures in a log, but for a line that is being written or that a kill cut short."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [figures for figures in map(_parsed, lines) if figures]


def _append(log: Path, figures: Mapping[str, Any]) -> None:
    with open(log, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(figures) + "\n")


def _markdown(sample: Sample) -> str:
    """A sample as TensorBoard shows it."""
    texts = {"prompt": sample.prompt, "the model": sample.completion, "the corpus": sample.truth}
    blocks = [f"**{name}**\n\n{textwrap.indent(text, '    ')}" for name, text in texts.items()]
    return "\n\n".join([f"{sample.part} {sample.variant} {sample.key}", *blocks])


def _parsed(line: str) -> dict[str, Any] | None:
    """The figures in a line, unless a kill cut it short."""
    try:
        figures: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return figures


def _forget_after(log: Path, done_steps: int) -> None:
    """Drop the lines of steps that will be taken again, and a line that a kill cut short."""
    if not log.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_lines(log) if line["global_step"] <= done_steps]
    with atomic_output(log) as stream:
        stream.write("".join(kept).encode())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
