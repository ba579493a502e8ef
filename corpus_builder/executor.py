"""Runs a function over many tasks on Ray: tasks in, (task, result) pairs out as they finish.

The only importer of ray. With `prepare`, what it returns for a task is the function's second argument: it
runs on the driver's own node, which holds the files; `function` runs on any node, and needs none of them.
What was prepared goes from node to node through Ray's object stores, never through the driver. `whole` does
both at once where the files are: it takes their place while the driver's node is the only one, and has the
last word on tasks that did not come out whole elsewhere.

Invariant: every task comes out once, whatever dies on the way but the driver's node. A process or a node that
is lost is made up for and its tasks run again; a task that kills every worker it meets comes out as `Crash`.
Tasks in flight are bounded by number and by the bytes prepared for them, so memory does not grow with the
number of tasks and the object store does not spill; the largest start first, so none is left running alone
at the end. Starting a local Ray takes about 4 s; a task costs about 1 ms, twice that with `prepare`.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from corpus_builder.errors import ClusterLost, ConfigError, UserFacingError

TaskT = TypeVar("TaskT")
PreparedT = TypeVar("PreparedT")
ResultT = TypeVar("ResultT")

_RETRIES = 3
_IN_FLIGHT_PER_CPU = 2
_STORE_BYTES_PER_CPU = 64 << 20
_SMALLEST_STORE_BYTES = 512 << 20
_STORE_SHARE = 0.5
"""Of the object store on the driver's node, for what is prepared; results need room as well."""
_UNMEASURED = 2
"""Tasks to prepare at a time until the size of one is known."""
_POLL_S = 0.05
_REFRESH_S = 5.0


@dataclass(frozen=True)
class Crash:
    """The result of a task that no worker survived, or whose function raised."""

    reason: str


@dataclass(frozen=True)
class Cluster:
    """What the tasks run on, as it is when they start; nodes may join and leave later."""

    num_nodes: int
    num_cpus: int
    dashboard: str
    """URL of Ray's dashboard, or empty where none runs."""


def run_units(
    tasks: Sequence[TaskT],
    function: Callable[..., ResultT],
    *,
    size: Callable[[TaskT], int],
    prepare: Callable[[TaskT], PreparedT] | None = None,
    whole: Callable[[TaskT], ResultT] | None = None,
    is_whole: Callable[[ResultT], bool] = lambda result: True,
    workers: int = 0,
    address: str | None = None,
    started: Callable[[Cluster], None] | None = None,
) -> Iterator[tuple[TaskT, ResultT | Crash]]:
    """Apply `function(task)`, or `function(task, prepare(task))`, to every task, in the order of completion.

    `prepare` and `whole` run in the driver's working directory on the driver's node. Without `address` a
    local Ray is started and stopped again; `workers=0` uses every CPU. `started` is told the cluster once.

    Raises:
        ConfigError: no Ray cluster answers at `address`, or this machine is no node of it.
        ClusterLost: the driver's own node died.
        UserFacingError: one of the functions raised it.
    """
    if not tasks:
        return
    with _ray(workers, address) as (ray, cluster):
        if started:
            started(cluster)
        # A local Ray has as many CPUs as workers; on a cluster only the tasks in flight can keep the bound.
        flight = _Flight(ray, function, prepare, whole, bound=workers if address else 0)
        died: list[TaskT] = []
        partial: list[TaskT] = []
        for task, result, is_final in flight.run(sorted(tasks, key=size)):
            if isinstance(result, _Died):
                died.append(task)
            elif is_final or isinstance(result, Crash) or is_whole(result):
                yield task, result
            else:
                partial.append(task)
        # Chance may kill one long task's workers several times; with nothing else to do, it is tried again.
        for task, result, _ in flight.run([*partial, *died], at_home=True):
            yield task, Crash(result.reason) if isinstance(result, _Died) else result


@dataclass(frozen=True)
class _Died:
    """No worker survived the task this time."""

    reason: str


