"""Figures of a corpus: its index and its functions' metadata in, one JSON-able summary and tables out.

Takes plain mappings, so it knows neither shards nor records. One pass; memory is one integer a variant.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.table import Table


@dataclass
class _VariantTally:
    instructions: list[int] = field(default_factory=list)
    code_bytes: int = 0
    bodies: set[int] = field(default_factory=set)

    def add(self, variant: Mapping[str, Any]) -> None:
        self.instructions.append(variant["num_instructions"])
        self.code_bytes += variant["code_bytes"]
        self.bodies.add(int(variant["body_sha256"][:16], 16))

    def summary(self) -> dict[str, Any]:
        return {
            "functions": len(self.instructions),
            "distinct_bodies": len(self.bodies),
            "instructions": sum(self.instructions),
            "median_instructions": median(self.instructions),
            "code_bytes": self.code_bytes,
        }


def summarize(index: Mapping[str, Any], functions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals, splits, projects, variants and failures of a corpus.

    `index` holds the fields of `index.json`, `functions` those of each `<key>.json`.
    """
    variants: defaultdict[str, _VariantTally] = defaultdict(_VariantTally)
    variants_of: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    clusters: Counter[str] = Counter()
    for function in functions:
        splits[function["split"]] += 1
        clusters[function["cluster"]] += 1
        variants_of[function["project"]] += len(function["variants"])
        for name, variant in function["variants"].items():
            variants[name].add(variant)
    shown = ("version", "license", "split", "units", "functions")
    return {
        "name": index["name"],
        "totals": dict(index["totals"]),
        "toolchains": dict(index["toolchains"]),
        "splits": dict(splits),
        "near_duplicates": sum(size for size in clusters.values() if size > 1),
        "projects": {
            name: {key: project[key] for key in shown} | {"variants": variants_of[name]}
            for name, project in index["projects"].items()
        },
        "variants": {name: variants[name].summary() for name in sorted(variants)},
        "failures": dict(index["failures"]),
    }


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """The summary for a terminal."""
    yield _table("Corpus " + summary["name"], ("", "number"), summary["totals"].items())
    yield _table("Projects", ("project", *_columns(summary["projects"])), _rows(summary["projects"]))
    if summary["variants"]:
        yield _table("Variants", ("variant", *_columns(summary["variants"])), _rows(summary["variants"]))
    yield failure_table(summary["failures"])


def failure_table(failures: Mapping[str, int]) -> Table:
    """Failures by toolchain, stage and cause."""
    rows = ((*name.split("/"), number) for name, number in failures.items())
    return _table("Failures" if failures else "No failures", ("toolchain", "stage", "cause", "units"), rows)


def _columns(group: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [key.replace("_", " ") for key in next(iter(group.values()))]


def _rows(group: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for name, values in group.items():
        yield (name, *values.values())


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    cells = list(rows)
    for position, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[position], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row))
    return table
