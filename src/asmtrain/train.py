"""The trainer: one loop over the steps of one stage after another.

In: a config. Out: its run folder (see `checkpoint`). Invariants: a step's batch and learning rate are
functions of its number, and a checkpoint holds every other state, so a run that was killed anywhere and
started again takes the same steps (bit for bit on CPU) as one that never was. No step is taken on a loss that
is not finite or far above the recent ones (`guard`); no rank waits long for one that died or hangs (`watch`).
Cost: that of the objectives; a save gathers the trained weights on rank 0.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from asmtrain import checkpoint, dist
from asmtrain.config import TrainConfig
from asmtrain.dist import World
from asmtrain.flops import peak_flops, training_flops
from asmtrain.guard import RECENT, Guard, norm_problem, unstable
from asmtrain.metrics import Metrics, StepFigures, recent_losses
from asmtrain.objectives import Objective, objective_of
from asmtrain.schedule import lr_at
from asmtrain.stage import Stage, prepare_run, save_checkpoint, save_result, start_stage
from asmtrain.tokens import load_tokenizer
from asmtrain.watch import watched
from corpus_builder.shards import atomic_output

REQUEUE = 75
"""Exit code of a run that saved itself at Slurm's warning: start it again (EX_TEMPFAIL)."""


def run(config: TrainConfig) -> int:
    """Train the stages of a config that are not done yet; returns the process's exit code.

    Raises:
        UserFacingError: config, corpus, model, checkpoint, ranks or disk do not serve.
    """
    with (
        dist.joined() as world,
        watched(config.run, world, config.guard.hang_minutes),
        _noted_warnings() as warnings,
    ):
        dist.on_main(lambda: prepare_run(config, world.size))
        tokenizer = load_tokenizer(config.run / "tokenizer")
        for index in range(len(checkpoint.stage_folders(config.run)), len(config.stages)):
            stage, first = start_stage(config, index, world, tokenizer)
            done = _train(stage, first, warnings)
            stage.engine.close()
            if not done:
                return REQUEUE
        dist.on_main(lambda: _finish(config.run))
    return 0


def _train(stage: Stage, first: int, warnings: list[int]) -> bool:
    """The loop: from step `first` to the stage's result, or False when a warning ended it after a save."""
    config, every = stage.config, stage.run.checkpoint.every_steps
    objective = objective_of(stage)
    objective.check(first)
    guard = Guard(stage.run.guard.loss_jump, dist.on_main(lambda: _losses_before(stage, first)))
    with _metrics(stage, first) as metrics:
        for step in range(first, config.steps):
            started = time.perf_counter()
            lr = lr_at(step, config.optimizer, config.steps)
            loss, num_tokens = objective.backward(step)
            _stop_at(guard.problem(loss), stage, objective, step)
            grad_norm = stage.engine.step(lr)
            _stop_at(norm_problem(grad_norm), stage, objective, step)
            if metrics:
                seconds = time.perf_counter() - started
                figures = (config.name, step + 1, loss, lr, grad_norm, num_tokens, seconds, objective.data_s)
                metrics.step(StepFigures(*figures))
            warned = _any_rank(warnings, stage.world)
            if warned or ((step + 1) % every == 0 and step + 1 < config.steps):
                save_checkpoint(stage, step + 1)
            if warned:
                return False
        valid_loss = objective.valid_loss() if config.eval_rows else None
        save_result(stage, valid_loss)
        if metrics:
            metrics.end_stage(valid_loss)
    return True


@contextmanager
def _metrics(stage: Stage, first: int) -> Iterator[Metrics | None]:
    """Where the figures go, on rank 0; closed however the stage ends."""
    rate = _mfu_per_rate(stage)
    metrics = Metrics(stage.run, stage.index, first, mfu_per_rate=rate) if stage.world.is_main else None
    try:
        yield metrics
    finally:
        if metrics:
            metrics.close()


def _mfu_per_rate(stage: Stage) -> float | None:
    """The MFU of one token a second on all ranks; without attention, little for functions."""
    if stage.world.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(stage.world.device))
    flops = training_flops(stage.model, headless=stage.head is not None)
    return peak and flops.per_token / (peak * stage.world.size)


def _losses_before(stage: Stage, first: int) -> list[float]:
    return recent_losses(stage.run.run / "metrics.jsonl", stage.config.name, first, RECENT)


def _stop_at(problem: str | None, stage: Stage, objective: Objective, step: int) -> None:
    """End the run on all ranks if a step has a problem, before its weights are in any checkpoint."""
    if problem:
        dist.on_main(lambda: _stop(problem, stage, objective.keys(step), step))


def _stop(problem: str, stage: Stage, keys: list[str], step: int) -> None:
    name, details = stage.config.name, stage.run.run / "stopped.json"
    told = {"stage": name, "step": step + 1, "problem": problem, "functions": keys}
    with atomic_output(details) as stream:
        stream.write(json.dumps(told, indent=1).encode())
    raise unstable(f"stage {name!r}, step {step + 1}", problem, keys, details=str(details))


def _finish(run: Path) -> None:
    """Mark the run as done, once."""
    results = [checkpoint.read_result(folder) for folder in checkpoint.stage_folders(run)]
    if not (run / "finished.json").exists():
        losses = {result.name: result.valid_loss for result in results}
        with atomic_output(run / "finished.json") as stream:
            stream.write(json.dumps({"valid_loss": losses}, indent=1).encode())
    print(f"run {run} is finished: {', '.join(result.name for result in results)}", flush=True)


@contextmanager
def _noted_warnings() -> Iterator[list[int]]:
    """A list that stays empty until USR2 arrives, which Slurm sends ahead of its time limit."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # the command holds it back until now
    try:
        yield received
    finally:
        signal.signal(signal.SIGUSR2, before)


def _any_rank(warnings: list[int], world: World) -> bool:
    """Whether any rank was warned: the signal may reach one rank a step before another."""
    return bool(dist.all_reduce_sum(torch.tensor(len(warnings), device=world.device)))
