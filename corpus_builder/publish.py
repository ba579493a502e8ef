"""From parts to a corpus: what dedup keeps, in shards, under an index.

In: the parts of all units. Out: shards, licence texts, patches that were left out, `failures.jsonl` and,
last, `index.json`. They are made in `work/shards` and moved into place when all are whole; a corpus of an
earlier build stays readable until then.
Invariant: the bytes depend on the parts and the config alone. One pass over the parts' headers, one over
their samples. Memory is fixed (`dedup`, one sample for each shard that is being written) but for the plan's
own list of units.
"""

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from corpus_builder import patches
from corpus_builder.config import SPLITS, CorpusConfig, DebianSource, ShardConfig
from corpus_builder.dedup import Batch, Duplicates, find_duplicates
from corpus_builder.errors import EmptyCorpus, OutputError
from corpus_builder.parts import read_header, read_samples
from corpus_builder.plan import Plan, PlannedUnit, Progress
from corpus_builder.record import Failure
from corpus_builder.shards import CorpusIndex, Sample, ShardEntry, write_index, write_samples
from corpus_builder.storage import Location, atomic_output, publish

FAILURES_FILE = "failures.jsonl"
# Compressing leaves Python's lock free, copying members does not: more threads than this find nothing to do.
_MAX_THREADS = 4
_COMPILING = ("preprocess", "compile", "assemble")


def publish_corpus(
    config: CorpusConfig,
    plan: Plan,
    *,
    work: Path,
    target: Location,
    crashes: Mapping[str, Failure],
    progress: Callable[[Progress], None],
) -> CorpusIndex:
    """Make the corpus from the parts in `work/parts` and put it in the place of the one at `target`.

    `crashes` are the units without a part: id to what is reported of it.

    Raises:
        EmptyCorpus: no unit gave a function; `failures.jsonl` at the target says why.
        OutputError: the disk is full, or the target cannot be written.
        ShardError: a part is damaged.
    """
    staging = work / "shards"
    shutil.rmtree(staging, ignore_errors=True)
    order = _writing_order(plan)
    with _empty_folder(work / "dedup") as folder, atomic_output(staging / FAILURES_FILE) as stream:
        log = _FailureLog(stream, [*plan.failures, *crashes.values()])
        progress(Progress("duplicates", 0, len(plan.units)))
        batches = _batches(plan, order, work=work, crashes=crashes, log=log, progress=progress)
        with find_duplicates(
            batches, folder=folder, threshold=config.dedup.threshold, num_perm=config.dedup.num_perm
        ) as duplicates:
            ordered = [plan.units[number] for number in order]
            slices = _slices(ordered, plan, duplicates, work)
            written = _write_shards(staging, slices, config.shards, duplicates.num_kept, progress)
            dropped = duplicates.num_dropped()
    if not written.entries:
        _write_file(target / FAILURES_FILE, (staging / FAILURES_FILE).read_bytes())
        raise _empty_corpus(plan, log.counts, target / FAILURES_FILE)
    _write_licenses(staging, plan)
    _write_patches(staging, plan)
    index = _index(config, plan, written, dropped, log.counts, log.compiled(plan, crashes))
    write_index(staging, index)
    publish(staging, target)
    return index


def _writing_order(plan: Plan) -> list[int]:
    """The units' numbers, split after split, in the order of their hash so that projects are mixed."""

    def place(number: int) -> tuple[int, bytes]:
        unit = plan.units[number].unit
        return SPLITS.index(plan.splits[unit.project]), hashlib.sha256(unit.id.encode()).digest()

    return sorted(range(len(plan.units)), key=place)


@contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _FailureLog:
    """Writes failures as they come, in the order of units, and counts them by class."""

    def __init__(self, stream: IO[bytes], others: Iterable[Failure]) -> None:
        self._stream = stream
        self._others = deque(sorted(others, key=_failure_order))
        self._counts: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()

    def add(self, unit: str, failures: Iterable[Failure]) -> None:
        """Write one unit's failures, and those of the others that stand before its end."""
        rows = list(failures)
        while self._others and self._others[0].unit <= unit:
            rows.append(self._others.popleft())
        self._write(rows)

    def finish(self) -> None:
        """Write what is left of the others."""
        self._write(list(self._others))
        self._others.clear()

    @property
    def counts(self) -> dict[str, int]:
        """`variant prefix/stage/cause` to the number of units it struck; `all` where no one toolchain did."""
        return dict(sorted(self._counts.items()))

    def compiled(self, plan: Plan, crashes: Mapping[str, Failure]) -> dict[str, dict[str, int]]:
        """For each toolchain its units, and those of them that it compiled at every level."""
        there = [planned.unit for planned in plan.units]
        found = {}
        for toolchain in plan.toolchains:
            own = [unit.id for unit in there if toolchain.isa in unit.commands]
            lost = self._struck[toolchain.id] + sum(unit in crashes for unit in own)
            found[toolchain.id] = {"units": len(own), "compiled": len(own) - lost}
        return found

    def _write(self, rows: list[Failure]) -> None:
        failed = [row for row in rows if row.stage in _COMPILING and row.variant]
        self._struck.update(name for _, name in {(row.unit, _toolchain(row)) for row in failed})
        self._counts.update(name for _, name in {(row.unit, _failure_class(row)) for row in rows})
        for row in sorted(rows, key=_failure_order):
            self._stream.write(json.dumps(asdict(row)).encode() + b"\n")


