"""The pictures of evaluations: bars, curves over pool sizes, and maps over levels and ISAs; bars of probes.

In go the rows of `retrieval.json` or `probe.json`, out come PNGs. Matplotlib draws on its file backend: no
display is needed, and no global state of pyplot is touched.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asmtrain.tasks.lanes import CROSSED_LEVELS
from asmtrain.tasks.summary import HIDDEN, Group, largest
from corpus_builder.shards import atomic_output

Rows = Sequence[Mapping[str, Any]]
Lane = tuple[str, str, str]
"""View, task, ISA."""
Panel = Callable[[Any, Lane, Any], None]

_NAMES = {
    "opcode_tfidf": "opcode TF-IDF",
    "constants_tfidf": "constants TF-IDF",
    "combo": "opcodes, constants, counts",
    "constant": "mean, commonest class",
    "opcodes": "opcode counts",
    "bag": "trained bag of tokens",
    "untrained": "same model, untrained",
    "trained": "asmtrain",
}
_COLOURS = {"trained": "#c8501e", "untrained": "#e3b49c", "bag": "#2f6f8f"}
_GREYS = ("#d4d8dd", "#aab2bb", "#808b97")
_OTHERS = ("#7a5195", "#3d8b5f", "#b8860b", "#1f4e79")
"""Of further models."""
_INK, _RULE = "#22272e", "#e6e8eb"
_DRAWN = ("XO O0O3", "XO mixed", "XC O2", "XA O2", "XA+XO", "XM")
"""Tasks that have a panel; where a corpus has none of them, every lane has one."""


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Draw `retrieval.png`, `retrieval-pools.png` and `retrieval-maps.png`; returns their paths."""
    chosen = {lane: group for lane, group in largest(rows).items() if lane[1] in _DRAWN}
    lanes = chosen or dict(list(largest(rows).items())[:9])
    paths = [folder / "retrieval.png", folder / "retrieval-pools.png"]
    _panels(paths[0], lanes, "Finding a function again, compiled another way: Recall@1", _bars, height=2.75)
    by_pool = {lane: _by_pool(rows, lane) for lane in lanes}
    _panels(paths[1], by_pool, "Recall@1 against the pool's size", _curves, height=3.0)
    grids = {lane: grid for lane, grid in _maps(rows).items() if len(grid) > 1}
    if grids:
        paths.append(folder / "retrieval-maps.png")
        title = f"Recall@1 of {_label(_headline(rows))}, from row to column"
        _panels(paths[2], grids, title, _map, height=3.4)
    return paths


def draw_probe(rows: Rows, folder: Path) -> Path:
    """Draw `probe.png`, a panel a target; returns its path."""
    path = folder / "probe.png"
    targets = dict.fromkeys(row["target"] for row in rows)
    panels = {
        ("default", target.replace("_", " "), ""): {
            row["model"]: row for row in rows if row["target"] == target
        }
        for target in targets
    }
    _panels(path, panels, "What a frozen vector tells, by ridge regression", _probe_bars, height=2.2)
    return path


def draw_ranks(rows: Rows, folder: Path) -> Path:
    """Draw `cve.png`, how far down the right function stands, a panel an ISA; returns its path."""
    path = folder / "cve.png"
    panels: dict[Lane, dict[str, list[float]]] = {}
    for row in rows:
        lane = ("default", "x86_64 to", row["isa"])
        panels.setdefault(lane, {}).setdefault(row["model"], []).append(row["rank"])
    _panels(path, panels, "Vulnerable functions found among the nearest", _found, height=3.4)
    return path


def _label(model: str) -> str:
    return _NAMES.get(model, model)


def _headline(rows: Rows) -> str:
    """The last model: those judged stand behind the baselines."""
    return str(rows[-1]["model"])


def _colours(models: Sequence[str]) -> dict[str, str]:
    greys, others = iter(_GREYS), iter(_OTHERS)
    plain = {name for name in _NAMES if name not in _COLOURS}
    return {
        name: _COLOURS.get(name) or next(greys if name in plain else others, _GREYS[-1]) for name in models
    }


