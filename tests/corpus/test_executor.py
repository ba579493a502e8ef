"""Ray itself: results, crashes, back-pressure, a cluster that is not there."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from corpus_builder.errors import ConfigError, SourceError
from corpus_builder.executor import Crash, run_units


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is\ntoo much")
    return number


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


def run(tasks: list[int], function: object, address: str, workers: int = 2) -> dict[int, object]:
    return dict(run_units(tasks, function, size=int, workers=workers, address=address))  # type: ignore[arg-type]


def test_every_task_has_its_result(ray_address: str) -> None:
    assert run(list(range(40)), square, ray_address) == {number: number**2 for number in range(40)}


def test_no_tasks_need_no_ray() -> None:
    assert list(run_units([], square, size=int, address="127.0.0.1:1")) == []


def test_an_exception_is_the_result_of_its_task_alone(ray_address: str) -> None:
    results = run([1, 2, 3, 4], fail_at_three, ray_address)
    assert results == {1: 1, 2: 2, 3: Crash("three is too much"), 4: 4}


def test_a_task_that_kills_its_workers_is_a_crash(ray_address: str) -> None:
    results = run([1, 2, 3, 4], die_at_three, ray_address)
    assert results == {1: 1, 2: 2, 3: Crash("WorkerCrashedError"), 4: 4}


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
