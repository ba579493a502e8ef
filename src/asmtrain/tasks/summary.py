"""What a terminal shows of a retrieval evaluation: a line a lane at its largest pool, then a line a model.

In goes what `retrieval.json` holds, out comes text; everything else stays in the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HIDDEN = ("random", "length", "bm25", "minhash", "numeric")
"""Weaker than those shown in every lane that was measured; their rows are in the file."""

Group = Mapping[str, Mapping[str, Any]]
"""Rows by model."""

_LEGEND = """\
Asked: functions compiled both ways, less those that training has seen, those under {min_instructions}
instructions on a side, with equal bodies on both, or sharing a body, the source, or name and file with one
already in. A tie counts as its mean rank. Smaller pools, buckets, intervals, counts: retrieval.json."""


def largest(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], Group]:
    """The rows over all queries at each lane's largest pool, by view, task and ISA."""
    groups: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:  # pools stand in rising order: the last, largest one stays
        if row["bucket"] == "all":
            groups.setdefault((row["view"], row["task"], row["isa"]), {})[row["model"]] = row
    return dict(groups)


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print both tables."""
    groups = largest(result["rows"])
    models = [m for m in dict.fromkeys(row["model"] for row in result["rows"]) if m not in HIDDEN]
    table = _table("Retrieval: Recall@1 MRR@10 among the largest pool", ("lane",), ("pool", "asked", *models))
    for (view, task, isa), group in groups.items():
        lane = f"{task} {isa}" if view == "default" else f"{task} {isa}, {view}"
        best = max(group[model]["recall_at_1"] for model in models if model in group)
        first = next(iter(group.values()))
        cells = (_cell(group.get(model), best) for model in models)
        table.add_row(lane, f"{first['pool']:,}", f"{first['num_queries']:,}", *cells)
    console.print(table)
    console.print(_LEGEND.format(**result["settings"]), style="dim")
    leaks = ", ".join(f"{number} by {rule}" for rule, number in result["settings"]["leaks"].items())
    console.print(f"Left out as seen in training: {leaks}.", style="dim")
    costs = _table("One CPU thread", ("model",), ("functions/s", "bytes a vector"))
    for row in result["models"]:
        if row["view"] == "default":
            costs.add_row(row["model"], f"{row['functions_per_s']:,.0f}", f"{row['bytes_per_vector']:,.0f}")
    console.print(costs)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading.replace("_", " "), justify="right", max_width=11)
    return table


def _cell(row: Mapping[str, Any] | None, best: float) -> str:
    if row is None:
        return ""
    text = f"{row['recall_at_1']:.2f} {row['mrr_at_10']:.2f}"
    return f"[bold]{text}[/bold]" if row["recall_at_1"] == best else text
