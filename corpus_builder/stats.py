"""Figures of a corpus: its index and its functions in, one JSON-able summary, tables and a picture out.

Takes plain mappings, so it knows neither shards nor records. One pass; memory is a few integers a variant.
Tokens are lexical, so that they compare across models: a mnemonic, register, symbol, number or mark each.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

_TOKEN = re.compile(r"[\w.$@]+|[^\w\s]")
_LEVELS_COMPARED = (("o0", "o1"), ("o1", "o2"), ("o2", "o3"), ("o2", "os"))
_LENGTHS = (1, 8, 16, 32, 64, 128, 256, 512)
_BARS = 40

Function = tuple[Mapping[str, Any], Mapping[str, str]]
"""The fields of `<key>.json`, and the assembly of each variant."""


@dataclass
class _VariantTally:
    instructions: list[int] = field(default_factory=list)
    code_bytes: int = 0
    tokens: int = 0
    bodies: set[int] = field(default_factory=set)

    def add(self, variant: Mapping[str, Any], text: str) -> None:
        self.instructions.append(variant["num_instructions"])
        self.code_bytes += variant["code_bytes"]
        self.tokens += len(_TOKEN.findall(text))
        self.bodies.add(int(variant["body_sha256"][:16], 16))

    def summary(self) -> dict[str, Any]:
        return {
            "functions": len(self.instructions),
            "distinct_bodies": len(self.bodies),
            "instructions": sum(self.instructions),
            "median_instructions": median(self.instructions),
            "code_bytes": self.code_bytes,
            "tokens": self.tokens,
        }


class _Levels:
    """How often two levels of one compiler give a function the same body."""

    def __init__(self) -> None:
        self._both: Counter[str] = Counter()
        self._equal: Counter[str] = Counter()

    def add(self, variants: Mapping[str, Mapping[str, Any]]) -> None:
        toolchains = {name.rpartition(".")[0] for name in variants}
        for toolchain in toolchains:
            for first, second in _LEVELS_COMPARED:
                one, two = variants.get(f"{toolchain}.{first}"), variants.get(f"{toolchain}.{second}")
                if one and two:
                    self._both[f"{first}={second}"] += 1
                    self._equal[f"{first}={second}"] += one["body_sha256"] == two["body_sha256"]

    def summary(self) -> dict[str, float]:
        return {pair: round(self._equal[pair] / number, 4) for pair, number in sorted(self._both.items())}


def summarize(index: Mapping[str, Any], functions: Iterable[Function]) -> dict[str, Any]:
    """Totals, splits, projects, variants, licences and failures of a corpus.

    `index` holds the fields of `index.json`.
    """
    variants: defaultdict[str, _VariantTally] = defaultdict(_VariantTally)
    variants_of: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    clusters: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    levels = _Levels()
    clones = inlined = 0
    for function, assembly in functions:
        splits[function["split"]] += 1
        clusters[function["cluster"]] += 1
        licenses[function["file_license"] or function["license"]] += 1
        variants_of[function["project"]] += len(function["variants"])
        levels.add(function["variants"])
        for name, variant in function["variants"].items():
            variants[name].add(variant, assembly[name])
            lengths[max(bound for bound in _LENGTHS if bound <= max(1, variant["num_instructions"]))] += 1
            clones += len(variant["clones"])
            inlined += len(variant["inlined"])
    shown = ("version", "license", "split", "units", "functions")
    return {
        "name": index["name"],
        "totals": {
            **index["totals"],
            "tokens": sum(tally.tokens for tally in variants.values()),
            "clones": clones,
            "inlined": inlined,
        },
        "toolchains": dict(index["toolchains"]),
        "splits": dict(splits),
        "near_duplicates": sum(size for size in clusters.values() if size > 1),
        "projects": {
            name: {key: project[key] for key in shown} | {"variants": variants_of[name]}
            for name, project in index["projects"].items()
        },
        "variants": {name: variants[name].summary() for name in sorted(variants)},
        "licenses": dict(licenses.most_common()),
        "lengths": {f"{bound}+": lengths[bound] for bound in _LENGTHS},
        "same_body": levels.summary(),
        "compiled": dict(index["compiled"]),
        "failures": dict(index["failures"]),
    }


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """The summary for a terminal."""
    yield _table("Corpus " + summary["name"], ("", "number"), summary["totals"].items())
    yield _table("Projects", ("project", *_columns(summary["projects"])), _rows(summary["projects"]))
    if summary["variants"]:
        yield _table("Variants", ("variant", *_columns(summary["variants"])), _rows(summary["variants"]))
    if summary["same_body"]:
        rows = ((pair, f"{share:.1%}") for pair, share in summary["same_body"].items())
        yield _table("Same body at two levels", ("levels", "functions"), rows)
    yield _table("Licences", ("license", "functions"), summary["licenses"].items())
    if summary["compiled"]:
        yield compiled_table(summary["compiled"])
    yield failure_table(summary["failures"])


def compiled_table(compiled: Mapping[str, Mapping[str, int]]) -> Table:
    """Units that compiled at every level, by toolchain."""
    rows = (
        (name, counts["units"], counts["compiled"], f"{counts['compiled'] / max(1, counts['units']):.1%}")
        for name, counts in compiled.items()
    )
    return _table("Units compiled at every level", ("toolchain", "units", "compiled", "share"), rows)


def failure_table(failures: Mapping[str, int]) -> Table:
    """Failures by toolchain, stage and cause."""
    rows = ((*name.split("/"), number) for name, number in failures.items())
    return _table("Failures" if failures else "No failures", ("toolchain", "stage", "cause", "units"), rows)


def plot(summary: Mapping[str, Any], file: Path) -> None:
    """Functions by project, by variant and by length, side by side, as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    by_project, by_variant, by_length = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    projects = sorted(summary["projects"].items(), key=lambda item: item[1]["functions"])[-_BARS:]
    by_project.barh([name for name, _ in projects], [project["functions"] for _, project in projects])
    by_project.set_title(f"functions by project (the largest {len(projects)})")
    variants = list(reversed(summary["variants"].items()))
    by_variant.barh([name for name, _ in variants], [variant["functions"] for _, variant in variants])
    by_variant.set_title("functions by variant")
    by_length.bar(list(summary["lengths"]), list(summary["lengths"].values()))
    by_length.set_title("function variants by instructions")
    for axes in (by_project, by_variant):
        axes.tick_params(axis="y", labelsize=7)
    figure.savefig(file, dpi=110)


def _columns(group: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [key.replace("_", " ") for key in next(iter(group.values()), {})]


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
