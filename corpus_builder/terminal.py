"""What a build says on a terminal: progress while it runs, tables when it is done."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from corpus_builder.executor import Cluster
from corpus_builder.plan import Progress
from corpus_builder.stats import compiled_table, failure_table

_WIDTH_OF_A_FILE = 160
_SECONDS_BETWEEN_LINES = 10.0
_LINES_SHOWN = 20
_LABELS = {
    "sources": "fetching, building",
    "units": "compiling units",
    "duplicates": "finding duplicates",
    "shards": "writing shards",
}


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for tables in a file."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_A_FILE, highlight=False)


def print_json(data: Any) -> None:
    """To standard output, for programs."""
    print(json.dumps(data, indent=1, sort_keys=True))


class BuildProgress:
    """Shows a build's progress: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._started = self._last_line = time.monotonic()
        self._reused = 0

    def __enter__(self) -> "BuildProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, notes: Sequence[str]) -> None:
        """Lines that stay above the bar."""
        for note in notes:
            self._screen.print(f"note: {note}", markup=False)

    def started(self, cluster: Cluster) -> None:
        """Name what the build runs on."""
        where = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}, {cluster.num_cpus} CPUs"
        self.note([f"Ray: {where}" + (f", dashboard {cluster.dashboard}" if cluster.dashboard else "")])

    def __call__(self, now: Progress) -> None:
        """Take in where the build stands."""
        if now.stage not in self._tasks:
            self._tasks[now.stage] = self._bar.add_task(_LABELS[now.stage], total=now.total, counts="")
            self._started = time.monotonic()
        counts = self._counts(now)
        self._bar.update(self._tasks[now.stage], completed=now.done, total=now.total, counts=counts)
        self._print_line(now, counts)

    def _counts(self, now: Progress) -> str:
        failures = f"  {now.failures:,} failures" if now.failures else ""
        if now.stage != "units":
            return failures.strip()
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (now.done - now.reused) / seconds
        reused = f"  {now.reused:,} reused" if now.reused else ""
        made = f"{now.functions:,} functions  {now.assembly_bytes / 1e6:,.0f} MB"
        return f"{rate:.1f}/s  {made}{failures}{reused}{_time_left(seconds, now.share)}"

    def _print_line(self, now: Progress, counts: str) -> None:
        if self._screen.is_terminal:
            return
        quiet = time.monotonic() - self._last_line < _SECONDS_BETWEEN_LINES
        if quiet and now.done not in (0, now.total):
            return
        self._last_line = time.monotonic()
        self._screen.print(f"{_LABELS[now.stage]} {now.done}/{now.total}  {counts}".rstrip(), markup=False)


def _time_left(seconds: float, share: float) -> str:
    """By the share of the work that is done: units come largest first, so their number says little."""
    return f"  {seconds * (1 - share) / share / 60:.0f} min left" if 0 < share < 1 else ""


def print_build(index: Mapping[str, Any], output: str, screen: Console) -> None:
    """What a finished build gave."""
    totals = index["totals"]
    dropped = ", ".join(f"{totals[f'dropped_{reason}']:,} {reason}" for reason in ("exact", "body", "near"))
    table = Table(title=f"Corpus {index['name']}", title_justify="left", show_header=False)
    rows = {
        "projects": f"{totals['projects']:,}",
        "units": f"{totals['units']:,}",
        "functions": f"{totals['functions']:,}",
        "variants": f"{totals['variants']:,}",
        "duplicates dropped": dropped,
        "assembly": f"{totals['assembly_bytes'] / 1e6:,.1f} MB",
        "shards": f"{totals['shard_bytes'] / 1e6:,.1f} MB in {len(index['shards'])} files",
        "folder": output,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    screen.print(table)
    if index["compiled"]:
        screen.print(compiled_table(index["compiled"]))
    screen.print(failure_table(index["failures"]))


def print_plan(summary: Mapping[str, Any], screen: Console) -> None:
    """What a build would do."""
    projects = Table("project", "version", "license", "split", "built", "units", "KiB of C", title="Projects")
    for name, project in summary["projects"].items():
        size = f"{project['source_bytes'] / 1024:,.0f}"
        projects.add_row(
            name,
            project["version"],
            project["license"],
            project["split"],
            _how_built(project["builds"]),
            str(project["units"]),
            size,
        )
    toolchains = Table("toolchain", "version", title="Toolchains")
    for name, version in summary["toolchains"].items():
        toolchains.add_row(name, version)
    screen.print(projects)
    screen.print(toolchains)
    for note in summary["notes"]:
        screen.print(f"note: {note}", markup=False)
    for line in left_out(summary["failures"]):
        screen.print(line, markup=False)
    screen.print(
        f"{summary['units']:,} units x {summary['variants']} variants (toolchain x level)"
        f" = {summary['compilations']:,} compilations"
    )


def left_out(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on each project, build or file that is left out, up to a screenful."""
    lines = []
    for failure in failures[:_LINES_SHOWN]:
        last = failure["tail"].strip().rpartition("\n")[2]
        which = f" for {failure['variant']}" if failure["variant"] else ""
        lines.append(f"left out: {failure['unit']}{which}: {failure['stage']}, {failure['cause']}: {last}")
    more = len(failures) - _LINES_SHOWN
    return [*lines, f"and {more} more, in failures.jsonl"] if more > 0 else lines


def _how_built(builds: Mapping[str, Mapping[str, Any]]) -> str:
    """`autotools, cross`; instruction sets are named where they differ."""
    ways = {isa: ", ".join(filter(None, (way.get("system"), way["mode"]))) for isa, way in builds.items()}
    if len(set(ways.values())) == 1:
        return next(iter(ways.values()))
    return "; ".join(f"{isa}: {way}" for isa, way in sorted(ways.items()))