class _Flight:
    """The tasks in flight."""

    def __init__(self, ray: Any, function: Any, prepare: Any, whole: Any, *, bound: int) -> None:
        self._ray = ray
        self._bound = bound
        self._function = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        node = _driver_node(ray)
        self._prepare = _on_node(ray, prepare, node) if prepare else None
        self._whole = _on_node(ray, whole, node) if whole else None
        # Ray does not count tasks that take no CPU, so a node without any is bound by its real ones.
        own = node["Resources"]
        self._most_preparing = _IN_FLIGHT_PER_CPU * int(own.get("CPU", 0) or os.cpu_count() or 1)
        self._most_bytes: float = _STORE_SHARE * own["object_store_memory"]
        self._running: dict[Any, tuple[Any, bool]] = {}
        """Reference of the result to task, and whether it is the last word on it."""
        self._preparing: dict[Any, Any] = {}
        """Reference of what is being prepared to that of the result."""
        self._bytes: dict[Any, int] = {}
        """Reference of the result to the size of what was prepared for it."""
        self._recent: deque[int] = deque(maxlen=16)
        self._num_cpus = self._num_nodes = 0
        self._counted_at = float("-inf")

    def run(self, waiting: list[Any], *, at_home: bool = False) -> Iterator[tuple[Any, Any, bool]]:
        """Run all tasks of the list, the last first; with each the word whether its result is final.

        `at_home` runs them where the files are, if there is a function for that.
        """
        while waiting or self._running:
            while waiting and self._has_room():
                self._submit(waiting.pop(), at_home=at_home)
            for reference in self._wait():
                self._bytes.pop(reference, None)
                task, is_final = self._running.pop(reference)
                yield task, _outcome(self._ray, reference), is_final
            self._measure()

    def _has_room(self) -> bool:
        self._count()
        if not self._running:
            return True
        if len(self._running) >= (self._bound or _IN_FLIGHT_PER_CPU * self._num_cpus):
            return False
        if self._prepare is None:
            return True
        if len(self._preparing) >= (self._most_preparing if self._recent else _UNMEASURED):
            return False
        # Tasks of about the same size follow each other, so the latest ones tell what the next will need.
        expected = max(self._recent, default=0) * (len(self._preparing) + 1)
        return sum(self._bytes.values()) + expected <= self._most_bytes

    def _submit(self, task: Any, *, at_home: bool) -> None:
        if self._whole and (at_home or self._num_nodes == 1):
            self._running[self._whole.remote(task)] = task, True
            return
        is_final = self._whole is None
        if self._prepare is None:
            self._running[self._function.remote(task)] = task, is_final
            return
        prepared = self._prepare.remote(task)
        reference = self._function.remote(task, prepared)
        self._running[reference] = task, is_final
        self._preparing[prepared] = reference

    def _wait(self) -> list[Any]:
        """The results that are there; waits for one, but not for so long that other work is kept waiting."""
        references = list(self._running)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        if not done:
            timeout = _POLL_S if self._preparing else _REFRESH_S
            done, _ = self._ray.wait(references, timeout=timeout)
        found: list[Any] = done
        return found

    def _measure(self) -> None:
        """Let go of what is prepared by now: its task keeps it, and its size is known."""
        if not self._preparing:
            return
        references = list(self._preparing)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        places = self._ray.experimental.get_object_locations(done) if done else {}
        for prepared in done:
            reference = self._preparing.pop(prepared)
            size = places[prepared].get("object_size") or 0
            self._recent.append(size)
            if reference in self._running:
                self._bytes[reference] = size

    def _count(self) -> None:
        """Nodes join late, and leave."""
        now = time.monotonic()
        if now >= self._counted_at + _REFRESH_S:
            self._num_cpus, self._num_nodes = _num_cpus(self._ray), _num_nodes(self._ray)
            self._counted_at = now


def _num_cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _num_nodes(ray: Any) -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _driver_node(ray: Any) -> dict[str, Any]:
    own = ray.get_runtime_context().get_node_id()
    node: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == own)
    return node


def _on_node(ray: Any, prepare: Callable[[Any], Any], node: dict[str, Any]) -> Any:
    """`prepare` as a remote function that runs on that node alone, in the working directory of now."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = Path.cwd()

    def prepare_here(task: Any) -> Any:
        with contextlib.chdir(folder):  # a cluster's workers start where Ray was started
            return prepare(task)

    return ray.remote(
        num_cpus=1 if node["Resources"].get("CPU") else 0,
        max_retries=_RETRIES,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    )(prepare_here)


def _outcome(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause: BaseException = error
        while isinstance(cause, ray.exceptions.RayTaskError):  # one in another, where `prepare` failed
            cause = cause.cause
        if isinstance(cause, UserFacingError):
            raise cause from None
        if isinstance(cause, ray.exceptions.LocalRayletDiedError):
            raise ClusterLost(
                "the Ray node on this machine died",
                remedy="see its logs (/tmp/ray/session_latest/logs); the same command goes on from there",
            ) from None
        if isinstance(cause, ray.exceptions.RayError):
            return _Died(type(cause).__name__)
        return Crash(" ".join(str(cause).split()) or type(cause).__name__)


@contextlib.contextmanager
def _ray(workers: int, address: str | None) -> Iterator[tuple[Any, Cluster]]:
    """Ray, connected, and what it is."""
    # Ray reads these when it is imported: no usage reports, no progress lines, no notice on accelerators.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What Ray says of a worker's death goes to stdout, which may be a command's JSON; it is in Ray's logs.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # A unit too large for the machine must become a counted failure, not be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        store = max(_SMALLEST_STORE_BYTES, _STORE_BYTES_PER_CPU * (workers or os.cpu_count() or 1))
        quiet |= {"num_cpus": workers or None, "object_store_memory": store, "include_dashboard": False}
    elif address.startswith("ray://"):
        raise ConfigError(
            f"--address {address} is a Ray Client's: tasks could not read this machine's sources",
            remedy="run the build on a node of the cluster, with the address that `ray start` was given",
        )
    try:
        context = ray.init(address=address or "local", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cannot reach Ray at {address or 'this machine'}: {reason}",
            remedy="start one with `ray start --head`, make this machine a node of it with "
            "`ray start --address=...`, or leave --address out; a cluster that asks for a token wants "
            "RAY_AUTH_MODE=token and the same token on every machine",
        ) from None
    try:
        yield ray, Cluster(_num_nodes(ray), _num_cpus(ray), _url(context.dashboard_url))
    finally:
        ray.shutdown()


def _url(dashboard: str | None) -> str:
    return f"http://{dashboard}" if dashboard and "://" not in dashboard else dashboard or ""
