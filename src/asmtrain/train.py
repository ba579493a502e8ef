"""The trainer: one loop over the steps of one stage after another.

In: a config. Out: its run folder (see `checkpoint`). Invariants: a step's batch and learning rate are
functions of its number, and a checkpoint holds every other state, so a run that was killed anywhere and
started again takes the same steps (bit for bit on CPU) as one that never was. No step is taken on a loss that
is not finite or far above the recent ones (`guard`); no rank waits long for one that died or hangs (`watch`).
Cost: that of the objectives; a save copies the state and gathers the trained weights on rank 0 (`saving`).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from asmtrain import checkpoint, dist, notice
from asmtrain.config import TrainConfig
from asmtrain.evaluation import undisturbed
from asmtrain.flops import peak_flops, training_flops
from asmtrain.guard import RECENT, Guard, norm_problem, unstable
from asmtrain.metrics import Metrics, StepFigures, memory_gib, recent_losses, recorded_loss
from asmtrain.objectives import Objective, objective_of
from asmtrain.rowlosses import Taken
from asmtrain.saving import save_checkpoint, save_result
from asmtrain.schedule import lr_at
from asmtrain.stage import Stage, prepare_run, start_stage
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
        notice.noted(),
    ):
        dist.on_main(lambda: prepare_run(config, world.size))
        tokenizer = load_tokenizer(config.run / "tokenizer")
        for index in range(len(checkpoint.stage_folders(config.run)), len(config.stages)):
            stage, first = start_stage(config, index, world, tokenizer)
            done = _train(stage, first)
            stage.engine.close()
            if not done:
                return REQUEUE
        dist.on_main(lambda: _finish(config.run))
    return 0


def _train(stage: Stage, first: int) -> bool:
    """From step `first` to the stage's result, or False when Slurm's notice ended it, saved."""
    done = first
    with stage.writer, _metrics(stage, first) as metrics:
        try:
            objective = objective_of(stage)
            objective.check(first)
            valid_loss = _evaluate(stage, objective, metrics, done)  # where the notice cut it short
            for done in _steps(stage, objective, metrics, first):
                stage.writer.check()
                notice.heed(stage.world.device)
                valid_loss = _evaluate(stage, objective, metrics, done)
                if _is_saved(stage, done, valid_loss):
                    save_checkpoint(stage, done, valid_loss)
            save_result(stage, valid_loss)
        except notice.Warned:
            if done > first:
                save_checkpoint(stage, done)
            return False
    return True


def _steps(stage: Stage, objective: Objective, metrics: Metrics | None, first: int) -> Iterator[int]:
    """The loop: takes the steps from `first` on, and gives after each how many are done."""
    config = stage.config
    guard = Guard(stage.run.guard.loss_jump, dist.on_main(lambda: _losses_before(stage, first)))
    for step in range(first, config.steps):
        started = time.perf_counter()
        lr = lr_at(step, config.optimizer, config.steps)
        taken = objective.backward(step)
        _stop_at(guard.problem(taken.loss), stage, objective, step)
        grad_norm = stage.engine.step(lr)
        _stop_at(norm_problem(grad_norm), stage, objective, step)
        if metrics:
            seconds = time.perf_counter() - started
            metrics.step(_figures(stage, step + 1, taken, lr, grad_norm, seconds, objective.data_s))
        yield step + 1


def _is_saved(stage: Stage, done: int, valid_loss: float | None) -> bool:
    """Whether a checkpoint is due: every so many steps and, to keep the best, at each validation loss."""
    settings = stage.run.checkpoint
    is_judged = settings.keep_best and valid_loss is not None
    return done < stage.config.steps and (is_judged or done % settings.every_steps == 0)


def _figures(
    stage: Stage, step: int, taken: Taken, lr: float, grad_norm: float, seconds: float, data_s: float
) -> StepFigures:
    return StepFigures(
        stage=stage.config.name,
        step=step,
        loss=taken.loss,
        lr=lr,
        grad_norm=grad_norm,
        num_tokens=taken.num_tokens,
        seconds=seconds,
        data_s=data_s,
        padding_share=1 - taken.num_tokens / taken.num_places,
        memory_gib=memory_gib(stage.world.device),
        losses=taken.losses,
    )


def _evaluate(stage: Stage, objective: Objective, metrics: Metrics | None, done: int) -> float | None:
    """The validation loss after `done` steps, if it is due: measured, or as it was before a kill."""
    every, steps = stage.config.eval_every_steps, stage.config.steps
    is_due = done == steps or (every is not None and done > 0 and done % every == 0)
    if not is_due or not stage.config.eval_rows:
        return None
    recorded = dist.on_main(lambda: recorded_loss(stage.run.run, stage.config.name, done))
    if recorded is not None:
        return recorded
    with undisturbed(stage.engine):
        evaluated = objective.evaluate()
    if metrics and evaluated:
        metrics.evaluation(done, evaluated)
    return evaluated.loss if evaluated else None


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
