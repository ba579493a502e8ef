"""Checkpoints of whole runs: written while training goes on, and taken up by other numbers of ranks."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from asmtrain.checkpoint import checkpoints, damage, read_state
from ranks import finish_ranks, start_ranks
from test_train import figures, run_config, wait_until

STEPS = 8


def one_stage(folder: Path, corpus: Path, **stage: Any) -> Path:
    """A run of the first stage of `run_config` alone."""
    path = run_config(folder, corpus, checkpoint={"every_steps": 3})
    config = yaml.safe_load(path.read_text())
    config["stages"] = [config["stages"][0] | {"steps": STEPS, "eval_rows": 0} | stage]
    path.write_text(yaml.safe_dump(config))
    return path


def steps_taken(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def train(config: Path, size: int, *sets: str) -> None:
    codes, said = finish_ranks(start_ranks(size, ["train", str(config), *sets]))
    assert codes == [0] * size, said


def killed(config: Path, size: int, *sets: str) -> None:
    """Train until some steps are taken beyond the first checkpoint, and no further."""
    run = config.parent / "run"
    ranks = start_ranks(size, ["train", str(config), *sets])
    wait_until(lambda: steps_taken(run) >= 5 and bool(checkpoints(run)))
    for rank in ranks:
        rank.kill()
    codes, said = finish_ranks(ranks)
    assert codes == [-9] * size, said


def warned(config: Path, size: int, *sets: str) -> None:
    """Go on until Slurm's warning, a step or more later."""
    log = config.parent / "run" / "metrics.jsonl"
    done, before = read_state(checkpoints(log.parent)[-1]).step, log.stat().st_ino
    ranks = start_ranks(size, ["train", str(config), *sets])
    # The log is written anew when a run goes on: the steps after its checkpoint are taken again.
    wait_until(lambda: log.stat().st_ino != before and steps_taken(log.parent) > done)
    ranks[0].send_signal(signal.SIGUSR2)
    codes, said = finish_ranks(ranks)
    assert codes == [75] * size, said


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_goes_on_on_other_numbers_of_ranks_and_zero_stages(
    dtype: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Killed on 2 ranks at stage 2, warned on 1 at stage 3, on 2 at stage 1 with offload: the same steps."""
    lora = {"kind": "lora", "rank": 4, "alpha": 8, "unfreeze": ["lm_head"]}
    options: dict[str, Any] = {"steps": 14} | ({"trainable": lora} if dtype == "bf16" else {})
    path = f"model.dtype={dtype}"
    straight = one_stage(tmp_path / "straight", tiny_corpus, **options)
    train(straight, 2, "--set", path)
    config = one_stage(tmp_path / "moved", tiny_corpus, **options)
    killed(config, 2, "--set", path)
    warned(config, 1, "--set", path, "--set", "engine.zero_stage=3")
    train(config, 2, "--set", path, "--set", "engine.zero_stage=1", "--set", "engine.offload_optimizer=true")
    expected, got = (json_figures(folder / "run") for folder in (straight.parent, config.parent))
    assert [step["num_tokens"] for step in got] == [step["num_tokens"] for step in expected]
    tolerance = 5e-6 if dtype == "fp32" else 2e-3
    assert [step["loss"] for step in got] == pytest.approx([step["loss"] for step in expected], rel=tolerance)


def json_figures(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def slow_disk() -> None:
    fsync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.4), fsync(descriptor))[1]


def test_a_kill_while_a_checkpoint_is_written_beside_training_costs_that_one_alone(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    straight = one_stage(tmp_path / "straight", tiny_corpus)
    train(straight, 2)
    config = one_stage(tmp_path / "killed", tiny_corpus)
    run = config.parent / "run"

    def trains_beside_a_write() -> bool:
        drafts = [int(path.name[-6:]) for path in (run / "checkpoints").glob(".01-pretrain-step*")]
        return any(6 == step < steps_taken(run) for step in drafts)

    ranks = start_ranks(2, ["train", str(config)], first=slow_disk)
    wait_until(trains_beside_a_write)
    for rank in ranks:
        rank.kill()
    finish_ranks(ranks)
    assert [read_state(folder).step for folder in checkpoints(run)] == [3]
    assert damage(checkpoints(run)[0]) is None
    train(config, 2)
    assert figures(run) == figures(straight.parent / "run")
    assert [read_state(folder).step for folder in checkpoints(run)] == [3, 6]
    assert not list(run.rglob(".*"))


def test_a_disk_that_fills_under_one_rank_ends_the_run_in_one_line(tiny_corpus: Path, tmp_path: Path) -> None:
    config = one_stage(tmp_path, tiny_corpus, steps=400)
    run = tmp_path / "run"
    ranks = start_ranks(2, ["train", str(config)])
    wait_until(lambda: len(checkpoints(run)) >= 1)
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    codes, said = finish_ranks(ranks)
    assert codes == [2, 2], said
    assert "error: cannot write " in said[1]
    assert "rank-00001.safetensors" in said[1]
    assert not any("Traceback" in text for text in said)
    assert checkpoints(run)
    assert [damage(folder) for folder in checkpoints(run)] == [None] * len(checkpoints(run))
