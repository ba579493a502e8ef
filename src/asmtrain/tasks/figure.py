"""The picture of a retrieval evaluation: one panel a lane, one bar a model, at the largest pool.

In go the rows of `retrieval.json`, out comes a PNG. Matplotlib draws on its file backend: no display is
needed, and no global state of pyplot is touched.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from corpus_builder.shards import atomic_output

_NAMES = {
    "random": "random order",
    "opcode_histogram": "opcode histogram",
    "opcode_tfidf": "opcode 3-gram TF-IDF",
    "constants_tfidf": "constants TF-IDF",
    "untrained": "same model, untrained",
    "trained": "asmtrain",
}
_COLOURS = {"trained": "#c8501e", "untrained": "#e3b49c"}
_GREYS = ("#d4d8dd", "#aab2bb", "#808b97", "#5d6874")
_INK, _RULE = "#22272e", "#e6e8eb"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw Recall@1 of every model in every lane into a PNG."""
    lanes: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:  # pools stand in rising order: the last, largest one stays
        lanes.setdefault((row["task"], row["isa"]), {})[row["model"]] = row
    columns = min(len(lanes), 3)
    lines = -(-len(lanes) // columns)
    figure = Figure(
        figsize=(4.1 * columns, 2.75 * lines + 0.9), dpi=150, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        "Finding a function again, compiled another way: Recall@1",
        x=0.012,
        ha="left",
        fontsize=13,
        color=_INK,
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for at, ((task, isa), models) in enumerate(lanes.items()):
        _panel(axes[at], task, isa, models, is_first=at % columns == 0)
    for axis in axes[len(lanes) :]:
        axis.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_output(path) as stream:
        stream.write(buffer.getvalue())


def _panel(
    axis: Any, task: str, isa: str, models: Mapping[str, Mapping[str, Any]], *, is_first: bool
) -> None:
    greys = iter(_GREYS)
    names = list(models)
    values = [models[name]["recall_at_1"] for name in names]
    colours = [_COLOURS.get(name) or next(greys, _GREYS[-1]) for name in names]
    bars = axis.barh([_NAMES.get(name, name) for name in names], values, color=colours, height=0.72)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8.5, color=_INK)
    axis.invert_yaxis()
    if not is_first:
        axis.set_yticklabels([])
    axis.set_xlim(0, 1.08)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    first = models[names[0]]
    where = "" if isa == task else f" on {isa}"
    axis.set_title(f"{task.replace('-', ' to ')}{where}", loc="left", fontsize=10.5, color=_INK, pad=16)
    axis.text(
        0,
        1.03,
        f"{first['num_queries']} functions of {first['num_projects']} unseen projects, pool {first['pool']}",
        transform=axis.transAxes,
        fontsize=8,
        color=_GREYS[-1],
    )
    axis.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    axis.grid(axis="x", color=_RULE, linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)
