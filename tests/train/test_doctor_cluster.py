"""The doctor on every rank: nothing wrong where all is well, and what differs named with its rank."""

import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from asmtrain import cluster
from asmtrain.cli import main
from asmtrain.dist import World
from ranks import finish_ranks, free_port, on_ranks, rank_environment, start_ranks

HOST = socket.gethostname()


def doctor_config(folder: Path, *, run: str, corpus: str) -> Path:
    """A config of which the doctor reads the run folder and the corpora."""
    stage = {
        "name": "pretrain",
        "objective": "causal_lm",
        "data": [{"corpus": corpus, "task": "completion"}],
        "trainable": {"kind": "full"},
        "optimizer": {"lr": 1.0e-3},
        "steps": 1,
        "context": 64,
        "rows_per_step": 2,
        "micro_rows": 1,
    }
    shape = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1}
    config = {
        "run": run,
        "seed": 0,
        "model": {"shape": {**shape, "num_heads": 1, "num_kv_heads": 1}},
        "tokenizer": {"corpus": corpus},
        "stages": [stage],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_two_ranks_of_one_machine_have_what_a_run_needs(tiny_corpus: Path, tmp_path: Path) -> None:
    config = doctor_config(tmp_path, run=str(tmp_path / "run"), corpus=str(tiny_corpus))
    codes, said = finish_ranks(start_ranks(2, ["doctor", "--cluster", "--config", str(config)]))
    assert codes == [0, 0], said
    assert said[1] == "", "rank 0 speaks for all"
    lines = [line.split() for line in said[0].splitlines()]
    checked = [line[1] for line in lines if line and line[0] == "ok"]
    assert checked == ["ranks", "all-reduce", "clocks", "versions", "config", "run", "shards"]
    assert f"2: 2 on {HOST}; gloo" in said[0]
    assert "GB/s a rank" in said[0]
    assert "4 shards" in said[0]
    assert not (tmp_path / "run").exists(), "it leaves nothing"


def test_what_differs_on_a_rank_is_named(tiny_corpus: Path, tmp_path: Path) -> None:
    """A rank in another folder, with another version of a package, a shard cut short and no run folder."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        shutil.copytree(tiny_corpus, folder / "corpus")
        doctor_config(folder, run="run", corpus="corpus")
    (folders[1] / "run").write_text("a file")
    shard = next((folders[1] / "corpus").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    other = tmp_path / "other" / "transformers-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.1\n")
    paths = [os.environ.get("PYTHONPATH", ""), f"{other.parent}:{os.environ.get('PYTHONPATH', '')}"]
    port = free_port()
    first_of_host = {"LOCAL_RANK": "0"}  # the one that looks at the shards
    command = [sys.executable, "-m", "asmtrain.cli", "doctor", "--cluster", "--config", "config.yaml"]
    ranks = [
        subprocess.Popen(
            command,
            cwd=folders[rank],
            env={**os.environ, **rank_environment(rank, 2, port), **first_of_host, "PYTHONPATH": paths[rank]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    codes, said = finish_ranks(ranks)
    assert codes == [1, 1], said
    told = " ".join(said[0].split())
    rank = f"rank 1 ({HOST})"
    assert f"wrong: versions: {rank}: transformers 0.1 instead of" in told
    assert f"wrong: run folder: {rank}: does not see what rank 0 wrote" in told
    assert f"wrong: shards: {rank}: corpus/{shard.name} has" in told
    assert "wrong: config" not in told, "both have a file of this name with the same bytes"
    assert "rank 0 (" not in told


def test_a_clock_that_is_ahead_is_named() -> None:
    checks = on_ranks(2, _examine_an_hour_apart)
    wrong = {check.name: check.wrong for check in checks if check.wrong}
    assert wrong == {"clocks": (f"rank 1 ({HOST}): +3600.0 s from rank 0's clock",)}


def _examine_an_hour_apart(world: World) -> list[cluster.Check]:
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 3600 * world.rank)
        return list(cluster.examine(world))


def test_a_rank_that_never_comes_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cluster, "_MEETING_TIMEOUT", timedelta(seconds=2))
    for name, value in rank_environment(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--cluster"]) == 2
    assert "rank 0 of 2 on" in capsys.readouterr().err
