"""Ray itself: results, crashes, back-pressure, a cluster that is not there."""

import itertools
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from corpus_builder.errors import ConfigError, SourceError
from corpus_builder.executor import Cluster, Crash, run_units


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is\ntoo much")
    return number


def die(*arguments: object) -> int:
    os._exit(1)


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second try"


def user_mistake(number: int) -> int:
    raise SourceError(f"no {number}", remedy="give another")


def stamp(folder: str) -> tuple[float, float]:
    start = time.time()
    time.sleep(0.3)
    return start, time.time()


def text_of(name: str) -> str:
    return Path(name).read_text()


def add_text(name: str, text: str) -> str:
    return f"{name}: {text}"


def add(number: int, prepared: int) -> int:
    return number + prepared


def megabytes(number: int) -> np.ndarray:
    return np.full(30 << 20, number, dtype=np.uint8)


def check_all(number: int, prepared: np.ndarray) -> bool:
    time.sleep(0.1)
    return bool((prepared == number).all())


def num_spilled_mib(address: str) -> int:
    """What Ray has written to disk so far, as its nodes count it."""
    # Not before the cluster's token is in the environment, where ray looks when it is imported.
    from ray._private.internal_api import memory_summary

    summary: str = memory_summary(address, stats_only=True)
    found = re.search(r"Spilled (\d+) MiB", summary)
    return int(found.group(1)) if found else 0


def run(tasks: list[int], function: object, address: str, workers: int = 2) -> dict[int, object]:
    return dict(run_units(tasks, function, size=int, workers=workers, address=address))  # type: ignore[arg-type]


def test_every_task_has_its_result(ray_address: str) -> None:
    assert run(list(range(40)), square, ray_address) == {number: number**2 for number in range(40)}


def test_no_tasks_need_no_ray() -> None:
    assert list(run_units([], square, size=int, address="127.0.0.1:1")) == []


def test_an_exception_is_the_result_of_its_task_alone(ray_address: str) -> None:
    results = run([1, 2, 3, 4], fail_at_three, ray_address)
    assert results == {1: 1, 2: 2, 3: Crash("three is too much"), 4: 4}


def test_a_task_that_kills_its_workers_is_a_crash(
    ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    results = run([1, 2, 3, 4], die_at_three, ray_address)
    assert results == {1: 1, 2: 2, 3: Crash("WorkerCrashedError"), 4: 4}
    assert capfd.readouterr().out == ""  # it is a command's JSON


def test_a_worker_that_dies_once_is_replaced(ray_address: str, tmp_path: Path) -> None:
    task = str(tmp_path / "died")
    assert list(run_units([task], die_once, size=len, workers=1, address=ray_address)) == [
        (task, "second try")
    ]


def test_a_users_mistake_stops_everything(ray_address: str) -> None:
    with pytest.raises(SourceError, match="no 7") as caught:
        run([7], user_mistake, ray_address)
    assert caught.value.remedy == "give another"


def test_workers_bound_what_runs_at_a_time_on_a_larger_cluster(ray_address: str) -> None:
    tasks = ["a", "b", "c"]
    spans = sorted(span for _, span in run_units(tasks, stamp, size=len, workers=1, address=ray_address))
    for (_, end), (start, _) in itertools.pairwise(spans):  # type: ignore[misc]
        assert start >= end


def test_the_largest_task_starts_first(ray_address: str) -> None:
    tasks = ["x" * number for number in (1, 3, 2)]
    order = [task for task, _ in run_units(tasks, stamp, size=len, workers=1, address=ray_address)]
    assert [len(task) for task in order] == [3, 2, 1]


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot reach Ray at nonsense") as caught:
        run([1], square, "nonsense")
    assert "ray start --head" in caught.value.remedy


def test_what_is_prepared_is_the_second_argument(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the driver's working directory, which is not the one that Ray was started in."""
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.c" for number in range(5)]
    for name in names:
        Path(name).write_text(f"text of {name}")
    results = dict(run_units(names, add_text, size=len, prepare=text_of, address=ray_address))
    assert results == {name: f"{name}: text of {name}" for name in names}


@pytest.mark.parametrize(
    ("prepare", "reason"), [(fail_at_three, "three is too much"), (die_at_three, "WorkerCrashedError")]
)
def test_a_task_that_cannot_be_prepared_is_a_crash(ray_address: str, prepare: object, reason: str) -> None:
    results = dict(run_units([1, 2, 3, 4], add, size=int, prepare=prepare, address=ray_address))  # type: ignore[arg-type]
    assert results == {1: 2, 2: 4, 3: Crash(reason), 4: 8}


def test_a_users_mistake_while_preparing_stops_everything(ray_address: str) -> None:
    with pytest.raises(SourceError, match="no 7") as caught:
        list(run_units([7], add, size=int, prepare=user_mistake, address=ray_address))
    assert caught.value.remedy == "give another"


def test_a_lone_node_does_both_steps_at_once(ray_address: str) -> None:
    results = dict(
        run_units([1, 2, 3], die, size=int, prepare=die, whole=square, address=ray_address)  # type: ignore[arg-type]
    )
    assert results == {1: 1, 2: 4, 3: 9}


def test_more_is_prepared_than_the_object_store_holds_and_nothing_spills(ray_address: str) -> None:
    """450 MB pass through a store of 100 MB; the four tasks in flight on two CPUs would not fit."""
    results = run_units(range(15), check_all, size=int, prepare=megabytes, address=ray_address)
    done = dict(itertools.islice(results, 14))
    spilled = num_spilled_mib(ray_address)
    done |= dict(results)
    assert done == dict.fromkeys(range(15), True)
    assert spilled == 0


def test_the_cluster_is_told(ray_address: str) -> None:
    told: list[Cluster] = []
    list(run_units([1], square, size=int, address=ray_address, started=told.append))
    assert told == [Cluster(num_nodes=1, num_cpus=2, dashboard="")]


def test_a_ray_client_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="ray://head:10001") as caught:
        run([1], square, "ray://head:10001")
    assert "on a node of the cluster" in caught.value.remedy