def _panels(path: Path, content: Mapping[Lane, Any], title: str, panel: Panel, *, height: float) -> None:
    """One panel a lane, three in a line."""
    columns = min(len(content), 3)
    num_lines = -(-len(content) // columns)
    size = (4.1 * columns, height * num_lines + 0.9)
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=_INK)
    axes = figure.subplots(num_lines, columns, squeeze=False).flatten()
    for at, (lane, value) in enumerate(content.items()):
        panel(axes[at], lane, value)
        _plain(axes[at], lane)
        if at % columns and panel in (_bars, _probe_bars):
            axes[at].set_yticklabels([])
    for axis in axes[len(content) :]:
        axis.remove()
    lines, names = axes[0].get_legend_handles_labels()
    if panel in (_curves, _found):
        figure.legend(lines, names, loc="outside lower left", ncols=len(names), fontsize=8.5, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_output(path) as stream:
        stream.write(buffer.getvalue())


def _plain(axis: Any, lane: Lane) -> None:
    view, task, isa = lane
    where = " ".join(part for part in (task, isa, "" if view == "default" else f"({view})") if part)
    axis.set_title(where, loc="left", fontsize=10.5, color=_INK, pad=16)
    axis.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _note(axis: Any, text: str) -> None:
    axis.text(0, 1.03, text, transform=axis.transAxes, fontsize=8, color=_GREYS[-1])


def _bars(axis: Any, lane: Lane, models: Group) -> None:
    shown = [name for name in models if name not in HIDDEN]
    _bars_of(axis, {name: models[name]["recall_at_1"] for name in shown})
    first = models[shown[0]]
    _note(
        axis,
        f"{first['num_queries']} functions of {first['num_projects']} unseen projects, pool {first['pool']}",
    )


def _probe_bars(axis: Any, lane: Lane, models: Group) -> None:
    score = "r2" if "r2" in next(iter(models.values())) else "accuracy"
    _bars_of(axis, {name: row[score] for name, row in models.items()})
    _note(axis, {"r2": "R2 of its logarithm", "accuracy": "accuracy"}[score])


def _bars_of(axis: Any, values: Mapping[str, float]) -> None:
    """One bar a model, from 0 to 1; below 0 there is none, but its number."""
    lengths = [max(value, 0.0) for value in values.values()]
    bars = axis.barh(
        [_label(name) for name in values], lengths, color=list(_colours(list(values)).values()), height=0.72
    )
    labels = [f"{value:.2f}" for value in values.values()]
    axis.bar_label(bars, labels, padding=3, fontsize=8.5, color=_INK)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.grid(axis="x", color=_RULE, linewidth=0.8)


def _found(axis: Any, lane: Lane, ranks: Mapping[str, list[float]]) -> None:
    """Share of functions at each rank or before."""
    shown = [name for name in ranks if name not in HIDDEN]
    last = max(10.0, *(max(ranks[name]) for name in shown))
    for name, colour in _colours(shown).items():
        places = [1.0, *sorted(ranks[name]), last]
        shares = [0.0, *(np.arange(1, len(places) - 1) / (len(places) - 2)), 1.0]
        axis.step(places, shares, where="post", color=colour, label=_label(name))
    axis.set_xscale("log")
    axis.set_xlim(1, last)
    ticks = [10**power for power in range(7) if 10**power <= last]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 1.02)
    axis.grid(color=_RULE, linewidth=0.8)
    _note(axis, f"{len(next(iter(ranks.values())))} functions; share against rank")


def _by_pool(rows: Rows, lane: Lane) -> dict[str, list[tuple[int, float]]]:
    """Pool size and Recall@1 by model."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["bucket"] == "all" and (row["view"], row["task"], row["isa"]) == lane:
            curves.setdefault(row["model"], []).append((row["pool"], row["recall_at_1"]))
    return curves


def _curves(axis: Any, lane: Lane, curves: Mapping[str, list[tuple[int, float]]]) -> None:
    shown = [name for name in curves if name not in HIDDEN]
    for name, colour in _colours(shown).items():
        sizes, values = zip(*curves[name], strict=True)
        axis.plot(sizes, values, color=colour, marker="o", markersize=3, label=_label(name))
    axis.set_xscale("log")
    ticks = sorted({size for points in curves.values() for size, _ in points})
    axis.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 1.02)
    axis.grid(color=_RULE, linewidth=0.8)


Grid = dict[tuple[str, str], float]
"""The cells that are known, by the names of row and column."""


def _maps(rows: Rows) -> dict[Lane, Grid]:
    """A map of levels for each ISA, and one of ISAs at another level, of the last model."""
    headline = _headline(rows)
    crossed = {f"XO O{low[1:]}O{high[1:]}": (f"O{low[1:]}", f"O{high[1:]}") for low, high in CROSSED_LEVELS}
    levels: dict[Lane, Grid] = {}
    isas: dict[Lane, Grid] = {}
    for (view, task, isa), group in largest(rows).items():
        value = group[headline]["recall_at_1"]
        if task in crossed:
            levels.setdefault((view, "levels,", isa), {})[crossed[task]] = value
        elif task in ("XA+XO", "XO mixed"):
            left, _, right = isa.partition("-")
            isas.setdefault((view, "ISAs,", "another level"), {})[left, right or left] = value
    return levels | isas


def _map(axis: Any, lane: Lane, grid: Grid) -> None:
    left, right = (sorted({pair[side] for pair in grid}) for side in (0, 1))
    table = np.full((len(left), len(right)), np.nan)
    for (row, column), value in grid.items():
        table[left.index(row), right.index(column)] = value
    axis.imshow(table, cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (down, across), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "white" if value > 0.6 else _INK
            axis.text(across, down, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(len(right)), right)
    axis.set_yticks(range(len(left)), left)
