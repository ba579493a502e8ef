"""A cluster whose nodes share no files: who reads what, and what the loss of a node costs."""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_nodes import RayCluster

DRIVER = Path(__file__).with_name("ray_driver.py")
Start = Callable[[int], RayCluster]
Row = dict[str, Any]


def make_files(folder: Path, count: int) -> dict[str, str]:
    """Files of about 200 KB, which Ray keeps in its object stores; name to sha256."""
    random_bytes = random.Random(0).randbytes
    for number in range(count):
        (folder / f"{number}.c").write_bytes(random_bytes(200_000 + number))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def rows(cluster: RayCluster, function: str) -> Iterator[Row]:
    """What the driver prints, as it prints it."""
    command = [sys.executable, str(DRIVER), function, cluster.address, str(cluster.files)]
    # Not in the folder where Ray was started, and with no $NODE: it is a process beside the head's.
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=cluster.environment) as process:
        assert process.stdout
        for line in process.stdout:
            yield json.loads(line)
    assert process.returncode == 0


def assert_complete(found: list[Row], expected: dict[str, str]) -> None:
    assert [row for row in found if "crash" in row] == []
    assert sorted((row["task"], row["sha256"]) for row in found) == sorted(expected.items())
    assert all(row["echoed"] for row in found)


def test_the_drivers_node_reads_and_every_node_works(start_cluster: Start) -> None:
    cluster = start_cluster(1)
    cluster.add("a")
    cluster.add("b")
    expected = make_files(cluster.files, 100)
    found = list(rows(cluster, "hash_prepared"))
    assert_complete(found, expected)
    assert {row["prepared_on"] for row in found} == {"head"}
    assert {row["run_on"] for row in found} == {"head", "a", "b"}
    assert all(row["sees_file"] == (row["run_on"] == "head") for row in found)
    # The other nodes really are without the files: the same work without `prepare` fails there.
    assert any("No such file" in row.get("crash", "") for row in rows(cluster, "hash_file"))


def test_nodes_killed_at_random_cost_no_result(start_cluster: Start) -> None:
    """One node at a time beside a head that only prepares: killed amid its work, then another joins."""
    cluster = start_cluster(0)
    cluster.add("0")
    expected = make_files(cluster.files, 60)
    dice = random.Random(1)
    found: list[Row] = []
    kills = 0
    for row in rows(cluster, "hash_prepared"):
        found.append(row)
        if kills < 3 and sum(row["run_on"] == str(kills) for row in found) == 5:
            time.sleep(dice.uniform(0, 0.3))  # a task takes 0.1 s
            cluster.kill(str(kills))
            kills += 1
            cluster.add(str(kills))
    assert_complete(found, expected)
    assert {row["prepared_on"] for row in found} == {"head"}
    assert [row["run_on"] for row in found].count("3") > 20
    assert {row["run_on"] for row in found} == {"0", "1", "2", "3"}


def test_what_does_not_come_out_whole_elsewhere_is_done_again_at_home(start_cluster: Start) -> None:
    cluster = start_cluster(1)
    cluster.add("a")
    expected = make_files(cluster.files, 30)
    found = list(rows(cluster, "hash_again"))
    assert_complete(found, expected)
    done_again = {row["task"] for row in found if row.get("at_home")}
    assert done_again == {task for task, sha256 in expected.items() if int(sha256, 16) % 2}
    assert 0 < len(done_again) < 30
    assert {row["run_on"] for row in found if row.get("at_home")} == {"head"}
    assert "a" in {row["run_on"] for row in found}
