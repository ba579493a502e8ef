"""Saving a stage: checkpoints, written while training goes on, and its result.

In: a stage. Out: folders in its run (see `checkpoint`). A checkpoint is a copy of the state in CPU memory,
made between two steps; each rank's `writer` then writes, syncs and hashes that rank's file and leaves the sum
beside it, and rank 0's publishes the folder when all sums are there. Invariants: never two checkpoints under
way; one is published whole or stays hidden; what a writer met, such as a full disk, ends the run at the next
step. Cost: the loop waits for the copies, the gathered weights among them, and for a checkpoint before that
is still under way; CPU memory for the copies.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from asmtrain import checkpoint, dist
from asmtrain.checkpoint import CheckpointState, StageResult
from asmtrain.model import result_names
from asmtrain.stage import Stage
from corpus_builder.shards import atomic_output

_SUM = ".sha256"
_POLL_S = 0.02


def save_checkpoint(stage: Stage, step: int, valid_loss: float | None = None) -> None:
    """Copy the state after `step` steps and begin to write it; all ranks together.

    Raises:
        OutputError: the checkpoint before this one could not be written.
    """
    stage.writer.wait()
    folder = checkpoint.checkpoint_folder(stage.run.run, stage.index, stage.config.name, step)
    draft = dist.on_main(lambda: _new_draft(folder))
    own = stage.engine.optimizer_state() | dist.random_state()
    files = _weights(stage)
    result = _result(stage, step, valid_loss)
    state = CheckpointState(step=step, world_size=stage.world.size, valid_loss=valid_loss)

    def write() -> None:
        write_rank(draft, stage.world.rank, own)
        if stage.world.is_main:
            with checkpoint.written_to(folder):
                checkpoint.write_result(draft / "weights", result, model=stage.model, files=files)
                checkpoint.write_state(draft, state)
                checkpoint.publish(draft, folder, sums_of_ranks(draft, stage.world.size))
                settings = stage.run.checkpoint
                prune(stage.run.run, settings.keep, keep_best=settings.keep_best)

    stage.writer.start(write)


def _new_draft(folder: Path) -> Path:
    with checkpoint.written_to(folder):
        return checkpoint.new_draft(folder)


def write_rank(draft: Path, rank: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a rank's file, then its sum, which says that the file is whole.

    Raises:
        OutputError: the disk is full.
    """
    path = checkpoint.rank_file(draft, rank)
    with checkpoint.written_to(path):
        save_file(dict(tensors), path)
        digest = checkpoint.sha256_synced(path)
    with atomic_output(path.with_suffix(_SUM)) as stream:
        stream.write(digest.encode())


def sums_of_ranks(draft: Path, size: int) -> dict[str, str]:
    """Wait for all ranks' files; takes their sums out of the draft.

    A rank that cannot write ends the run, and with it this wait.
    """
    files = {checkpoint.rank_file(draft, rank).with_suffix(_SUM).name for rank in range(size)}
    while not files <= set(os.listdir(draft)):  # a shared file system looks anew when a folder is listed
        time.sleep(_POLL_S)
    sums = {}
    for rank in range(size):
        path = checkpoint.rank_file(draft, rank)
        sums[path.name] = path.with_suffix(_SUM).read_text(encoding="ascii")
        path.with_suffix(_SUM).unlink()
    return sums


def prune(run: Path, keep: int, *, keep_best: bool = False) -> None:
    """Remove all but the newest `keep` checkpoints and, if told so, the best one of each stage."""
    whole = checkpoint.checkpoints(run)
    kept = {*whole[-keep:], *(_best(whole) if keep_best else ())}
    for folder in whole:
        if folder not in kept:
            # Renamed first: a kill in between leaves no half checkpoint under a whole one's name.
            hidden = checkpoint.draft_of(folder)
            os.replace(folder, hidden)
            shutil.rmtree(hidden)


def _best(folders: Iterable[Path]) -> Iterator[Path]:
    """Each stage's checkpoint with the lowest validation loss, the newest of equals."""
    best: dict[str, tuple[float, Path]] = {}
    for folder in folders:
        loss, stage = _valid_loss(folder), folder.name.rpartition("-step")[0]
        if loss is not None and (stage not in best or loss <= best[stage][0]):
            best[stage] = loss, folder
    return (folder for _, folder in best.values())


def _valid_loss(folder: Path) -> float | None:
    try:
        return checkpoint.read_state(folder).valid_loss
    except ValidationError:  # damaged
        return None


def save_result(stage: Stage, valid_loss: float | None) -> None:
    """Write the result that the next stage, or an export, starts from."""
    files = _weights(stage)

    def write() -> None:
        result = _result(stage, stage.config.steps, valid_loss)
        folder = checkpoint.stage_folder(stage.run.run, stage.index, result.name)
        with checkpoint.atomic_folder(folder) as draft:
            checkpoint.write_result(draft, result, model=stage.model, files=files)

    dist.on_main(write)


def _weights(stage: Stage) -> dict[str, dict[str, torch.Tensor]]:
    """What a result keeps of the model and of the head, whole, by file; copies, on rank 0 alone."""
    tensors = stage.engine.gather(stage.model, result_names(stage.model))
    names = [] if stage.head is None else [name for name, _ in stage.head.named_parameters()]
    head = {} if stage.head is None else stage.engine.gather(stage.head, names)
    return checkpoint.result_files(stage.model, tensors, head) if stage.world.is_main else {}


def _result(stage: Stage, step: int, valid_loss: float | None) -> StageResult:
    return StageResult(
        name=stage.config.name,
        index=stage.index,
        step=step,
        objective=stage.config.objective,
        trainable=stage.config.trainable,
        embedding=stage.config.embedding if stage.head is not None else None,
        dtype=stage.run.model.dtype,
        base=stage.base,
        corpora=stage.corpora,
        valid_loss=valid_loss,
    )
