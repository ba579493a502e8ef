"""The guard over the loss: figures in, an error out where a run must not go on with them.

A loss or gradient norm that is not finite stops the run, and so does a loss more than `jump` above the median
of the last 50, once there are 10. Invariant: all ranks see the same figures, so all decide alike, and before
the weights are changed; a run that goes on takes the losses before it along, so it stops at the same step.
Pure.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from asmtrain.errors import UnstableError

RECENT = 50
_ENOUGH = 10
_KEYS_SHOWN = 5


class Guard:
    """Watches the losses of one stage."""

    def __init__(self, jump: float | None, before: Sequence[float] = ()) -> None:
        """`jump` is `guard.loss_jump`; `before` holds the stage's losses until now, oldest first."""
        self._jump = jump
        self._recent = deque(before, maxlen=RECENT)

    def problem(self, loss: float) -> str | None:
        """What is wrong with a step's loss; it counts among the recent ones if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._jump is not None and len(self._recent) >= _ENOUGH:
            level = statistics.median(self._recent)
            if loss > level + self._jump:
                return f"the loss is {loss:.4f}, far above its recent level of {level:.4f}"
        self._recent.append(loss)
        return None


def norm_problem(grad_norm: float) -> str | None:
    """What is wrong with the norm of a step's gradient."""
    return None if math.isfinite(grad_norm) else f"the norm of the gradient is {grad_norm}"


def unstable(place: str, problem: str, keys: Sequence[str], *, details: str) -> UnstableError:
    """The error that stops a run at `place`; `details` is the file that holds all keys."""
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    return UnstableError(
        f"{place}: {problem}; the step's functions are {shown} ({len(keys)}, all in {details})",
        remedy="look at them (corpus-builder show CORPUS KEY), or lower optimizer.lr or clip_norm in a new "
        "`run`; the last save is whole. --set guard.loss_jump=null goes on past a mere jump of the loss",
    )
