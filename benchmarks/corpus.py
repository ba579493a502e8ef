"""What a built corpus holds, whether it leaks, how the driver's memory grew: the figures of docs/corpus.md.

Reads a corpus that is there, searches it for duplicates across splits anew, and runs benchmarks/memory.py.
Prints the tables of `corpus-builder stats` and, as its last line, one JSON object. `unit_success_min` is the
share of units that compiled at every level, of the toolchain with the smallest.

    python benchmarks/corpus.py [runs/debian/corpus] [--save]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _saved import save
from rich.console import Console

from corpus_builder.shards import CorpusIndex, load_index, read_shard
from corpus_builder.stats import Function, summarize, tables
from corpus_builder.storage import Location, location
from corpus_builder.verify import leaks


def main() -> None:
    """Read, check and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="?", default="runs/debian/corpus")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/corpus.json")
    arguments = parser.parse_args()
    corpus = location(arguments.corpus)
    index = load_index(corpus)
    summary = summarize(index.model_dump(), functions(corpus, index))
    for table in tables(summary):
        Console(width=140).print(table)
    figures = {**counts(summary, index), "split_leaks": len(leaks(corpus)), **driver_memory()}
    if arguments.save:
        save("corpus", figures)
    print(json.dumps(figures))


def functions(corpus: Location, index: CorpusIndex) -> Iterator[Function]:
    """Metadata and texts of every function."""
    for shard in index.shards:
        for record in read_shard(corpus / shard.name):
            yield record.meta.model_dump(), record.assembly


def counts(summary: dict[str, Any], index: CorpusIndex) -> dict[str, Any]:
    """Sizes of the corpus, and how its projects were built."""
    totals = summary["totals"]
    ways = [way for project in index.projects.values() for way in project["builds"].values()]
    shares = {
        name: round(count["compiled"] / count["units"], 4) for name, count in summary["compiled"].items()
    }
    return {
        "corpus": index.name,
        "num_projects": totals["projects"],
        "num_units": totals["units"],
        "num_functions": totals["functions"],
        "num_variants": totals["variants"],
        "num_tokens": totals["tokens"],
        "assembly_bytes": totals["assembly_bytes"],
        "shard_bytes": totals["shard_bytes"],
        **{
            name: totals[name]
            for name in ("dropped_exact", "dropped_body", "dropped_near", "clones", "inlined")
        },
        "cross_builds": sum(way["mode"] == "cross" for way in ways),
        "native_builds": sum(way["mode"] == "native" for way in ways),
        "num_licenses": len(summary["licenses"]),
        "same_body": summary["same_body"],
        "unit_success": shares,
        "unit_success_min": min(shares.values()),
    }


def driver_memory() -> dict[str, Any]:
    """Peak memory of dedup and publishing, for a corpus and for one of ten times its size."""
    script = Path(__file__).with_name("memory.py")
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "driver_memory_growth": found["driver_memory_growth"],
        "driver_peak_mb": [found["small"]["peak_mb"], found["large"]["peak_mb"]],
        "driver_memory_functions": [found["small"]["functions"], found["large"]["functions"]],
    }


if __name__ == "__main__":
    main()
