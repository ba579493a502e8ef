"""What a built corpus holds, whether it leaks, how the driver's memory grew: the figures of docs/corpus.md.

Reads a corpus that is there, searches it for duplicates across splits anew, and runs benchmarks/memory.py.
Prints the tables of `corpus-builder stats` and, as its last line, one JSON object. `unit_success_min` is the
share of units that compiled at every level, of the toolchain with the smallest. `--report` puts the tables
into a Markdown file, between the marks `<!-- begin NAME -->` and `<!-- end NAME -->`.

    python benchmarks/corpus.py [runs/debian/corpus] [--save] [--report docs/corpus.md]
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _report import markdown, report
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
    parser.add_argument("--report", type=Path, metavar="MD", help="put the tables into this file")
    arguments = parser.parse_args()
    corpus = location(arguments.corpus)
    index = load_index(corpus)
    summary = summarize(index.model_dump(), functions(corpus, index))
    for table in tables(summary):
        Console(width=140).print(table)
    figures = {**counts(summary, index), "split_leaks": len(leaks(corpus)), **driver_memory()}
    if arguments.report:
        report(arguments.report, sections(summary, index, figures))
    if arguments.save:
        save("corpus", figures)
    print(json.dumps(figures))


def functions(corpus: Location, index: CorpusIndex) -> Iterator[Function]:
    """Metadata and texts of every function."""
    for shard in index.shards:
        for record in read_shard(corpus / shard.name):
            yield record.meta.model_dump(), record.assembly


def counts(summary: Mapping[str, Any], index: CorpusIndex) -> dict[str, Any]:
    """Sizes of the corpus, and how its projects were built."""
    totals = summary["totals"]
    ways = [way for project in index.projects.values() for way in project["builds"].values()]
    shares = {
        name: round(count["compiled"] / count["units"], 4) for name, count in summary["compiled"].items()
    }
    dropped = ("dropped_exact", "dropped_body", "dropped_near")
    return {
        "corpus": index.name,
        **{f"num_{name}": totals[name] for name in ("projects", "units", "functions", "variants", "tokens")},
        **{name: totals[name] for name in ("assembly_bytes", "shard_bytes", *dropped, "clones", "inlined")},
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


def sections(summary: Mapping[str, Any], index: CorpusIndex, figures: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the report by name."""
    totals = summary["totals"]
    sizes = {
        "packages": totals["projects"],
        "units": totals["units"],
        "functions": totals["functions"],
        "variants": totals["variants"],
        "tokens (words, numbers, marks)": totals["tokens"],
        "assembly, MB": round(totals["assembly_bytes"] / 1e6),
        "shards, MB": round(totals["shard_bytes"] / 1e6),
        "clones joined to their function": totals["clones"],
        "functions inlined, by the compilers' reports": totals["inlined"],
        "dropped: same source / body or near duplicate in another split": (
            f"{totals['dropped_exact']:,} / {totals['dropped_body']:,} + {totals['dropped_near']:,}"
        ),
        "duplicates across splits that `verify` found": figures["split_leaks"],
        "driver's peak memory, ten times the functions": f"{figures['driver_memory_growth']} times",
    }
    systems = Counter(
        (way.get("system", ""), way["mode"])
        for project in index.projects.values()
        for way in project["builds"].values()
    )
    return {
        "sizes": markdown(("", "number"), sizes.items()),
        "builds": markdown(
            ("build system", "mode", "builds"), ((*key, number) for key, number in sorted(systems.items()))
        ),
        "units": markdown(
            ("toolchain", "units", "compiled", "share"),
            (
                (name, count["units"], count["compiled"], f"{count['compiled'] / count['units']:.1%}")
                for name, count in summary["compiled"].items()
            ),
        ),
        "failures": markdown(("toolchain / stage / cause", "units"), summary["failures"].items()),
        "variants": markdown(
            ("variant", "functions", "distinct bodies", "median instructions", "code bytes", "tokens"),
            (
                (
                    name,
                    *(
                        v[key]
                        for key in (
                            "functions",
                            "distinct_bodies",
                            "median_instructions",
                            "code_bytes",
                            "tokens",
                        )
                    ),
                )
                for name, v in summary["variants"].items()
            ),
        ),
        "same": markdown(
            ("levels", "functions with the same body at both"),
            ((pair, f"{share:.1%}") for pair, share in summary["same_body"].items()),
        ),
        "licenses": markdown(("licence", "functions"), list(summary["licenses"].items())[:12]),
    }


if __name__ == "__main__":
    main()
