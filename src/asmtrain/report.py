"""A run on one page: what was trained on what, how it went, what came out.

In: a run folder, finished or not, and folders of evaluations. Out: one HTML file that needs nothing beside
it: curves are drawn into it as SVG. Nothing in the run is changed, and a run under way may be reported on.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from asmtrain import checkpoint
from asmtrain.errors import CheckpointError
from asmtrain.metrics import evaluations_of, read_lines
from corpus_builder.shards import atomic_output

_TEMPLATE = Path(__file__).with_suffix(".html.j2")
_CURVES = {
    "loss": "loss",
    "grad_norm": "gradient norm, before clipping",
    "lr": "learning rate",
    "tokens_per_s": "tokens/s",
}
_SMOOTHED_SHARE = 0.05
"""Of a stage's steps: the window of the median that is drawn over noisy curves."""


@dataclass(frozen=True)
class StageReport:
    """One stage in a line of the table."""

    name: str
    steps: int
    """Done so far."""
    first_loss: float
    last_loss: float
    """Median of the last twentieth of the steps."""
    valid_loss: float | None
    num_tokens: int
    tokens_per_s: float
    """Median over steps."""
    seconds: float


def run(folder: Path, output: Path | None = None, evaluations: Sequence[Path] = ()) -> Path:
    """Write the report of a run; returns its path, RUN/report.html if none is given.

    Raises:
        CheckpointError: the folder holds no run, or one that has not taken a step.
        OutputError: the report cannot be written.
    """
    steps = read_steps(folder)
    results = {
        result.name: result for result in map(checkpoint.read_result, checkpoint.stage_folders(folder))
    }
    stages = {
        name: [step | {"tokens_per_s": step["num_tokens"] / step["seconds"]} for step in own]
        for name, own in groupby(steps, key=lambda step: str(step["stage"]))
    }
    measured: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(evaluations_of(folder)):
        measured.setdefault(line["stage"], []).append(line)
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            run=folder,
            is_finished=(folder / "finished.json").exists(),
            stages=[
                summary(own, results[name].valid_loss if name in results else None)
                for name, own in stages.items()
            ],
            curves={name: Markup(curves(own, measured.get(name, []))) for name, own in stages.items()},
            config=(folder / "config.yaml").read_text(encoding="utf-8"),
            corpora={path: sha for result in results.values() for path, sha in result.corpora.items()},
            tables=[
                *(perplexity_table(name, own[-1]) for name, own in measured.items() if own[-1]["perplexity"]),
                *(table for path in evaluations for table in evaluation_tables(path)),
            ],
        )
    )
    path = output or folder / "report.html"
    with atomic_output(path) as stream:
        stream.write(page.encode())
    return path


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The steps in `metrics.jsonl`; a line that is being written is left out.

    Raises:
        CheckpointError: there is none.
    """
    steps = read_lines(folder / "metrics.jsonl")
    if not steps:
        raise CheckpointError(
            f"{folder} is no run that has taken a step: it has no metrics.jsonl with one",
            remedy="name the folder in the training config's `run`",
        )
    return steps


def summary(steps: Sequence[Mapping[str, Any]], valid_loss: float | None) -> StageReport:
    """One stage in figures."""
    window = max(1, round(len(steps) * _SMOOTHED_SHARE))
    return StageReport(
        name=steps[0]["stage"],
        steps=steps[-1]["step"],
        first_loss=steps[0]["loss"],
        last_loss=median(step["loss"] for step in steps[-window:]),
        valid_loss=valid_loss,
        num_tokens=sum(step["num_tokens"] for step in steps),
        tokens_per_s=median(step["tokens_per_s"] for step in steps),
        seconds=sum(step["seconds"] for step in steps),
    )


def curves(steps: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]] = ()) -> str:
    """A stage's figures over its steps, the loss with that of its evaluations, as SVG."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    FigureCanvasSVG(figure)
    places = [step["step"] for step in steps]
    window = max(1, round(len(steps) * _SMOOTHED_SHARE))
    for axis, (name, title) in zip(figure.subplots(1, len(_CURVES)), _CURVES.items(), strict=True):
        values = [step[name] for step in steps]
        smooth = [median(values[max(0, at - window) : at + window + 1]) for at in range(len(values))]
        axis.plot(places, values, color="#aab2bb", linewidth=0.6)
        axis.plot(places, smooth, color="#c8501e", linewidth=1.3)
        if name == "loss" and measured:
            points = [line["step"] for line in measured], [line["loss"] for line in measured]
            axis.plot(*points, "o-", color="#1f5fa8", linewidth=1.0, markersize=3, label="validation")
            axis.legend(fontsize=7, frameon=False)
        axis.set_title(title, loc="left", fontsize=9)
        axis.tick_params(labelsize=7, length=2)
        axis.grid(color="#e6e8eb", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


@dataclass(frozen=True)
class EvaluationTable:
    """Rows of one result file."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def perplexity_table(stage: str, measured: Mapping[str, Any]) -> EvaluationTable:
    """Instruction sets by -O levels, of a stage's last evaluation."""
    cells = {tuple(name.split(".")): value for name, value in measured["perplexity"].items()}
    isas, levels = (sorted({cell[place] for cell in cells}) for place in (0, 1))
    return EvaluationTable(
        f"{stage}: validation perplexity a token after {measured['step']:,} steps",
        ("ISA", *levels),
        tuple((isa, *(_cell(cells.get((isa, level))) for level in levels)) for isa in isas),
    )


def evaluation_tables(folder: Path) -> list[EvaluationTable]:
    """A table for each JSON file of an evaluation that holds rows.

    Raises:
        CheckpointError: the folder has no such file.
    """
    tables = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content.get("rows", []) if isinstance(content, dict) else content
        if rows and all(isinstance(row, dict) for row in rows):
            # Of retrieval's rows by size of function there are thousands.
            rows = [row for row in rows if row.get("bucket", "all") == "all"]
            columns = tuple(key for key, value in rows[0].items() if not isinstance(value, dict | list))
            cells = tuple(tuple(_cell(row.get(column)) for column in columns) for row in rows)
            tables.append(EvaluationTable(f"{folder.name}/{path.name}", columns, cells))
    if not tables:
        raise CheckpointError(
            f"{folder} holds no results: no JSON file with rows",
            remedy="name a folder that asmtrain eval wrote",
        )
    return tables


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
