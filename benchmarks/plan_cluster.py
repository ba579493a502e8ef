"""How many nodes, hours and bytes a large corpus takes: arithmetic over measured rates.

The rates are those of random units of a corpus config: each is prepared and compiled here on one core, then
all are deduplicated and written as shards (`--measure`). Without it they are read from
benchmarks/results/plan_cluster.json. Each can be set by an option of its name, to ask "what if".
CPU times are those of this machine's cores. Prints a table, and as its last line one JSON object: the plan
for the number of nodes that `--hours` needs, or the fastest where one driver's node cannot feed so many.

    python benchmarks/plan_cluster.py [--functions 1e8] [--hours 24] [--cores 64] [--gbit 10]
    python benchmarks/plan_cluster.py --measure configs/corpus/demo.yaml [--units 24] [--save]

What limits a build, as `limit` says:
  cores      prepare + compile core time, over the cores of all nodes;
  driver     prepare core time, over the cores of the driver's node, which alone holds the sources;
  network    what is prepared leaves the driver's node, what is compiled comes in, over its link.
They overlap, so the slowest counts. After them the driver's node finds duplicates and writes shards alone.
Fetching sources and running the projects' own builds once, before, are not in it.
"""

import argparse
import json
import math
import pickle
import random
import resource
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from _saved import save
from rich.console import Console
from rich.table import Table

from corpus_builder.config import CorpusConfig, load_config
from corpus_builder.pipeline import wanted_of
from corpus_builder.plan import Plan, PlannedUnit, part_path, plan_build, silent
from corpus_builder.publish import publish_corpus
from corpus_builder.shards import CorpusIndex
from corpus_builder.task import Task, make_part, prepare

RESULTS = Path(__file__).parent / "results" / "plan_cluster.json"


@dataclass(frozen=True)
class Rates:
    """What a unit and a function cost, on average."""

    functions_per_unit: float
    """Functions in the finished corpus."""
    variants_per_function: float
    prepare_core_s_per_unit: float
    compile_core_s_per_unit: float
    """All that a worker does: compilers, splitting, hashing, encoding the part."""
    publish_core_s_per_function: float
    """On the driver's node: duplicates, shards. Counted as one core's work, though shards use several."""
    prepared_bytes_per_unit: float
    source_bytes_per_unit: float
    """Of the trees that units are compiled in: sources, or one built tree for each instruction set."""
    part_bytes_per_unit: float
    shard_bytes_per_function: float


def main() -> None:
    """Measure or read, compute, print."""
    arguments = parse()
    measured: dict[str, Any] = {}
    if arguments.measure:
        measured = measure(arguments.measure, arguments.units)
    elif RESULTS.exists():
        measured = json.loads(RESULTS.read_text())
    rates = given_rates(arguments, measured.get("rates", {}))
    most = most_nodes(rates, arguments)
    rows = [forecast(rates, arguments, nodes) for nodes in range(1, most + 1)]
    chosen = next((row for row in rows if row["hours"] <= arguments.hours), rows[-1])
    show(rates, [row for row in rows if row["nodes"] in {*(1, 2, 4, 8, 16, 32, 64), most, chosen["nodes"]}])
    print(f"{arguments.hours:g} hours: {answer(chosen, arguments)}")
    figures = {**measured, "rates": asdict(rates), "most_nodes_of_one_driver": most, "plan": chosen}
    if arguments.save:
        save("plan_cluster", figures)
    print(json.dumps(figures))


def parse() -> argparse.Namespace:
    """Options; one for each rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=float, default=1e8, help="in the finished corpus")
    parser.add_argument("--hours", type=float, default=24, help="in which the corpus is to be finished")
    parser.add_argument("--cores", type=int, default=64, help="of each node")
    parser.add_argument("--gbit", type=float, default=10, help="of the driver's network link, per second")
    parser.add_argument("--measure", type=Path, metavar="CONFIG", help="a corpus config to take units from")
    parser.add_argument("--units", type=int, default=24, help="to measure, drawn with a fixed seed")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    for rate in fields(Rates):
        parser.add_argument(f"--{rate.name.replace('_', '-')}", type=float, metavar="X")
    return parser.parse_args()


def given_rates(arguments: argparse.Namespace, measured: dict[str, float]) -> Rates:
    """Each rate from its option, else as measured."""
    options = {rate.name: getattr(arguments, rate.name) for rate in fields(Rates)}
    values = {**measured, **{name: value for name, value in options.items() if value is not None}}
    missing = options.keys() - values.keys()
    if missing:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(missing))
        raise SystemExit(f"error: no rates: give --measure CONFIG, or {names}")
    return Rates(**values)


def forecast(rates: Rates, arguments: argparse.Namespace, nodes: int) -> dict[str, Any]:
    """Hours, and what limits them, and bytes."""
    units = arguments.functions / rates.functions_per_unit
    prepare_s, compile_s = units * rates.prepare_core_s_per_unit, units * rates.compile_core_s_per_unit
    # A share of 1 / nodes stays on the driver's node; the link carries both ways at once.
    sent = units * max(rates.prepared_bytes_per_unit, rates.part_bytes_per_unit) * (1 - 1 / nodes)
    limits = {
        "cores": (prepare_s + compile_s) / (nodes * arguments.cores) / 3600,
        "driver": prepare_s / arguments.cores / 3600,
        "network": sent * 8 / (arguments.gbit * 1e9) / 3600,
    }
    compiling, publishing = (
        max(limits.values()),
        arguments.functions * rates.publish_core_s_per_function / 3600,
    )
    disk = units * (rates.source_bytes_per_unit + rates.part_bytes_per_unit)
    shard_bytes = arguments.functions * rates.shard_bytes_per_function
    return {
        "functions": arguments.functions,
        "units": round(units),
        "function_variants": round(arguments.functions * rates.variants_per_function),
        "nodes": nodes,
        "cores_per_node": arguments.cores,
        "core_hours": round((prepare_s + compile_s) / 3600),
        "limit": max(limits, key=lambda name: limits[name]),
        "compile_hours": round(compiling, 2),
        "publish_hours": round(publishing, 2),
        "hours": round(compiling + publishing, 2),
        "driver_prepares_mb_s": round(units * rates.prepared_bytes_per_unit / compiling / 3600 / 1e6, 1),
        "driver_disk_gb": round((disk + shard_bytes) / 1e9),
        "corpus_gb": round(shard_bytes / 1e9),
    }


def most_nodes(rates: Rates, arguments: argparse.Namespace) -> int:
    """The nodes beyond which another one saves nothing, because the driver's node feeds no more."""
    many = forecast(rates, arguments, 1_000_000)
    units = arguments.functions / rates.functions_per_unit
    core_hours = units * (rates.prepare_core_s_per_unit + rates.compile_core_s_per_unit) / 3600
    nodes: int = math.ceil(core_hours / (many["compile_hours"] * arguments.cores))
    return nodes


