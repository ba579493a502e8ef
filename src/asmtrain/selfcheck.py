"""`asmtrain selfcheck resume`: does a run of this config, killed and started again, take the same steps?

In: a config. Out: a table, and 0 where losses and weights are equal bit for bit, else 1 and the first step
that differs. Every stage is cut to a few steps and trained in a temporary folder, on ranks of this machine:
once undisturbed; then killed with SIGKILL while it writes a checkpoint, again at a random step after that,
and taken to its end. Invariant: the run folder that the config names is not touched. Cost: four starts,
twice the steps, disk for two runs (under TMPDIR), and one tokenising of the corpus, which both runs share.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.table import Table

from asmtrain import terminal
from asmtrain.checkpoint import MANIFEST, stage_folders
from asmtrain.config import TrainConfig, load_train_config
from asmtrain.errors import LaunchError
from asmtrain.metrics import MEASURED

_POLL_S = 0.0005
_TAIL_LINES = 8


@dataclass(frozen=True)
class StageVerdict:
    """How the two runs compare in one stage."""

    name: str
    steps: int
    first_difference: str
    """Step and figures where the runs part; empty where no step differs."""
    weights_equal: bool

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.first_difference and self.weights_equal


def run_resume(config: Path, overrides: Sequence[str], *, steps: int, num_ranks: int | None) -> int:
    """Prove or refute it; returns the exit code.

    Raises:
        ConfigError: the config has mistakes.
        LaunchError: a run failed of itself, or was over before it could be killed.
    """
    num_ranks = num_ranks or torch.cuda.device_count() or 2
    home = Path(tempfile.mkdtemp(prefix="asmtrain-selfcheck-"))
    given = load_train_config(config, overrides)
    straight, killed = (_short(given, home / name, steps) for name in ("straight", "killed"))
    print(f"{num_ranks} ranks, {steps} steps a stage, in {home}", flush=True)
    try:
        _train(straight, num_ranks, "undisturbed")
        killed.run.mkdir()
        (killed.run / "cache").symlink_to(straight.run / "cache")
        _disturb(killed, num_ranks, steps)
    except LaunchError:
        shutil.rmtree(home)
        raise
    verdicts = compare(straight, killed)
    terminal.console().print(_table(verdicts))
    different = [verdict for verdict in verdicts if not verdict.equal]
    if different:
        first = different[0]
        print(f"DIFFERENT: stage {first.name}: {first.first_difference or 'only the weights'}; see {home}")
        return 1
    shutil.rmtree(home)
    print("equal bit for bit: a run of this config may be killed at any time")
    return 0


def _short(config: TrainConfig, run: Path, steps: int) -> TrainConfig:
    """The config with a few steps a stage and two checkpoints in each, in another folder."""
    stages = tuple(stage.model_copy(update={"steps": steps}) for stage in config.stages)
    saving = config.checkpoint.model_copy(update={"every_steps": max(1, steps // 3)})
    return config.model_copy(update={"run": run, "stages": stages, "checkpoint": saving})


def _disturb(config: TrainConfig, num_ranks: int, steps: int) -> None:
    """Train, killed twice on the way."""
    total = steps * len(config.stages)
    after = random.randrange(total - steps + 1)

    def writes() -> bool:
        return _steps_taken(config.run) >= after and any((config.run / "checkpoints").glob(".*"))

    _train(config, num_ranks, "killed while it writes a checkpoint", kill_when=writes)
    taken = _steps_taken(config.run)
    wanted = random.randrange(taken + 1, max(total, taken + 2))
    _train(config, num_ranks, "killed again", kill_when=lambda: _steps_taken(config.run) >= wanted)
    _train(config, num_ranks, "to its end")


def _steps_taken(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _train(
    config: TrainConfig, num_ranks: int, what: str, *, kill_when: Callable[[], bool] | None = None
) -> None:
    """One start of all ranks, to the end or until they are to be killed."""
    started = time.monotonic()
    path, log = config.run.with_suffix(".yaml"), config.run.with_suffix(".log")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    ranks = _start(path, num_ranks, log)
    was_killed = False
    try:
        while any(rank.poll() is None for rank in ranks) and not was_killed:
            was_killed = kill_when is not None and kill_when()
            time.sleep(_POLL_S)
    finally:
        for rank in ranks:
            rank.kill()
        codes = [rank.wait() for rank in ranks]
    if not was_killed and any(codes):
        raise LaunchError(
            f"the run ended with {max(codes)}:\n{_tail(log)}", remedy="start asmtrain train with this config"
        )
    if not was_killed and kill_when:
        raise LaunchError("the run was over before it could be killed", remedy="try again with more --steps")
    seconds = time.monotonic() - started
    print(f"  {config.run.name}: {what}, after {_steps_taken(config.run)} steps, {seconds:.0f} s", flush=True)


def _start(config: Path, num_ranks: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """The ranks of a run on this machine, with the variables that a launcher sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not torch.cuda.is_available():
        threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "asmtrain.cli", "train", str(config)]
    with open(log, "ab") as stream:
        return [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)},
                stdout=stream,
                stderr=stream,
            )
            for rank in range(num_ranks)
        ]


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def compare(straight: TrainConfig, killed: TrainConfig) -> list[StageVerdict]:
    """Stage by stage: every figure of every step, and every weight."""
    expected, got = _figures(straight.run), _figures(killed.run)
    verdicts = []
    for index, stage in enumerate(straight.stages):
        sums = [_weight_sums(run, index) for run in (straight.run, killed.run)]
        difference = _first_difference(expected.get(stage.name, []), got.get(stage.name, []))
        verdicts.append(
            StageVerdict(stage.name, stage.steps, difference, bool(sums[0]) and sums[0] == sums[1])
        )
    return verdicts


def _figures(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Each stage's steps, without what is measured."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        figures = json.loads(line)
        for name in MEASURED:
            figures.pop(name, None)
        stages.setdefault(figures["stage"], []).append(figures)
    return stages


def _first_difference(expected: list[dict[str, Any]], got: list[dict[str, Any]]) -> str:
    for ours, theirs in zip(expected, got, strict=False):
        for key, value in ours.items():
            if theirs[key] != value:
                return f"step {ours['step']}: {key} {value!r} undisturbed, {theirs[key]!r} killed"
    if len(expected) != len(got):
        return f"{len(expected)} steps undisturbed, {len(got)} killed"
    return ""


def _weight_sums(run: Path, index: int) -> dict[str, str]:
    """The sha256 of each file of weights in a stage's result."""
    sums = json.loads((stage_folders(run)[index] / MANIFEST).read_text(encoding="utf-8"))
    return {name: value for name, value in sums.items() if name.endswith(".safetensors")}


def _table(verdicts: Sequence[StageVerdict]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "steps", "losses and norms", "weights"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        losses = "different" if verdict.first_difference else "equal"
        table.add_row(
            verdict.name, str(verdict.steps), losses, "equal" if verdict.weights_equal else "different"
        )
    return table
