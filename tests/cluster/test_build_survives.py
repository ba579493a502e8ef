"""A corpus build on nodes that share no files, killed at many points: its shards are those of a quiet one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from ray_nodes import RayCluster

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "corpus"))

from samples import shard_hashes, write_config  # noqa: E402

Start = Callable[[int], RayCluster]
NUM_UNITS = 40
FUNCTION = """\
int {name}(const int *x, int n)
{{
    int s = {seed};
    while (n-- > {seed} % 7)
        s = s * {factor} ^ x[n] >> {shift};
    return s;
}}
"""


def make_project(folder: Path) -> Path:
    """Units of one to four functions, no two alike."""
    folder.mkdir()
    dice = random.Random(0)
    for unit in range(NUM_UNITS):
        functions = (
            FUNCTION.format(
                name=f"f{unit}_{i}", seed=100 * unit + i, factor=dice.randrange(3, 9999, 2), shift=unit % 13
            )
            for i in range(dice.randint(1, 4))
        )
        (folder / f"u{unit:02d}.c").write_text("\n".join(functions))
    return folder


class Build:
    """`corpus-builder build` into one folder, as often as it takes."""

    def __init__(self, folder: Path, project: Path, *options: str, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        settings = {"shards": {"samples": 10}, "levels": ["O0", "O2"]}
        path = write_config(folder, projects={"many": project}, **settings)
        self.output = folder / "corpus"
        self._command = [sys.executable, "-m", "corpus_builder.cli", "build", str(path), *options]
        self._environment = environment
        self._log = folder / "build.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def num_parts(self) -> int:
        return len(list((self.output / "work" / "parts").glob("*/*.part")))

    def is_publishing(self) -> bool:
        return any((self.output / "work" / name).exists() for name in ("shards", "dedup"))

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def is_running(self) -> bool:
        """False for a build that came to its end; one that failed is a failed test."""
        assert self._process
        status = self._process.poll()
        assert status in (None, 0), self._log.read_text()
        return status is None

    def finish(self, timeout_s: float = 200) -> None:
        assert self._process
        self._process.wait(timeout_s)
        assert not self.is_running()

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        """Its exit status, and what it said."""
        assert self._process
        return self._process.wait(timeout_s), self._log.read_text()

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        assert self._process.wait() in (0, -signal.SIGKILL)


class Kills:
    """Kills parts of a cluster and of the build on it; nodes are made up for in the background."""

    def __init__(self, cluster: RayCluster, dice: random.Random) -> None:
        self.cluster = cluster
        self.done: list[str] = []
        self._dice = dice
        self._nodes = ["0", "1"]
        for name in self._nodes:
            cluster.add(name)
        self._number = len(self._nodes)
        self._pool = ThreadPoolExecutor(1)
        self._replacement: Future[None] | None = None

    def driver(self, build: Build) -> None:
        build.kill()
        self._say("driver", build)
        build.start()

    def worker(self, build: Build) -> None:
        workers = self.cluster.workers()
        if not workers:
            return
        # Those at work come first; of two CPUs there are rarely more than three.
        try:
            victim = self._dice.choice(workers[:3])
            title = victim.cmdline()[0]
            victim.kill()
        except (psutil.Error, IndexError):
            return  # it ended by itself
        self._say(f"worker {title}", build)

    def node(self, build: Build) -> None:
        """One at a time: a node stays."""
        if self._replacement and not self._replacement.done():
            return
        self.join()
        name = self._nodes.pop(self._dice.randrange(len(self._nodes)))
        self.cluster.kill(name)
        self._say(f"node {name}", build)
        new = str(self._number)
        self._number += 1
        self._nodes.append(new)
        self._replacement = self._pool.submit(self.cluster.add, new)

    def join(self) -> None:
        """Wait for the node that is being added."""
        if self._replacement:
            self._replacement.result()

    def _say(self, what: str, build: Build) -> None:
        self.done.append(what.split()[0])
        state = ", publishing" if build.is_publishing() else ""
        print(f"kill {len(self.done)}: {what} at {build.num_parts} of {NUM_UNITS} units{state}", flush=True)


def quiet_build(folder: Path, project: Path) -> Build:
    """One worker, and nothing in its way; it is left running."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    build = Build(folder, project, "--set", "workers=1", environment=environment)
    build.start()
    return build