def answer(chosen: dict[str, Any], arguments: argparse.Namespace) -> str:
    """One sentence on the plan."""
    if chosen["hours"] > arguments.hours:
        return (
            f"not with one driver, which feeds {chosen['nodes']} nodes at most: {chosen['hours']:g} hours; "
            "split the projects among several builds"
        )
    nodes = f"{chosen['nodes']} node{'s' if chosen['nodes'] > 1 else ''}"
    return f"{nodes} of {arguments.cores} cores, done after {chosen['hours']:g}"


def show(rates: Rates, rows: list[dict[str, Any]]) -> None:
    """The rates, then a line for each number of nodes."""
    console = Console(width=110)
    table = Table("rate", "value")
    for name, value in asdict(rates).items():
        table.add_row(name, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}")
    console.print(table)
    table = Table("nodes", "compile (h)", "publish (h)", "all (h)", "limit", "prepared (MB/s)", "disk (GB)")
    for row in rows:
        cells = ("nodes", "compile_hours", "publish_hours", "hours", "limit", "driver_prepares_mb_s")
        table.add_row(*(str(row[cell]) for cell in cells), f"{row['driver_disk_gb']:,}")
    console.print(table)


def measure(path: Path, num_units: int) -> dict[str, Any]:
    """The rates of random units of a config, made one after another."""
    config = load_config(CorpusConfig, path)
    whole = plan_build(config)
    chosen = random.Random(0).sample(whole.units, min(num_units, len(whole.units)))
    narrowed = replace(whole, units=tuple(sorted(chosen, key=lambda planned: planned.unit.id)))
    with tempfile.TemporaryDirectory() as folder:
        rates = measured_rates(config, narrowed, Path(folder), source_bytes(whole) / len(whole.units))
    setting = {
        "config": str(path),
        "units": len(chosen),
        "toolchains": [item.id for item in whole.toolchains],
    }
    return {**setting, "levels": list(config.levels), "rates": asdict(rates)}


def measured_rates(config: CorpusConfig, narrowed: Plan, work: Path, source_bytes: float) -> Rates:
    """Make the units' parts and their corpus."""
    prepare_s = compile_s = prepared_bytes = part_bytes = 0.0
    for planned in narrowed.units:
        costs = measured_part(config, narrowed, planned, part_path(work, planned.part))
        prepare_s, compile_s = prepare_s + costs[0], compile_s + costs[1]
        prepared_bytes, part_bytes = prepared_bytes + costs[2], part_bytes + costs[3]
    few_s, few = publish(config, replace(narrowed, units=narrowed.units[:1]), work)
    all_s, index = publish(config, narrowed, work)
    # What any corpus costs, however small, is not a rate.
    publish_s = (all_s - few_s) / (index.totals["functions"] - few.totals["functions"])
    units, functions = len(narrowed.units), index.totals["functions"]
    return Rates(
        functions_per_unit=functions / units,
        variants_per_function=index.totals["variants"] / functions,
        prepare_core_s_per_unit=prepare_s / units,
        compile_core_s_per_unit=compile_s / units,
        publish_core_s_per_function=publish_s,
        prepared_bytes_per_unit=prepared_bytes / units,
        source_bytes_per_unit=source_bytes,
        part_bytes_per_unit=part_bytes / units,
        shard_bytes_per_function=index.totals["shard_bytes"] / functions,
    )


def publish(config: CorpusConfig, narrowed: Plan, work: Path) -> tuple[float, CorpusIndex]:
    """CPU seconds from parts to corpus, and the corpus."""
    before = cpu_s()
    index = publish_corpus(config, narrowed, work=work, target=work / "corpus", crashes={}, progress=silent)
    return cpu_s() - before, index


def measured_part(
    config: CorpusConfig, narrowed: Plan, planned: PlannedUnit, path: Path
) -> tuple[float, float, int, int]:
    """CPU seconds to prepare and to compile a unit; bytes prepared and of the part."""
    part = planned.part
    task = Task(planned.unit, planned.project, narrowed.toolchains, wanted_of(config), config.dedup, part)
    before = cpu_s()
    given = prepare(task)
    between = cpu_s()
    data = make_part(task, given).data
    after = cpu_s()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return between - before, after - between, len(pickle.dumps(given)), len(data)


def cpu_s() -> float:
    """CPU time of this process and of those it has waited for."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in times)


def source_bytes(whole: Plan) -> int:
    """Of the trees that the units are compiled in."""
    roots = {command.root for planned in whole.units for command in planned.unit.commands.values()}
    return sum(path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
