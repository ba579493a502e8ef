"""A run's figures: one console line a step, TensorBoard events, `metrics.jsonl` in full precision.

In: the figures of each step, on rank 0. Out: the three of them. Invariant: after a run was killed and went
on, `metrics.jsonl` holds every step once, with the figures of the state that was kept.
"""

import json
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from asmtrain.config import TrainConfig
from corpus_builder.shards import atomic_output

_RECENT_STEPS = 20


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
        self._log = run.run / "metrics.jsonl"
        self._events = SummaryWriter(str(run.run / "tb"), purge_step=self._before + done_steps + 1)
        _forget_after(self._log, self._before + done_steps)

    def step(self, figures: StepFigures) -> None:
        """Record one step and print its line."""
        global_step = self._before + figures.step
        tokens_per_s = figures.num_tokens / figures.seconds
        mfu = {} if self._mfu_per_rate is None else {"mfu": tokens_per_s * self._mfu_per_rate}
        with open(self._log, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"global_step": global_step} | asdict(figures) | mfu) + "\n")
        for name, value in mfu.items():
            self._events.add_scalar(f"{figures.stage}/{name}", value, global_step)
        for name in ("loss", "lr", "grad_norm"):
            self._events.add_scalar(f"{figures.stage}/{name}", getattr(figures, name), global_step)
        self._events.add_scalar(f"{figures.stage}/tokens_per_s", tokens_per_s, global_step)
        self._events.add_scalar(f"{figures.stage}/data_share", figures.data_s / figures.seconds, global_step)
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

    def end_stage(self, valid_loss: float | None) -> None:
        """Record the stage's validation loss, if it has one, and close the events."""
        if valid_loss is not None:
            name = self._stage.name
            self._events.add_scalar(f"{name}/valid_loss", valid_loss, self._before + self._stage.steps)
            print(f"{name}: validation loss {valid_loss:.4f}", flush=True)
        self.close()

    def close(self) -> None:
        """Hand what TensorBoard still holds back to its file."""
        self._events.close()


def recent_losses(log: Path, stage: str, done_steps: int, count: int) -> list[float]:
    """The losses of a stage's last `count` steps up to `done_steps`, oldest first."""
    if not log.exists():
        return []
    lines = map(_parsed, log.read_text(encoding="utf-8").splitlines())
    taken = [line["loss"] for line in lines if line and line["stage"] == stage and line["step"] <= done_steps]
    return taken[-count:]


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
    lines = [(line, _parsed(line)) for line in log.read_text(encoding="utf-8").splitlines()]
    kept = [line + "\n" for line, figures in lines if figures and figures["global_step"] <= done_steps]
    with atomic_output(log) as stream:
        stream.write("".join(kept).encode())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
