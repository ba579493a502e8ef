"""Replay beside what else gives assembly at every level: plain compiler calls, and whole builds.

Three comparisons over one matrix (benchmarks/replay.yaml), each side by side on all cores, round after round:
  small, large    `corpus-builder build` from captured commands to finished shards, against `xargs -P` running
                  the plain `gcc -S` and `clang -S` commands in the captured trees, which neither split, hash,
                  deduplicate nor write shards;
  rebuilt         the whole corpus build, capture included, against configure and make for each variant.
Prints a table and, as its last line, one JSON object: the contender's time over ours (median of the rounds),
and `compiler_share`, the compilers' CPU time over all core time of our builds, from the first unit's start to
the finished shards.

    python benchmarks/replay.py [--rounds 2] [--units 150] [--save]
"""

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _saved import save
from rich.console import Console
from rich.table import Table

from corpus_builder.config import CorpusConfig, load_config
from corpus_builder.pipeline import build
from corpus_builder.plan import Plan, Progress, plan_build
from corpus_builder.record import Unit
from corpus_builder.toolchain import Toolchain

_CONFIG = Path(__file__).with_suffix(".yaml")
_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Measured:
    """One contest."""

    ours_s: list[float]
    theirs_s: list[float]
    compiler_s: float
    """CPU time of the compilers in our builds, all rounds together."""
    num_compilations: int

    @property
    def ratio(self) -> float:
        """Their time over ours, median over rounds measured side by side."""
        pairs = zip(self.theirs_s, self.ours_s, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--units", type=int, default=150, help="units of each project, drawn with a fixed seed"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/replay.json")
    arguments = parser.parse_args()
    config = load_config(CorpusConfig, _CONFIG)
    plan = plan_build(config)
    rows = {
        name: against_plain_commands(config, plan, name, arguments.rounds, arguments.units)
        for name in ("small", "large")
    }
    rows["rebuilt"] = against_whole_builds(config, plan)
    show(rows)
    ours = sum(sum(rows[name].ours_s) for name in ("small", "large"))
    compilers = sum(rows[name].compiler_s for name in ("small", "large"))
    figures = {
        "compiler_share": round(compilers / (ours * _CORES), 3),
        "vs_gcc_s_small_units": round(rows["small"].ratio, 3),
        "vs_gcc_s_large_units": round(rows["large"].ratio, 3),
        "vs_rebuild_per_variant": round(rows["rebuilt"].ratio, 3),
        **{f"compilations_{name}": row.num_compilations for name, row in rows.items()},
    }
    if arguments.save:
        save("replay", figures)
    print(json.dumps(figures))


def against_plain_commands(
    config: CorpusConfig, plan: Plan, name: str, rounds: int, most_units: int
) -> Measured:
    """Ours and `xargs -P` in turn, on the same units."""
    chosen = [planned for planned in plan.units if planned.project.name == name]
    random.Random(0).shuffle(chosen)
    narrowed = replace(plan, units=tuple(sorted(chosen[:most_units], key=lambda planned: planned.unit.id)))
    units = [planned.unit for planned in narrowed.units]
    lines = [
        plain_command(unit, toolchain, level)
        for unit in sorted(units, key=lambda unit: -unit.size_bytes)
        for toolchain in plan.toolchains
        for level in config.levels
    ]
    ours, theirs, compilers = [], [], 0.0
    for _ in range(rounds):
        theirs.append(run_xargs(lines))
        seconds, compiler_s = run_ours(config, narrowed)
        ours.append(seconds)
        compilers += compiler_s
    return Measured(ours, theirs, compilers, len(lines))


def plain_command(unit: Unit, toolchain: Toolchain, level: str) -> str:
    """The folder and the project's own command, with the level, to assembly in memory."""
    command = unit.commands[toolchain.isa]
    name = f"{unit.id}.{toolchain.id}.{level}.s".replace("/", "_")
    argv = toolchain.own_argv(command, level, f"{{out}}/{name}")
    return shlex.join([str(command.root / command.cwd), *argv])


def run_xargs(lines: Sequence[str]) -> float:
    """Seconds to run the commands, one for each core at a time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        script = Path(folder, "commands")
        script.write_text("".join(line.replace("{out}", folder) + "\n" for line in lines))
        started = time.perf_counter()
        subprocess.run(["xargs", "-a", script, "-P", str(_CORES), "-L", "1", "env", "-C"], check=True)
        return time.perf_counter() - started


def run_ours(config: CorpusConfig, plan: Plan) -> tuple[float, float]:
    """Seconds from the first unit to the finished corpus, and the compilers' CPU time; nothing is reused."""
    shutil.rmtree(config.output, ignore_errors=True)
    watch = Watch()
    build(config, plan=plan, progress=watch, started=watch.ray_is_up)
    return time.perf_counter() - watch.started, watch.compiler_s


class Watch:
    """Takes the time from when Ray, which both a large build and a small one start once, is up."""

    def __init__(self) -> None:
        self.started = 0.0
        self.compiler_s = 0.0

    def ray_is_up(self, cluster: object) -> None:
        self.started = time.perf_counter()

    def __call__(self, now: Progress) -> None:
        self.compiler_s = max(self.compiler_s, now.compiler_s)


def against_whole_builds(config: CorpusConfig, plan: Plan) -> Measured:
    """Ours from the unpacked source, capture included; and configure and make for each variant."""
    project = next(item for item in config.projects if item.name == "rebuilt")
    root = plan.roots["rebuilt"]
    theirs = 0.0
    for toolchain in plan.toolchains:
        for level in config.levels:
            theirs += whole_build(root, toolchain, level)
    with tempfile.TemporaryDirectory() as cache:
        alone = config.model_copy(update={"projects": (project,), "cache": Path(cache)})
        link_sources(config.cache, Path(cache))
        seconds, compiler_s = timed(lambda: run_ours(alone, plan_build(alone)))
    return Measured([seconds], [theirs], compiler_s[1], len(plan.toolchains) * len(config.levels))


def timed(action: Callable[[], tuple[float, float]]) -> tuple[float, tuple[float, float]]:
    """Seconds, and what the action returned."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def link_sources(cache: Path, new: Path) -> None:
    """Give a new cache the fetched sources of another, and none of its captures."""
    for folder in cache.expanduser().iterdir():
        if folder.name != "captures":
            (new / folder.name).symlink_to(folder)


def whole_build(root: Path, toolchain: Toolchain, level: str) -> float:
    """Seconds that configure and make take, with all cores, for one variant (the manner of BinKit)."""
    compiler = shlex.join([*toolchain.command, *toolchain.target])
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(root, tree, symlinks=True)
        started = time.perf_counter()
        configure = ["./configure", f"--host={toolchain.triple}", f"CC={compiler}", f"CFLAGS=-{level} -w"]
        subprocess.run(configure, cwd=tree, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        made = subprocess.run(["make", "-k", f"-j{_CORES}"], cwd=tree, capture_output=True, text=True)
        if made.returncode:
            print(f"make for {toolchain.id} {level}: {made.stderr[-300:]}", file=sys.stderr)
        return time.perf_counter() - started


def show(rows: dict[str, Measured]) -> None:
    """The table."""
    table = Table("", "compilations", "theirs (s)", "ours (s)", "theirs / ours", "in compilers")
    for name, row in rows.items():
        share = row.compiler_s / (sum(row.ours_s) * _CORES)
        times = [" ".join(f"{seconds:.1f}" for seconds in each) for each in (row.theirs_s, row.ours_s)]
        table.add_row(name, f"{row.num_compilations:,}", *times, f"{row.ratio:.3f}", f"{share:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
