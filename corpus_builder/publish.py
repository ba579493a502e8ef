"""From parts to a corpus: what dedup keeps, in shards, under an index.

In: the headers and records of all parts. Out: shards, `failures.jsonl` and, last, `index.json`. Shards are
made in `work/shards` and moved into place when all are whole; a corpus of an earlier build stays readable
until then.
Invariant: the bytes depend on the parts and the config alone. One pass over the parts' headers, one over
their records, of which a single one is in memory.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from corpus_builder.config import SPLITS, CorpusConfig, DedupConfig
from corpus_builder.dedup import Duplicates, find_duplicates
from corpus_builder.errors import OutputError
from corpus_builder.parts import PartHeader, read_records
from corpus_builder.plan import Plan, Progress, part_path
from corpus_builder.record import Failure, FunctionRecord
from corpus_builder.shards import CorpusIndex, ShardEntry, atomic_output, write_index, write_shard

FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True)
class Kept:
    """What goes into the shards: which unit's record of a function, and what dedup said."""

    owners: dict[str, str]
    """Function key to the id of the unit whose record is used."""
    duplicates: Duplicates


def find_kept(headers: Sequence[PartHeader], plan: Plan, config: DedupConfig) -> Kept:
    """A function met in several units belongs to the first of them; then duplicates are dropped."""
    owners: dict[str, str] = {}
    items = []
    for header in headers:
        split = plan.splits[header.unit.partition("/")[0]]
        for item in header.functions:
            if item.key not in owners:
                owners[item.key] = header.unit
                items.append(replace(item, split=split))
    return Kept(owners, find_duplicates(items, threshold=config.threshold, num_perm=config.num_perm))


def _records_of(output: Path, plan: Plan, kept: Kept, split: str) -> Iterator[FunctionRecord]:
    """A split's records, units in the order of their hash so that projects are mixed."""
    chosen = [planned for planned in plan.units if plan.splits[planned.project.name] == split]
    chosen.sort(key=lambda planned: hashlib.sha256(planned.unit.id.encode()).digest())
    units_with_records = set(kept.owners.values())
    for planned in chosen:
        if planned.unit.id not in units_with_records:
            continue
        for record in read_records(part_path(output, planned.part)):
            cluster = kept.duplicates.clusters.get(record.key)
            if cluster is not None and kept.owners[record.key] == planned.unit.id:
                meta = record.meta.model_copy(update={"split": split, "cluster": cluster})
                yield replace(record, meta=meta)


class _Tally:
    """Counts records on their way into the shards."""

    def __init__(self) -> None:
        self.functions: Counter[str] = Counter()
        self.variants = 0
        self.assembly_bytes = 0

    def watch(self, records: Iterable[FunctionRecord]) -> Iterator[FunctionRecord]:
        for record in records:
            self.functions[record.meta.project] += 1
            self.variants += len(record.assembly)
            self.assembly_bytes += sum(len(text.encode()) for text in record.assembly.values())
            yield record


def write_corpus(
    config: CorpusConfig,
    plan: Plan,
    kept: Kept,
    failures: Sequence[Failure],
    progress: Callable[[Progress], None],
) -> CorpusIndex:
    """Write the shards, the failures and the index, and put them in place together.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    staging = config.output / "work" / "shards"
    shutil.rmtree(staging, ignore_errors=True)
    tally = _Tally()
    total = len(kept.duplicates.clusters)
    entries: list[ShardEntry] = []
    for split in SPLITS:
        records = tally.watch(_records_of(config.output, plan, kept, split))
        for number, batch in enumerate(_batches(records, config.shards.samples)):
            path = staging / f"{split}-{number:05d}.{config.shards.format}"
            entries.append(write_shard(path, split, batch, zstd_level=config.shards.zstd_level))
            progress(Progress("shards", tally.functions.total(), total))
    index = _index(config, plan, kept, failures, tally, entries)
    write_index(staging, index)
    write_failures(staging, failures)
    _publish(staging, config.output, index)
    return index


def _batches(records: Iterator[FunctionRecord], size: int) -> Iterator[Iterator[FunctionRecord]]:
    """Consecutive runs of up to `size` records, none of them empty; each must be used up before the next."""
    for first in records:
        yield _up_to(first, records, size)


def _up_to(first: FunctionRecord, rest: Iterator[FunctionRecord], size: int) -> Iterator[FunctionRecord]:
    yield first
    for _ in range(size - 1):
        record = next(rest, None)
        if record is None:
            return
        yield record


def _publish(staging: Path, output: Path, index: CorpusIndex) -> None:
    """Put the new corpus in the old one's place: the index goes first and comes back last."""
    try:
        (output / "index.json").unlink(missing_ok=True)
        names = {shard.name for shard in index.shards}
        for split in SPLITS:
            for stale in output.glob(f"{split}-[0-9]*.tar*"):
                if stale.name not in names:
                    stale.unlink()
        for name in (*sorted(names), FAILURES_FILE, "index.json"):
            os.replace(staging / name, output / name)
        staging.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot put the shards into {output}: {error.strerror}",
            remedy="check the folder's permissions; the same command goes on from there",
        ) from error


def _index(
    config: CorpusConfig,
    plan: Plan,
    kept: Kept,
    failures: Sequence[Failure],
    tally: _Tally,
    entries: Sequence[ShardEntry],
) -> CorpusIndex:
    units = Counter(planned.project.name for planned in plan.units)
    dropped = Counter(kept.duplicates.dropped.values())
    return CorpusIndex(
        name=config.name,
        toolchains={toolchain.id: toolchain.version for toolchain in plan.toolchains},
        levels=config.levels,
        projects={
            project.name: {
                "version": project.version,
                "license": project.license,
                "split": plan.splits[project.name],
                "source": project.source.model_dump(mode="json"),
                "units": units[project.name],
                "functions": tally.functions[project.name],
            }
            for project in config.projects
        },
        shards=tuple(entries),
        totals={
            "projects": len(config.projects),
            "units": len(plan.units),
            "functions": tally.functions.total(),
            "variants": tally.variants,
            "assembly_bytes": tally.assembly_bytes,
            "shard_bytes": sum(entry.size_bytes for entry in entries),
            **{f"dropped_{reason}": dropped[reason] for reason in ("exact", "body", "near")},
        },
        failures=failure_counts(failures),
    )


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """One line of JSON a failure; raises OutputError where it cannot be written."""
    with atomic_output(folder / FAILURES_FILE) as stream:
        for failure in failures:
            stream.write(json.dumps(asdict(failure)).encode() + b"\n")


def failure_counts(failures: Iterable[Failure]) -> dict[str, int]:
    """`variant prefix/stage/cause` to the number of units it struck; `all` where no one toolchain did."""
    struck = {(failure.unit, _failure_class(failure)) for failure in failures}
    return dict(sorted(Counter(name for _, name in struck).items()))


def _failure_class(failure: Failure) -> str:
    prefix = ".".join(failure.variant.split(".")[:2]) or "all"
    return f"{prefix}/{failure.stage}/{failure.cause}"
