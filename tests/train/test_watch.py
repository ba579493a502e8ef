"""Ranks that hang or die: the others end within seconds, say so once, and leave their stacks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ranks import finish_ranks, free_port, on_ranks, start_ranks
from test_train import _steps_taken, run_config, wait_until

REPOSITORY = Path(__file__).parents[2]
COLLECTIVE = re.compile(r"in (all_reduce|broadcast|barrier|all_gather|_all_gather_base|reduce)\b")


def endless(folder: Path, corpus: Path, hang_minutes: float) -> Path:
    """A run of one stage that takes longer than any test."""
    path = run_config(folder, corpus, guard={"hang_minutes": hang_minutes})
    settings = yaml.safe_load(path.read_text())
    settings["stages"] = [settings["stages"][0] | {"steps": 100_000}]
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_rank_that_stands_still_ends_the_run_at_the_limit(tiny_corpus: Path, tmp_path: Path) -> None:
    """SIGSTOP of rank 1: rank 0 waits for it in a collective, and its stacks say so."""
    ranks = start_ranks(2, ["train", str(endless(tmp_path, tiny_corpus, hang_minutes=0.25))])
    run = tmp_path / "run"
    try:
        wait_until(lambda: _steps_taken(run) >= 3)
        ranks[1].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        said = ranks[0].communicate(timeout=60)[0]
        assert 10 < time.monotonic() - stopped < 25, "15 seconds are the limit"
    finally:
        ranks[1].kill()
    finish_ranks(ranks[1:])
    assert ranks[0].returncode == 1
    assert said.count("error: no rank got on for 0.3 minutes; the Python stacks of all ranks are in") == 1
    assert "remedy: " in said
    stacks = (run / "hangs" / "rank-00000.txt").read_text()
    assert stacks.startswith("rank 0, process ")
    assert COLLECTIVE.search(stacks), stacks
    assert "in _train\n" in stacks


def _sleep_on_one_rank(world: Any, folder: Path) -> None:
    from asmtrain import dist
    from asmtrain.watch import beat, watched

    with watched(folder, world, 0.05):
        for _ in range(40):  # longer than the limit: rank 0 waits for rank 1, which works
            if not world.is_main:
                beat()
                time.sleep(0.1)
        dist.barrier()
        if not world.is_main:
            time.sleep(1000)
        dist.barrier()


def test_work_of_any_rank_counts_for_all_and_each_writes_its_stacks(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="exit code 1"):
        on_ranks(2, _sleep_on_one_rank, tmp_path)
    waiting, sleeping = ((tmp_path / "hangs" / f"rank-0000{rank}.txt").read_text() for rank in range(2))
    assert "in barrier" in waiting
    assert "in barrier" not in sleeping
    assert "in _sleep_on_one_rank" in sleeping


def _end_differently(world: Any, folder: Path, accepting_s: float) -> None:
    """Rank 1 meets a mistake as soon as it has called; rank 0 answers the call so much later."""
    from asmtrain import watch
    from asmtrain.errors import LaunchError

    class Late(watch._Watch):
        def _accept(self, server: socket.socket) -> None:
            time.sleep(accepting_s)
            super()._accept(server)

    watch._Watch = Late  # type: ignore[misc]
    with watch.watched(folder, world, None):
        if not world.is_main:
            raise LaunchError("a mistake of rank 1 alone")
        time.sleep(1000)


@pytest.mark.parametrize("accepting_s", [0, 1])
def test_a_mistake_of_one_rank_ends_the_others(tmp_path: Path, accepting_s: float) -> None:
    started = time.monotonic()
    with pytest.raises(Exception, match=r"a mistake of rank 1 alone|exit code 2"):
        on_ranks(2, _end_differently, tmp_path, accepting_s)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "hangs").exists(), "nothing hung, nobody died"


def _refuse_slowly(world: Any, folder: Path) -> None:
    """Rank 0 meets a mistake, and takes its time to close what it has open."""
    from asmtrain import dist
    from asmtrain.errors import LaunchError
    from asmtrain.watch import watched

    def refuse() -> None:
        raise LaunchError("a mistake that rank 0 met")

    try:
        with watched(folder, world, None):
            try:
                dist.on_main(refuse)
            finally:
                time.sleep(2 if world.is_main else 0)
    except LaunchError:
        (folder / "told").touch()
        raise


def test_rank_0_tells_of_its_mistake_before_the_others_end_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"a mistake that rank 0 met|exit code 2"):
        on_ranks(2, _refuse_slowly, tmp_path)
    assert (tmp_path / "told").exists()


# A rank that is killed, under each launcher


def killed_rank_1(command: list[str], run: Path) -> tuple[int, str, float]:
    """Start a launcher's command, kill rank 1 after some steps; its code, what was said, seconds it took."""
    launcher = subprocess.Popen(
        command,
        env=os.environ | {"RANKS": "2", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: _steps_taken(run) >= 3 or launcher.poll() is not None)
        (rank,) = [
            process
            for process in psutil.Process(launcher.pid).children(recursive=True)
            if process.environ().get("RANK") == "1" and "asmtrain.cli" in process.cmdline()
        ]
        rank.kill()
        killed = time.monotonic()
        said = launcher.communicate(timeout=60)[0]
        return launcher.returncode, said, time.monotonic() - killed
    finally:
        for process in (
            psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []
        ):
            process.kill()
        launcher.kill()


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_killed_rank_takes_the_job_down(tiny_corpus: Path, tmp_path: Path, launcher: str) -> None:
    config = endless(tmp_path, tiny_corpus, hang_minutes=60)
    command = {
        "deepspeed": [str(REPOSITORY / "launch" / "train.sh"), str(config)],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *(f"--master-port={free_port()}", "-m", "asmtrain.cli", "train", str(config)),
        ],
    }[launcher]
    code, said, seconds = killed_rank_1(command, tmp_path / "run")
    assert code != 0
    assert seconds < 30
    assert re.search(r"error: rank 1 on \S+ is gone, and the run ends with it", said), said


def test_a_killed_rank_takes_the_others_down_without_a_launcher(tiny_corpus: Path, tmp_path: Path) -> None:
    """As under srun, where each rank is on its own."""
    for victim in (1, 0):
        folder = tmp_path / str(victim)
        ranks = start_ranks(2, ["train", str(endless(folder, tiny_corpus, hang_minutes=60))])
        wait_until(lambda folder=folder: _steps_taken(folder / "run") >= 3)
        ranks[victim].kill()
        killed = time.monotonic()
        codes, said = finish_ranks(ranks)
        assert time.monotonic() - killed < 10
        assert codes[1 - victim] == 1
        other = said[1 - victim]
        assert re.search(rf"error: rank {victim}\b.* is gone, and the run ends with it", other), other
        assert "Traceback" not in other
