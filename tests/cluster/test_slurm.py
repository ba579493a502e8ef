"""Training across two nodes under Slurm: started, requeued, warned, robbed of a node; and over ssh.

Whatever happens on its way, a run has to take the steps of one that nothing happened to.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from slurm_nodes import SlurmCluster, missing, slurm_cluster, wait_until

from asmtrain.metrics import MEASURED
from ranks import finish_ranks, start_ranks
from tiny import make_tiny_corpus

REPOSITORY = Path(__file__).parents[2]
ASMTRAIN = REPOSITORY / ".venv" / "bin" / "asmtrain"
STEPS = 12
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0"]
Figures = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with slurm_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_corpus(tmp_path_factory.mktemp("corpus"))


class Job:
    """A run that was submitted as slurm/train.sbatch."""

    def __init__(self, cluster: SlurmCluster, folder: Path, corpus: Path, *options: str) -> None:
        self.cluster = cluster
        self.run = folder / "run"
        self.log = folder / "job.log"
        command = ["env", "-C", str(REPOSITORY), "OMP_NUM_THREADS=1", "sbatch", "--parsable", *TWO_NODES]
        command += [f"--output={self.log}", *options, "slurm/train.sbatch", str(run_config(folder, corpus))]
        self.number = cluster.ask(*command)

    def shown(self, key: str) -> str:
        """What Slurm says of the job, such as its JobState."""
        found = re.search(rf"\b{key}=(\S+)", self.cluster.ask("scontrol", "show", "job", self.number))
        assert found
        return found[1]

    def wait_for_steps(self, count: int) -> None:
        """Wait until the run is on its way."""
        wait_until(lambda: steps_taken(self.run) >= count or self._has_ended(), f"step {count}", 120)
        assert steps_taken(self.run) >= count, self.said()
        assert not (self.run / "finished.json").exists(), "the run was too fast for this test"

    def finish(self) -> Figures:
        """Wait for the end of the job; returns its figures."""
        wait_until(self._has_ended, f"the end of job {self.number}", 180)
        assert self.shown("JobState") == "COMPLETED", self.said()
        assert (self.run / "finished.json").exists(), self.said()
        return figures(self.run)

    def said(self) -> str:
        """The job's own log and those of Slurm."""
        own = self.log.read_text(errors="replace") if self.log.exists() else "no log"
        return f"{own}\n{self.cluster.logs()}"

    def _has_ended(self) -> bool:
        return self.shown("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def run_config(folder: Path, corpus: Path) -> Path:
    """A run of one stage with steps slow enough to interrupt it between them."""
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2}
    stage = {
        "name": "pretrain",
        "objective": "causal_lm",
        "data": [{"corpus": str(corpus), "task": "completion", "max_functions": 24}],
        "trainable": {"kind": "full"},
        "optimizer": {"lr": 3.0e-3},
        "steps": STEPS,
        "context": 128,
        "rows_per_step": 64,
        "micro_rows": 8,
        "eval_rows": 4,
    }
    config = {
        "run": str(folder / "run"),
        "seed": 3,
        "model": {"shape": {**shape, "num_heads": 4, "num_kv_heads": 2}},
        "tokenizer": {"corpus": str(corpus)},
        "checkpoint": {"every_steps": 2},
        "stages": [stage],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def figures(run: Path) -> Figures:
    """What every step gave, in full precision, without its durations."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(step[key] for key in step if key not in MEASURED) for step in steps]


def steps_taken(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_a_cluster_ends_with_the_process_that_started_it(cluster: SlurmCluster) -> None:
    """Killed, so that it could not close it; with the processes go networks and mounts."""
    program = "from slurm_nodes import *; print(SlurmCluster().folder, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "slurm.conf").exists()
    wait_until(lambda: not daemons_of(folder), "its daemons to end", 20)
    shutil.rmtree(folder)
    assert cluster.ask("sinfo", "-h", "-o", "%D") == "2", "another one beside it goes on"


def daemons_of(folder: Path) -> list[str]:
    """Processes that run with a cluster's settings."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FOLDER") == str(folder):
                found.append(process.name())
    return found


@pytest.fixture(scope="module")
def undisturbed(cluster: SlurmCluster, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """The steps of a job on two nodes that nothing happened to."""
    job = Job(cluster, tmp_path_factory.mktemp("undisturbed"), corpus)
    found = job.finish()
    assert [step[0] for step in found] == list(range(1, STEPS + 1))
    assert found[-1][3] < found[0][3] - 0.1, "it learns"
    return found


def test_the_same_job_takes_the_same_steps_and_so_do_local_ranks(
    cluster: SlurmCluster, corpus: Path, undisturbed: Figures, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    assert Job(cluster, again, corpus).finish() == undisturbed
    local = tmp_path / "local"
    local.mkdir()
    codes, said = finish_ranks(start_ranks(2, ["train", str(run_config(local, corpus))]))
    assert codes == [0, 0], said
    assert figures(local / "run") == undisturbed


def test_a_job_that_is_warned_and_then_requeued_goes_on(
    cluster: SlurmCluster, corpus: Path, undisturbed: Figures, tmp_path: Path
) -> None:
    """Warned as Slurm does ahead of the time limit: USR2 to every rank, and not to the batch script."""
    job = Job(cluster, tmp_path, corpus)
    job.wait_for_steps(3)
    cluster.ask("scancel", "--signal=USR2", job.number)
    wait_until(lambda: job.shown("Restarts") == "1", "the job to be queued again", 60)
    saved = steps_taken(job.run)
    job.wait_for_steps(saved + 2)
    cluster.ask("scontrol", "requeue", job.number)
    assert job.finish() == undisturbed
    assert job.shown("Restarts") == "2"
    taken = [int(step) for step in re.findall(r"pretrain (\d+)/", job.log.read_text())]
    assert taken[: saved + 2] == list(range(1, saved + 3)), "a warning costs no step"
    assert taken.count(1) == 1, "it did not begin anew"


@pytest.mark.slow  # Slurm may send the node, restarted, a late order to end the job: another restart
def test_a_job_whose_node_is_killed_goes_on_when_there_is_another(
    cluster: SlurmCluster, corpus: Path, undisturbed: Figures, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path, corpus)
    job.wait_for_steps(5)
    cluster.kill("n2")
    wait_until(lambda: "a node of this job is lost" in job.log.read_text(), "the job to notice", 120)
    cluster.start("n2")
    assert job.finish() == undisturbed
    assert job.log.read_text().count("pretrain 1/") == 1, "it did not begin anew"


def test_the_doctor_finds_two_nodes_that_fit(cluster: SlurmCluster, corpus: Path, tmp_path: Path) -> None:
    """Started by srun alone: the ranks find each other by Slurm's variables."""
    doctor = [ASMTRAIN, "doctor", "--cluster", "--config", run_config(tmp_path, corpus)]
    done = cluster.run(["srun", "--nodes=2", "--ntasks-per-node=1", *doctor], timeout_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2: 1 on n1, 1 on n2; gloo over eth0" in done.stdout
    assert "A run over these ranks has what it needs." in done.stdout


def test_the_deepspeed_launcher_over_ssh_takes_the_same_steps(
    cluster: SlurmCluster, corpus: Path, undisturbed: Figures, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    done = cluster.run(
        [REPOSITORY / "launch" / "train.sh", run_config(tmp_path, corpus)],
        environment={"HOSTFILE": str(tmp_path / "hosts"), "OMP_NUM_THREADS": "1"},
        timeout_s=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures(tmp_path / "run") == undisturbed
