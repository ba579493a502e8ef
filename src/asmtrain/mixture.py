"""A stage's mixture: its own data and what it replays in, named parts with their weights out. Pure.

The rows of replayed stages take their shares of all rows, and the stage's own parts the rest; within a stage
parts stand as their weights do. `data.RowBatches` deals rows by these weights.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from asmtrain.config import DataConfig, StageConfig, TrainConfig
from asmtrain.examples import EXAMPLE_TASKS
from asmtrain.fitting import TooLong


@dataclass(frozen=True)
class Part:
    """One corpus in the format of one task."""

    name: str
    """`CORPUS.TASK`, or `STAGE.CORPUS.TASK` of a replayed stage, numbered where two are alike."""
    data: DataConfig
    weight: float
    """Its share of the rows, relative to the other parts."""

    @property
    def objective(self) -> Literal["causal_lm", "sft"]:
        """Whether every token is learnt, or the answers alone."""
        return "sft" if self.data.task in EXAMPLE_TASKS else "causal_lm"

    def too_long(self, stage: StageConfig) -> TooLong:
        """What becomes of what is longer than a row."""
        return stage.too_long if self.objective == "sft" else "split"


def mixture(run: TrainConfig, stage: StageConfig) -> list[Part]:
    """The parts that a stage's rows come from."""
    sources = [("", stage.data, 1 - sum(stage.replay.values()))]
    sources += [(f"{name}.", _stage(run, name).data, share) for name, share in stage.replay.items()]
    parts: list[Part] = []
    seen: Counter[str] = Counter()
    for prefix, data, share in sources:
        # Without replay the weights stay as they are written.
        scale = share / sum(part.weight for part in data) if stage.replay else 1.0
        for part in data:
            name = f"{prefix}{part.corpus.name}.{part.task}"
            seen[name] += 1
            number = f".{seen[name]}" if seen[name] > 1 else ""
            parts.append(Part(name + number, part, part.weight * scale))
    return parts


def _stage(run: TrainConfig, name: str) -> StageConfig:
    return next(stage for stage in run.stages if stage.name == name)
