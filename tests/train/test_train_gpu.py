"""benchmarks/train_gpu.py on CPU: both contenders train the same; benchmarks/train_memory.py: one setting."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def benchmark(name: str, *arguments: str) -> Any:
    """The last line that a benchmark prints."""
    command = [sys.executable, f"benchmarks/{name}.py", *arguments]
    env = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_both_contenders_take_the_same_first_step() -> None:
    options = ("--device", "cpu", "--tiny", "--steps", "3", "--be")
    rows = {"context": 64, "rows": 2}
    ours = benchmark("train_gpu", *options, json.dumps({"attention": "documents", "recompute": True, **rows}))
    theirs = benchmark("train_gpu", *options, json.dumps({"hf": True, **rows}))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)
    assert ours["tokens_per_s"] > 0
    assert ours["mfu"] is None, "a CPU's peak is not known"


def test_the_memory_estimate_is_what_is_measured() -> None:
    figures = benchmark("train_memory", "--only", "full ZeRO 0 fp32")
    assert figures["estimate_over_measured"] == pytest.approx(1, abs=0.1)