def _failure_order(failure: Failure) -> tuple[str, ...]:
    return failure.unit, failure.variant, failure.stage, failure.cause


def _toolchain(failure: Failure) -> str:
    return ".".join(failure.variant.split(".")[:2])


def _failure_class(failure: Failure) -> str:
    return f"{_toolchain(failure) or 'all'}/{failure.stage}/{failure.cause}"


def _batches(
    plan: Plan,
    order: Sequence[int],
    *,
    work: Path,
    crashes: Mapping[str, Failure],
    log: _FailureLog,
    progress: Callable[[Progress], None],
) -> Iterator[Batch]:
    """What dedup needs of each unit: sorted by id, as a function met in several is the first one's."""
    places = sorted(range(len(order)), key=order.__getitem__)
    for number, planned in enumerate(plan.units):
        if planned.unit.id not in crashes:
            header = read_header(_part_path(work, planned))
            log.add(planned.unit.id, header.failures)
            yield places[number], plan.splits[planned.unit.project], header.functions
        if number % 1000 == 999:
            progress(Progress("duplicates", number + 1, len(plan.units)))
    log.finish()
    progress(Progress("duplicates", len(plan.units), len(plan.units)))


def _part_path(work: Path, planned: PlannedUnit) -> Path:
    return work / "parts" / planned.part


@dataclass(frozen=True)
class _Slice:
    """Functions of one unit that go into one shard."""

    split: str
    project: str
    part: Path
    clusters: dict[str, str]
    """Function key to cluster."""


def _slices(units: Sequence[PlannedUnit], plan: Plan, duplicates: Duplicates, work: Path) -> Iterator[_Slice]:
    """What is kept, unit after unit in the order of writing."""
    for place, clusters in duplicates.kept():
        project = units[place].unit.project
        yield _Slice(plan.splits[project], project, _part_path(work, units[place]), clusters)


@dataclass(frozen=True)
class _Shard:
    """A shard to be written."""

    number: int
    split: str
    slices: list[_Slice] = field(default_factory=list)


def _cut(slices: Iterable[_Slice], samples: int) -> Iterator[_Shard]:
    """Consecutive slices as shards of up to `samples` functions, each of one split, none of them empty."""
    shard: _Shard | None = None
    room = 0
    for part in slices:
        functions = list(part.clusters.items())
        while functions:
            if shard is None or shard.split != part.split or not room:
                if shard:
                    yield shard
                number = shard.number + 1 if shard and shard.split == part.split else 0
                shard, room = _Shard(number, part.split), samples
            shard.slices.append(replace(part, clusters=dict(functions[:room])))
            taken = min(room, len(functions))
            functions, room = functions[taken:], room - taken
    if shard:
        yield shard


@dataclass
class _Written:
    """The shards, and what was counted on the way into them."""

    entries: list[ShardEntry] = field(default_factory=list)
    functions: Counter[str] = field(default_factory=Counter)
    """By project."""
    assembly_bytes: int = 0


def _write_shards(
    staging: Path,
    slices: Iterable[_Slice],
    config: ShardConfig,
    total: int,
    progress: Callable[[Progress], None],
) -> _Written:
    """Write several shards at a time; the result is in their order."""
    written = _Written()
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[_Shard, Future[tuple[ShardEntry, int]]]] = deque()

    def finish_first() -> None:
        shard, future = waiting.popleft()
        entry, assembly_bytes = future.result()
        written.entries.append(entry)
        written.assembly_bytes += assembly_bytes
        for part in shard.slices:
            written.functions[part.project] += len(part.clusters)
        progress(Progress("shards", written.functions.total(), total))

    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for shard in _cut(slices, config.samples):
                waiting.append((shard, pool.submit(_write_shard, staging, shard, config)))
                if len(waiting) > num_threads:
                    finish_first()
            while waiting:
                finish_first()
        finally:
            pool.shutdown(cancel_futures=True)
    return written