def wait_until(build: Build, parts: int, timeout_s: float = 120) -> bool:
    """Wait for that many parts, or for the publishing of all; False where the build is done before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if build.num_parts >= parts and (parts < NUM_UNITS or build.is_publishing()):
            return True
        if not build.is_running():
            return False
        time.sleep(0.002)
    raise TimeoutError(f"{build.num_parts} of {parts} parts after {timeout_s:.0f} s")


def on_cluster(cluster: RayCluster, name: str, project: Path) -> Build:
    return Build(cluster.files / name, project, "--address", cluster.address, environment=cluster.environment)


@pytest.fixture
def project(start_cluster: Start, need: Callable[..., None]) -> tuple[RayCluster, Path]:
    """A cluster whose head only prepares, and a project that its other nodes do not have."""
    need("gcc")
    cluster = start_cluster(0)
    return cluster, make_project(cluster.files / "project")


def test_a_build_survives_its_driver_and_a_node(project: tuple[RayCluster, Path], tmp_path: Path) -> None:
    cluster, source = project
    quiet = quiet_build(tmp_path / "quiet", source)
    kills = Kills(cluster, random.Random(0))
    quiet.finish()
    expected = shard_hashes(quiet.output)
    build = on_cluster(cluster, "killed", source)
    build.start()
    for parts, kill in ((5, kills.node), (20, kills.driver)):
        assert wait_until(build, parts)
        kill(build)
    build.finish()
    kills.join()
    assert kills.done == ["node", "driver"]
    assert shard_hashes(build.output) == expected
    assert len([name for name in expected if name.startswith("train")]) > 5


@pytest.mark.slow
def test_a_build_whose_own_node_dies_publishes_nothing(project: tuple[RayCluster, Path]) -> None:
    cluster, source = project
    cluster.add("0")
    build = on_cluster(cluster, "lost", source)
    build.start()
    assert wait_until(build, 5)
    cluster.kill_agent("head")
    status, said = build.end()
    print(said[-2000:])
    assert not (build.output / "index.json").exists()
    assert status == 2
    assert "error: " in said
    assert "Traceback" not in said
    assert build.num_parts >= 5


@pytest.mark.slow
def test_a_build_survives_twenty_kills_at_random_points(
    project: tuple[RayCluster, Path], tmp_path: Path
) -> None:
    """One build after the other, each killed from its planning to its publishing, until it was enough."""
    cluster, source = project
    seed = int(os.environ.get("ASMTRAIN_SEED", random.randrange(1 << 32)))
    print(f"\nASMTRAIN_SEED={seed}")
    dice = random.Random(seed)
    quiet = quiet_build(tmp_path / "quiet", source)
    kills = Kills(cluster, dice)
    quiet.finish()
    expected = shard_hashes(quiet.output)
    round_number = 0
    while len(kills.done) < 20 or {"driver", "worker", "node"} - set(kills.done):
        build = on_cluster(cluster, f"round{round_number}", source)
        build.start()
        # 0 is while it starts, the last while it writes shards.
        for parts in sorted([0, NUM_UNITS, *(dice.randrange(NUM_UNITS) for _ in range(10))]):
            if not wait_until(build, parts):
                break
            time.sleep(dice.uniform(0, 3) if parts == 0 else dice.uniform(0, 0.3) * (parts < NUM_UNITS))
            if build.is_running():
                at_work = 0 < parts < NUM_UNITS
                dice.choice([kills.driver, kills.worker, kills.node] if at_work else [kills.driver])(build)
        build.finish()
        assert (build.output / "failures.jsonl").read_text() == ""
        assert shard_hashes(build.output) == expected, f"round {round_number}"
        shutil.rmtree(build.output)
        round_number += 1
    kills.join()
    print(f"{len(kills.done)} kills in {round_number} builds: {dict(sorted(_counted(kills.done).items()))}")


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in names}
