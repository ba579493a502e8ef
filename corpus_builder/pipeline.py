"""A build from config to corpus: plan, parts, then duplicates, splits, shards and index.

In: a corpus config. Out: a folder of shards with `index.json`, written last, and `failures.jsonl`. Each
unit's result is a part under `work/parts`, so a build that was killed or changed takes from there what is
still right.
Invariant: equal configs, sources and compilers give equal bytes, whatever the number of workers, the order
in which they finish, or how often the build was killed.
The cost is compiling; beside it, memory of about 1 KB a unit.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from corpus_builder.config import CorpusConfig
from corpus_builder.errors import ShardError
from corpus_builder.executor import Cluster, Crash, run_units
from corpus_builder.parts import PartHeader, read_header
from corpus_builder.plan import Plan, Progress, digest, part_path, plan_build, silent
from corpus_builder.process import Limits
from corpus_builder.publish import publish_corpus
from corpus_builder.record import Failure, Unit
from corpus_builder.shards import CorpusIndex, load_index
from corpus_builder.storage import Location, atomic_output
from corpus_builder.task import Task, make_part, make_part_here, prepare
from corpus_builder.worker import Wanted

_OVERHEAD_BYTES = 5000


def build(
    config: CorpusConfig,
    *,
    address: str | None = None,
    progress: Callable[[Progress], None] = silent,
    plan: Plan | None = None,
    started: Callable[[Cluster], None] | None = None,
) -> CorpusIndex:
    """Build the corpus, or return the one that is there if it is this one.

    `address` is that of a Ray cluster; without it a local one is started. `plan` saves planning twice;
    `started` is told what the units run on.

    Raises:
        UserFacingError: whatever stops a build; what is finished stays and is used by the next one.
    """
    plan = plan or plan_build(config, progress)
    work, target = config.work_folder, config.output
    marker = work / "finished.json"
    identity = _build_identity(config, plan)
    finished = _finished_build(target, marker, identity)
    if finished:
        return finished
    crashes = _make_parts(config, plan, address=address, progress=progress, started=started)
    index = publish_corpus(config, plan, work=work, target=target, crashes=crashes, progress=progress)
    if not crashes:  # units whose worker died deserve another try
        with atomic_output(marker) as stream:
            stream.write(json.dumps({"build": identity, "index": index.sha256()}).encode())
    return index


def _build_identity(config: CorpusConfig, plan: Plan) -> str:
    # The others leave no trace in a corpus, or are part of the plan.
    own = {"name", "levels", "split", "dedup", "shards"}
    settings = config.model_dump(mode="json", include=own)
    failures = [asdict(failure) for failure in plan.failures]
    return digest([settings, plan.splits, failures, [planned.part for planned in plan.units]])


def _finished_build(target: Location, marker: Path, identity: str) -> CorpusIndex | None:
    """The corpus of an equal build, if all of it is there."""
    try:
        stamp = json.loads(marker.read_text())
        index = load_index(target)
        whole = all((target / shard.name).stat().st_size == shard.size_bytes for shard in index.shards)
    except (OSError, ValueError, ShardError):
        return None
    return index if whole and stamp == {"build": identity, "index": index.sha256()} else None


def _make_parts(
    config: CorpusConfig,
    plan: Plan,
    *,
    address: str | None,
    progress: Callable[[Progress], None],
    started: Callable[[Cluster], None] | None,
) -> dict[str, Failure]:
    """Make the parts that are missing; returns the units that no worker survived."""
    count = _Count(len(plan.units), progress)
    tasks = _missing_parts(config, plan, count)
    count.expect(task.unit for task in tasks)
    crashes: dict[str, Failure] = {}
    for task, result in run_units(
        tasks,
        make_part,
        prepare=prepare,
        whole=make_part_here,
        is_whole=lambda part: part.is_whole,
        size=lambda task: task.unit.size_bytes,
        workers=config.workers,
        address=address,
        started=started,
    ):
        if isinstance(result, Crash):
            crashes[task.unit.id] = _crash_failure(task.unit, result)
            count.compiled(task.unit, failures=1)
            continue
        with atomic_output(part_path(config.work_folder, task.part)) as stream:
            stream.write(result.data)
        count.compiled(
            task.unit,
            functions=result.num_functions,
            failures=result.num_failures,
            assembly_bytes=result.assembly_bytes,
            compiler_s=result.compiler_s,
        )
    return crashes


class _Count:
    """Adds up finished units and reports them."""

    def __init__(self, total: int, progress: Callable[[Progress], None]) -> None:
        self._now = Progress("units", 0, total)
        self._progress = progress
        self._work = 1
        self._done = 0
        progress(self._now)

    def expect(self, units: Iterable[Unit]) -> None:
        """Say what is to be compiled, so that the share done is known."""
        self._work = sum(map(_work, units)) or 1

    def compiled(self, unit: Unit, **more: float) -> None:
        """Count one unit."""
        self._done += _work(unit)
        self.add(share=self._done / self._work - self._now.share, **more)

    def add(self, **more: float) -> None:
        now = self._now
        added = {name: getattr(now, name) + number for name, number in more.items()}
        self._now = replace(now, done=now.done + 1, **added)
        self._progress(self._now)


def _work(unit: Unit) -> int:
    """About proportional to a unit's compile time: headers and start-up cost as much as some text."""
    return unit.size_bytes + _OVERHEAD_BYTES


def _missing_parts(config: CorpusConfig, plan: Plan, count: _Count) -> list[Task]:
    wanted = wanted_of(config)
    tasks = []
    for planned in plan.units:
        header = _existing_header(part_path(config.work_folder, planned.part))
        if header:
            count.add(functions=len(header.functions), failures=len(header.failures), reused=1)
            continue
        unit, project = planned.unit, planned.project
        tasks.append(Task(unit, project, plan.toolchains, wanted, config.dedup, planned.part))
    return tasks


def wanted_of(config: CorpusConfig) -> Wanted:
    """What the config asks of each unit."""
    return Wanted(
        levels=config.levels,
        limits=Limits(**config.limits.model_dump()),
        permissive=config.licenses == "permissive",
        text=config.shards.text,
        members=config.shards.members,
    )


def _crash_failure(unit: Unit, crash: Crash) -> Failure:
    return Failure(
        unit=unit.id, variant="", stage="compile", cause="internal", exit=0, command="", tail=crash.reason
    )


def _existing_header(path: Path) -> PartHeader | None:
    try:
        return read_header(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ShardError:
        path.unlink()
        return None
