"""Whole runs: three stages through the real launcher, and the same run killed and warned on its way."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from asmtrain.metrics import MEASURED
from ranks import finish_ranks, start_ranks

REPOSITORY = Path(__file__).parents[2]
LINE = re.compile(
    r"^(pretrain|lora|embed) \d+/5  loss \d+\.\d{4}  lr \d\.\d\de-\d\d  grad norm \d+\.\d{3}"
    r"  [\d,]+ tokens/s  left \d+:\d\d$",
    re.MULTILINE,
)


def run_config(folder: Path, corpus: Path, **changes: Any) -> Path:
    """A run of three tiny stages, the second with dropout, each of several micro-batches on two ranks."""
    lm = {
        "objective": "causal_lm",
        "data": [{"corpus": str(corpus), "task": "completion"}],
        "steps": 5,
        "context": 96,
        "rows_per_step": 12,
        "micro_rows": 4,
        "eval_rows": 7,
    }
    shape = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    lora = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1, "unfreeze": ["lm_head"]}
    embedding = {"pooling": "mean", "dim": 16, "max_tokens": 48, "functions_per_step": 12}
    embedding |= {"variants": 3, "neighbours": 0.5, "token_dropout": 0.1, "attention": "bidirectional"}
    config = {
        "run": str(folder / "run"),
        "seed": 3,
        "model": {"shape": shape},
        "tokenizer": {"corpus": str(corpus)},
        "checkpoint": {"every_steps": 2},
        "stages": [
            {**lm, "name": "pretrain", "trainable": {"kind": "full"}, "optimizer": {"lr": 3.0e-3}},
            {**lm, "name": "lora", "trainable": lora, "optimizer": {"lr": 1.0e-3}},
            {
                **lm,
                "name": "embed",
                "objective": "contrastive",
                "data": [{"corpus": str(corpus), "task": "retrieval"}],
                "trainable": {"kind": "full"},
                "optimizer": {"lr": 1.0e-3},
                "embedding": embedding,
            },
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path


def figures(run: Path) -> list[tuple[Any, ...]]:
    """What every step gave, in full precision, without its durations."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [tuple(value for key, value in json.loads(line).items() if key not in MEASURED) for line in lines]


@pytest.fixture(scope="module")
def launched(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two ranks and what the launcher printed."""
    folder = tmp_path_factory.mktemp("launched")
    done = subprocess.run(
        [REPOSITORY / "launch" / "train.sh", run_config(folder, tiny_corpus)],
        env={**os.environ, "RANKS": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout + done.stderr


def test_every_step_has_its_line_and_its_figures(launched: tuple[Path, str]) -> None:
    run, said = launched
    assert LINE.findall(said) == ["pretrain"] * 5 + ["lora"] * 5 + ["embed"] * 5
    taken = figures(run)
    assert [step[0] for step in taken] == list(range(1, 16))
    assert "warn" not in said.lower()
    losses = [step[3] for step in taken]
    assert losses[4] < losses[0] - 0.1


def test_tensorboard_holds_the_same_figures(launched: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = launched
    events: dict[tuple[str, int], float] = {}
    for file in sorted((run / "tb").iterdir()):
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            events |= {(tag, event.step): event.value for event in accumulator.Scalars(tag)}
    for global_step, stage, _, loss, lr, grad_norm, *_ in figures(run):
        for name, value in (("loss", loss), ("lr", lr), ("grad_norm", grad_norm)):
            assert events[f"{stage}/{name}", global_step] == pytest.approx(value, rel=1e-6)
        assert events[f"{stage}/tokens_per_s", global_step] > 0
    assert events["embed/valid/loss", 15] > 0


def test_each_stage_leaves_a_whole_result(launched: tuple[Path, str]) -> None:
    from asmtrain.checkpoint import damage, load_stage_result, read_result, stage_folders
    from asmtrain.model import is_adapted

    run, _ = launched
    folders = stage_folders(run)
    assert [folder.name for folder in folders] == ["01-pretrain", "02-lora", "03-embed"]
    assert [damage(folder) for folder in folders] == [None] * 3
    assert all(read_result(folder).valid_loss for folder in folders)
    model, head = load_stage_result(folders[1])
    assert is_adapted(model)
    assert head is None
    model, head = load_stage_result(folders[2])
    assert not is_adapted(model)
    assert head is not None
    assert head.dense.weight.shape == (16, 32)


def test_a_full_stage_starts_from_the_merged_adapter(launched: tuple[Path, str]) -> None:
    from asmtrain.checkpoint import load_stage_result
    from asmtrain.model import merge_lora

    run, _ = launched
    merged = dict(merge_lora(load_stage_result(run / "stages" / "02-lora")[0]).named_parameters())
    final = dict(load_stage_result(run / "stages" / "03-embed")[0].named_parameters())
    # The contrastive stage leaves the head alone: it is what the stage before made of it.
    torch.testing.assert_close(final["lm_head.weight"], merged["lm_head.weight"], rtol=0, atol=0)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (final[name] - merged[name]).abs().max()
    assert 0 < moved < 5 * 1.5e-3, "five steps of Adam move a weight by a few learning rates at most"


def test_killed_and_warned_run_takes_the_same_steps(
    launched: tuple[Path, str], tiny_corpus: Path, tmp_path: Path
) -> None:
    """SIGKILL inside a stage, while a checkpoint is written and at a stage's end; Slurm's warning before."""
    config, run = run_config(tmp_path, tiny_corpus), tmp_path / "run"
    arguments = ["train", str(config)]

    ranks = start_ranks(2, arguments)
    wait_until(lambda: _steps_taken(run) >= 3)
    ranks[1].send_signal(signal.SIGUSR2)  # one rank alone: all must agree
    codes, said = finish_ranks(ranks)
    assert codes == [75, 75], said
    assert len(list((run / "checkpoints").glob("01-pretrain-step*"))) >= 1
    assert 3 <= len(figures(run)) < 15

    _kill_when(arguments, lambda: any((run / "checkpoints").glob(".02-lora-*")))
    _kill_when(arguments, lambda: (run / "stages" / "02-lora").exists())
    _kill_when(arguments, lambda: _steps_taken(run) >= 13)

    codes, said = finish_ranks(start_ranks(2, arguments))
    assert codes == [0, 0], said
    assert figures(run) == figures(launched[0])
    for name in ("model.safetensors", "embedding_head.safetensors"):
        ours, theirs = (load_file(folder / "stages" / "03-embed" / name) for folder in (run, launched[0]))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not list(run.rglob(".*")), "what kills left half written is gone"


def _steps_taken(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def _kill_when(arguments: list[str], condition: Callable[[], bool]) -> None:
    ranks = start_ranks(2, arguments)
    wait_until(condition)
    for rank in ranks:
        rank.kill()
    codes, said = finish_ranks(ranks)
    assert codes == [-9, -9], said


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)
