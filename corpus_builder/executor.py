"""Runs a function over many tasks on Ray: tasks in, (task, result) pairs out as they finish.

The only importer of ray. Few tasks are in flight at a time, so memory does not grow with the number of tasks,
and the largest start first, so none is left running alone at the end. A worker process that dies is
replaced and its task tried again; a task that kills every worker it meets comes back as `Crash`. Starting a
local Ray takes about 4 s; a task costs about 1 ms.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from corpus_builder.errors import ConfigError, UserFacingError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_RETRIES = 2
_IN_FLIGHT_PER_CPU = 2
_OBJECT_STORE_BYTES = 512 << 20


@dataclass(frozen=True)
class Crash:
    """The result of a task that no worker survived, or whose function raised."""

    reason: str


def run_units(
    tasks: Sequence[TaskT],
    function: Callable[[TaskT], ResultT],
    *,
    size: Callable[[TaskT], int],
    workers: int = 0,
    address: str | None = None,
) -> Iterator[tuple[TaskT, ResultT | Crash]]:
    """Apply `function` to every task, in the order of completion.

    Without `address` a local Ray is started and stopped again; `workers=0` uses every CPU.

    Raises:
        ConfigError: no Ray cluster answers at `address`.
        UserFacingError: `function` raised one.
    """
    if not tasks:
        return
    with _ray(workers, address) as (ray, num_cpus):
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        # On a large cluster `workers` is a bound that only the number of tasks in flight can keep.
        in_flight = workers or _IN_FLIGHT_PER_CPU * num_cpus
        waiting = sorted(tasks, key=size)
        running: dict[Any, TaskT] = {}
        while waiting or running:
            while waiting and len(running) < in_flight:
                task = waiting.pop()
                running[remote.remote(task)] = task
            done, _ = ray.wait(list(running))
            for reference in done:
                yield running.pop(reference), _result(ray, reference)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserFacingError):
            raise error.cause from None
        return Crash(" ".join(str(error.cause).split()) or type(error.cause).__name__)
    except ray.exceptions.RayError as error:
        return Crash(type(error).__name__)


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[tuple[Any, int]]:
    """Ray, connected, and the number of CPUs it has."""
    # Ray reads these when it is imported: no usage reports, no progress lines, no notice on accelerators.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A unit too large for the machine must become a counted failure, not be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    if address is None:
        quiet |= {"num_cpus": workers or None, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        quiet.pop("include_dashboard")
    try:
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cannot reach Ray at {address or 'this machine'}: {reason}",
            remedy="start one with `ray start --head`, or leave --address out; a cluster that asks for "
            "a token wants RAY_AUTH_MODE=token and the same token on every machine",
        ) from None
    try:
        yield ray, max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
