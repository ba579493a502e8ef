"""The protocol's figures of the model that comes with asmtrain, beside all baselines (docs/embedding.md).

Runs `asmtrain eval retrieval` on the test splits of the Debian corpus and of the corpus of large packages
(pools of 10,000), both with models trained on the first alone. Prints the tables of README and
docs/embedding.md; `--save` writes them there, draws the pictures, and keeps the rows of all queries in
results/retrieval.json. Needs `corpus-builder build` of configs/corpus/debian.yaml and search.yaml; `--kept`
tells what earlier calls found.

    python benchmarks/retrieval.py [--model [NAME=]MODEL ..] [--kept] [--save]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _report import markdown, report
from _saved import save

from asmtrain.encoder import default_model
from asmtrain.tasks import retrieval
from asmtrain.tasks.figure import draw

TRAINED_ON, LARGE = Path("runs/debian/corpus"), Path("runs/search/corpus")
PARTS = {
    Path("runs/debian/eval"): {"corpus": TRAINED_ON, "views": ("default", "masked"), "lanes": ("*",)},
    Path("runs/search/eval"): {"corpus": LARGE, "views": ("default", "masked"), "lanes": ("XO mixed*",)},
}
"""Output folder to what is asked there."""

NAMES = {
    "random": "random",
    "length": "length",
    "opcode_tfidf": "opcode TF-IDF",
    "bm25": "BM25",
    "minhash": "minhash",
    "constants_tfidf": "constants TF-IDF",
    "numeric": "numeric",
    "combo": "combo",
    "bag": "bag",
    "untrained": "untrained",
    "asmtrain": "**asmtrain**",
    "asmtrain64": "at 64",
}
"""Models in the order of a table's columns."""

HEADLINES = (
    *(("XO O0O3", "aarch64", 128), ("XO O0O3", "aarch64", 1000), ("XO O0O3", "riscv64", 1000)),
    *(("XO O0O3", "x86_64", 1000), ("XC O2", "aarch64", 1000), ("XC O2", "x86_64", 1000)),
    *(("XA O2", "aarch64-x86_64", 1000), ("XA O2", "riscv64-x86_64", 1000)),
    *(("XA+XO", "aarch64-x86_64", 1000), ("XM", "all", 1000)),
    *(("XO mixed", "aarch64", 1000), ("XO mixed", "aarch64", 10_000)),
)
"""Lanes of README's table, at the largest pool up to the number."""
HEADLINE_BASELINES = ("opcode_tfidf", "constants_tfidf", "combo", "bag", "untrained")
README, PAGE = Path("README.md"), Path("docs/embedding.md")

Row = Mapping[str, Any]
Lanes = dict[tuple[str, str, str, int], dict[str, Row]]


def main() -> None:
    """Evaluate, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="[NAME=]MODEL", dest="models")
    parser.add_argument("--kept", action="store_true", help="read what earlier calls wrote")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    shipped = default_model()
    models = arguments.models or [f"asmtrain={shipped}", f"asmtrain64={shipped}@64"]
    results = []
    for output, asked in PARTS.items():
        if not arguments.kept:
            retrieval.run(models, output=output, trained_on=TRAINED_ON, **asked)
        results.append(json.loads((output / "retrieval.json").read_bytes()))
    rows = [row for result in results for row in result["rows"] if row["bucket"] == "all"]
    lanes = by_lane(rows)
    tables = {view: table(lanes, view) for view in ("default", "masked")}
    print(headlines(lanes), *tables.values(), sep="\n")
    if arguments.save:
        parts = [{name: result[name] for name in ("settings", "models", "lanes")} for result in results]
        save("retrieval", {"parts": parts, "retrieval": rows})
        draw(pictured(results), Path("docs/images"))
        report(README, {"found": headlines(lanes)})
        report(PAGE, {f"lanes-{view}": text for view, text in tables.items()})
    print(json.dumps({"rows": len(rows)}))


def by_lane(rows: Sequence[Row]) -> Lanes:
    """View, task, ISA and pool to the row of each model."""
    lanes: Lanes = {}
    for row in rows:
        lanes.setdefault((row["view"], row["task"], row["isa"], row["pool"]), {})[row["model"]] = row
    return lanes


def largest(lanes: Lanes, view: str, task: str, isa: str, *, most: int) -> Mapping[str, Row]:
    """The rows of a lane at its largest pool of at most so many."""
    pool = max(key[3] for key in lanes if key[:3] == (view, task, isa) and key[3] <= most)
    return lanes[view, task, isa, pool]


def headlines(lanes: Lanes) -> str:
    """README's table: Recall@1, and of the shipped model MRR@10 and the interval too."""
    baselines = (NAMES[name] for name in HEADLINE_BASELINES)
    columns = ["Recall@1", "pool", *baselines, "**asmtrain** (MRR@10)", "95 %"]
    cells = []
    for task, isa, most in HEADLINES:
        rows = largest(lanes, "default", task, isa, most=most)
        own = rows["asmtrain"]
        others = [rows[name]["recall_at_1"] for name in HEADLINE_BASELINES]
        best = f"{own['recall_at_1']:.2f}"
        best = f"**{best}**" if own["recall_at_1"] > max(others) else best
        interval = "{:.2f}-{:.2f}".format(*own["ci95"])
        figures = [*(f"{value:.2f}" for value in others), f"{best} ({own['mrr_at_10']:.2f})", interval]
        cells.append([f"{task}, {isa}", own["pool"], *figures])
    return markdown(columns, cells)


def table(lanes: Lanes, view: str) -> str:
    """Recall@1 of all models on every lane of a view, at 1,000 and at its largest pool."""
    cells = []
    for _, task, isa in dict.fromkeys(key[:3] for key in lanes if key[0] == view):
        for most in (1000, 100_000):
            rows = largest(lanes, view, task, isa, most=most)
            pool = next(iter(rows.values()))["pool"]
            figures = [f"{rows[name]['recall_at_1']:.2f}" if name in rows else "" for name in NAMES]
            cells.append((f"{task}, {isa}", pool, *figures))
    return markdown(["lane", "pool", *NAMES.values()], dict.fromkeys(cells))


def pictured(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows that README's pictures have room for; a lane of both corpora is shown on the larger one."""
    isas = ("aarch64", "aarch64-x86_64", "all")
    shown: dict[tuple[str, str], list[Row]] = {}
    for result in results:
        for lane in {(row["task"], row["isa"]) for row in result["rows"] if row["isa"] in isas}:
            shown[lane] = [row for row in result["rows"] if (row["task"], row["isa"]) == lane]
    rows = [row for of_lane in shown.values() for row in of_lane]
    return [
        {**row, "model": "trained" if row["model"] == "asmtrain" else row["model"]}
        for row in sorted(rows, key=lambda row: (row["task"], row["isa"]))
        if row["view"] == "default" and row["bucket"] == "all" and row["model"] != "asmtrain64"
    ]


if __name__ == "__main__":
    main()