def _write_shard(staging: Path, shard: _Shard, config: ShardConfig) -> tuple[ShardEntry, int]:
    """The shard, and the bytes of assembly in it."""
    assembly_bytes = 0

    def samples() -> Iterator[Sample]:
        nonlocal assembly_bytes
        for part in shard.slices:
            for sample in read_samples(part.part, part.clusters.__contains__):
                assembly_bytes += sample.assembly_bytes
                meta = _placed(sample.members["json"], shard.split, part.clusters[sample.key])
                yield sample.key, {**sample.members, "json": meta}, sample.num_variants

    path = staging / f"{shard.split}-{shard.number:05d}.{config.format}"
    return write_samples(path, shard.split, samples(), zstd_level=config.zstd_level), assembly_bytes


def _placed(meta: bytes, split: str, cluster: str) -> bytes:
    """Metadata as `record_members` writes it, with split and cluster filled in.

    Only the outermost fields stand behind a line break and one space, and no string holds a line break: this
    is what parsing and validating would give, in a hundredth of the time.
    """
    for name, value in (("split", split), ("cluster", cluster)):
        before, empty, after = meta.partition(f'\n "{name}": ""'.encode())
        assert empty, f"a part's metadata has a {name} already"
        meta = b"%b%b%b%b" % (before, empty[:-2], json.dumps(value).encode(), after)
    return meta


def _write_licenses(staging: Path, plan: Plan) -> None:
    from corpus_builder.licenses import license_texts  # its library is for those who plan and publish alone

    for project, root in sorted(plan.roots.items()):
        for name, text in license_texts(root).items():
            with atomic_output(staging / "licenses" / project / name.replace("/", "-")) as stream:
                stream.write(text.encode())


def _write_patches(staging: Path, plan: Plan) -> None:
    """The patches that sources are asked to do without: those left out, and those that had to stay in."""
    for project in plan.projects:
        if isinstance(project.source, DebianSource) and project.source.without_patches:
            root = plan.roots[project.name]
            there = {
                "left-out": patches.left_out(root),
                "kept": patches.kept(root, project.source.without_patches),
            }
            for folder, names in there.items():
                for name in names:
                    path = staging / "patches" / project.name / folder / name.replace("/", "-")
                    with atomic_output(path) as stream:
                        stream.write(patches.text(root, name))


def _index(
    config: CorpusConfig,
    plan: Plan,
    written: _Written,
    dropped: Mapping[str, int],
    failures: dict[str, int],
    compiled: dict[str, dict[str, int]],
) -> CorpusIndex:
    units = Counter(planned.unit.project for planned in plan.units)
    entries = tuple(written.entries)
    return CorpusIndex(
        name=config.name,
        toolchains={toolchain.id: toolchain.version for toolchain in plan.toolchains},
        levels=config.levels,
        text=config.shards.text,
        members=config.shards.members,
        dedup=config.dedup.model_dump(),
        projects={
            project.name: {
                "version": project.version,
                "license": project.license,
                "split": plan.splits[project.name],
                "lineage": plan.lineages[project.name],
                "source": project.source.model_dump(mode="json"),
                "builds": plan.builds[project.name],
                "config": project.model_dump(mode="json"),
                "units": units[project.name],
                "functions": written.functions[project.name],
            }
            for project in plan.projects
        },
        shards=entries,
        totals={
            "projects": len(plan.projects),
            "units": len(plan.units),
            "functions": sum(entry.num_functions for entry in entries),
            "variants": sum(entry.num_variants for entry in entries),
            "assembly_bytes": written.assembly_bytes,
            "shard_bytes": sum(entry.size_bytes for entry in entries),
            **{f"dropped_{reason}": dropped.get(reason, 0) for reason in ("exact", "body", "near")},
        },
        compiled=compiled,
        failures=failures,
    )


def _write_file(path: Any, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {path}: {reason}", remedy="check the path and its rights") from error


def _empty_corpus(plan: Plan, counts: Mapping[str, int], failures_file: Any) -> EmptyCorpus:
    most = max(counts, key=lambda name: counts[name], default="")
    reason = f"; most frequent failure: {most} in {counts[most]} units" if most else ""
    return EmptyCorpus(
        f"not one function came out of {len(plan.units)} units{reason}",
        remedy=f"see {failures_file}, and the recipes' `sources`, `include` and `defines`, or the builds",
    )
