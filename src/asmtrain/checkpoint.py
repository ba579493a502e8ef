"""The run folder: what a run leaves on disk, and how it goes on from there.

    RUN/config.yaml                    the resolved config that started the run
    RUN/tokenizer/                     a Hugging Face tokenizer folder
    RUN/cache/                         token caches of the corpora
    RUN/base/                          random weights that a new model starts from (a Hugging Face folder)
    RUN/stages/01-pretrain/            a finished stage: result.json, and weights or adapter, embedding head
    RUN/checkpoints/01-pretrain-step000100/
        weights/                       the same files as a stage's folder: what an export needs
        rank-00000.safetensors         that rank's slices of the optimizer's state, and random state
        state.json
    RUN/metrics.jsonl, RUN/tb/         every step's figures
    RUN/evaluations.jsonl              every evaluation's: losses, perplexity by ISA and -O level, samples
    RUN/stopped.json                   why a loss stopped the run, with the keys of the step's functions
    RUN/hangs/rank-00000.txt           Python stacks of each rank of a run that hung or lost a rank
    RUN/finished.json                  appears when the last stage is done

Invariant: every folder under stages/ and checkpoints/ is written under a hidden name, synced and renamed, so
it is whole or absent; `manifest.json` in it carries each file's sha256. All files are JSON, YAML or
safetensors: nothing is unpickled. A checkpoint fits any number of ranks and any ZeRO stage. Cost: it holds
the trained weights once gathered, and 12 bytes for each of them in the ranks' files; on another number of
ranks, each rank reads the head of up to all of these. `saving` writes checkpoints while training goes on.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from asmtrain.config import Dtype, EmbeddingConfig, Full, Lora, TrainConfig
from asmtrain.embedding import EmbeddingHead
from asmtrain.errors import CheckpointError
from asmtrain.model import (
    HEAD_FILE,
    LanguageModel,
    backbone,
    load_adapter,
    load_head,
    load_model,
    set_attention,
    weights_file,
    write_form,
)
from asmtrain.watch import beat
from corpus_builder.errors import OutputError
from corpus_builder.shards import atomic_output

MANIFEST = "manifest.json"
# What may differ when a run goes on: where it lies, how often it saves and what it evaluates, when it ends by
# itself, and how the optimizer's state is spread.
_FREE_KEYS = re.compile(
    r"run$|checkpoint\.|guard\b|stages\.\d+\.(eval_|samples)|engine\.(zero_stage|offload_optimizer)$"
)


class StageResult(BaseModel):
    """`result.json` of a stage: what its weights are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    index: int
    """Position among the run's stages, from 0."""
    step: int
    """Optimizer steps taken."""
    objective: str
    trainable: Full | Lora = Field(discriminator="kind")
    embedding: EmbeddingConfig | None
    dtype: Dtype
    base: str
    """Model that an adapter sits on: a folder relative to the run, an absolute one, or a hub name."""
    corpora: dict[str, str]
    """Corpus folder to its index's sha256."""
    valid_loss: float | None = None


class CheckpointState(BaseModel):
    """`state.json` of a checkpoint: where the run stood."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps of the stage that are done."""
    world_size: int
    valid_loss: float | None = None
    """Of its weights, where it was measured."""


def stage_folder(run: Path, index: int, name: str) -> Path:
    """Where a stage's result lies."""
    return run / "stages" / f"{index + 1:02d}-{name}"


def stage_folders(run: Path) -> list[Path]:
    """The finished stages of a run, in their order."""
    return sorted(path for path in (run / "stages").glob("[0-9]*") if (path / MANIFEST).exists())


def claim(run: Path, config: TrainConfig) -> None:
    """Start a run folder, or make sure that it belongs to this config; removes what a kill left half written.

    Raises:
        CheckpointError: another config made it; the message names the first differing key.
    """
    path = run / "config.yaml"
    ours = config.model_dump(mode="json")
    if path.exists():
        theirs = _with_new_keys(yaml.safe_load(path.read_text(encoding="utf-8")))
        difference = _first_difference(theirs, ours)
        if difference:
            key, before, now = difference
            raise CheckpointError(
                f"run {run} was started with another config: {key} was {before!r} and is now {now!r}",
                remedy="set it back, or name another folder in `run` (--set run=FOLDER)",
            )
    else:
        with atomic_output(path) as stream:
            stream.write(yaml.safe_dump(ours, sort_keys=False).encode())
    drafts = [*run.glob("stages/.*"), *run.glob("checkpoints/.*"), run / ".base", run / ".tokenizer"]
    for draft in drafts:
        shutil.rmtree(draft, ignore_errors=True)


def _with_new_keys(written: Any) -> Any:
    """A run's config with the keys that came since, at their defaults: how it ran without them."""
    try:
        return TrainConfig.model_validate(written).model_dump(mode="json")
    except ValidationError:
        return written


