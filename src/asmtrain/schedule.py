"""The learning rate: a step's number in, a rate out. Pure, so that a resumed run needs no scheduler state."""

import math

from asmtrain.config import OptimizerConfig


def lr_at(step: int, optimizer: OptimizerConfig, total: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of a stage of `total` steps.

    Warm-up is linear and reaches `lr` at step `warmup_steps - 1`; from there a cosine (Loshchilov and Hutter
    2017) falls to `lr * min_lr_ratio` at the last step, or the rate stays constant.
    """
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    remaining = total - max(optimizer.warmup_steps, 1)
    done = min(step + 1 - max(optimizer.warmup_steps, 1), remaining)
    share = 0.5 * (1 + math.cos(math.pi * done / remaining)) if remaining > 0 else 1.0
    return optimizer.lr * (optimizer.min_lr_ratio + (1 - optimizer.min_lr_ratio) * share)