def _first_difference(theirs: Any, ours: Any) -> tuple[str, Any, Any] | None:
    before, now = dict(_leaves(theirs)), dict(_leaves(ours))
    for key in [*now, *before]:
        if not _FREE_KEYS.match(key) and before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; empty groups are leaves."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    items = list(items)
    if not items:
        yield prefix, node
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears whole, synced and with its manifest, or not at all."""
    with written_to(folder):
        draft = new_draft(folder)
        yield draft
        publish(draft, folder)


def draft_of(folder: Path) -> Path:
    """The hidden name under which a folder is written."""
    return folder.with_name(f".{folder.name}")


def new_draft(folder: Path) -> Path:
    """Make the empty draft of a folder."""
    draft = draft_of(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Turns a failure to write under `path` into an OutputError; what was published before is intact."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells the errno only in its text.
        full = getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
        raise OutputError(
            f"cannot write {path}: {'no space left on the disk' if full else error}",
            remedy="free some space or check permissions; the same command goes on from the last save",
        ) from error


def publish(draft: Path, folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a finished draft, sync everything, give it its name.

    `known` has the sha256 of files that are synced already, by their names in the draft.
    """
    sums = dict(known or {})
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    for path in files:
        name = str(path.relative_to(draft))
        if name not in sums:
            sums[name] = sha256_synced(path)
    (draft / MANIFEST).write_text(json.dumps(sums, indent=1, sort_keys=True), encoding="utf-8")
    for path in [draft / MANIFEST, *{path.parent for path in files}, draft]:
        _sync(path)
    if folder.exists():
        # Damaged: the run fell back behind it and has come to its step again.
        shutil.rmtree(folder)
    os.replace(draft, folder)
    _sync(folder.parent)


def sha256_synced(path: Path) -> str:
    """The sha256 of a file, which is on the disk when it is told."""
    _sync(path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    beat()
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """The first file of a folder that is not what its manifest says; None when all are."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return MANIFEST
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            return str(name)
    return None


def result_files(
    model: LanguageModel, tensors: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Which tensors each file of a stage's result holds; `head` is empty without an embedding."""
    files = dict([weights_file(model, tensors)])
    return files | {HEAD_FILE: dict(head)} if head else files


def write_result(
    folder: Path,
    result: StageResult,
    *,
    model: LanguageModel,
    files: Mapping[str, dict[str, torch.Tensor]],
) -> None:
    """Write a stage's result, `files` as `result_files` gave them; reads no weights of the model."""
    folder.mkdir(exist_ok=True)
    write_form(folder, model)
    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "result.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")


def read_result(folder: Path) -> StageResult:
    """What a stage's or a checkpoint's weights are; raises CheckpointError where there are none."""
    try:
        return StageResult.model_validate_json((folder / "result.json").read_bytes())
    except (OSError, ValidationError):
        raise CheckpointError(
            f"{folder} holds no stage result: result.json is missing or damaged",
            remedy="let asmtrain train finish the stage",
        ) from None


def load_stage_result(folder: Path, dtype: Dtype | None = None) -> tuple[LanguageModel, EmbeddingHead | None]:
    """The model of a stage result, adapter attached where it has one, and its embedding head.

    `dtype` is the stage's own if not given. Works on the CPU, whatever the ZeRO stage that trained it.

    Raises:
        CheckpointError: the folder holds no stage result.
        ModelError: its weights are damaged, or its base is gone.
    """
    result = read_result(folder)
    dtype = dtype or result.dtype
    if isinstance(result.trainable, Lora):
        base = load_model(base_path(folder, result), dtype=dtype)
        model: LanguageModel = load_adapter(base, folder, result.trainable, base=result.base)
    else:
        model = load_model(str(folder), dtype=dtype)
    set_attention(backbone(model).config, result.embedding)
    if result.embedding is None:
        return model, None
    head = load_head(folder, result.embedding, hidden_size=backbone(model).config.hidden_size, dtype=dtype)
    return model, head


def base_path(folder: Path, result: StageResult) -> str:
    """The base of an adapter as a path or hub name; a run folder that moved takes its own base along."""
    for run in folder.resolve().parents:
        if (run / "config.yaml").exists() and (run / result.base).is_dir():
            return str(run / result.base)
    return result.base


def checkpoint_folder(run: Path, stage: int, name: str, step: int) -> Path:
    """Where a checkpoint lies; names sort by age."""
    return run / "checkpoints" / f"{stage + 1:02d}-{name}-step{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints that were published, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if (path / "state.json").exists())


def latest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all as they were written, and what is wrong with newer ones."""
    problems: list[str] = []
    for folder in reversed(checkpoints(run)):
        broken = damage(folder)
        if broken is None:
            return folder, problems
        problems.append(f"checkpoint {folder} is damaged ({broken}); an older one is used")
    return None, problems


def read_state(folder: Path) -> CheckpointState:
    """Where a checkpoint stood."""
    return CheckpointState.model_validate_json((folder / "state.json").read_bytes())


def write_state(folder: Path, state: CheckpointState) -> None:
    """Write `state.json`."""
    (folder / "state.json").write_text(state.model_dump_json(indent=1), encoding="utf-8")


def rank_file(folder: Path, rank: int) -> Path:
    """Where a rank's slices and random state lie."""
    return folder / f"rank-{rank:05d}.safetensors"
