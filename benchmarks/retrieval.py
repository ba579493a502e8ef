"""The protocol's figures of the model that comes with asmtrain, beside all baselines (docs/embedding.md).

Runs `asmtrain eval retrieval` on the test splits of the Debian corpus and of the corpus of large packages
(pools of 10,000), both with models trained on the first alone. Prints Recall@1 of all lanes; `--save` keeps
the rows of all queries (`bucket` "all") in results/retrieval.json and draws README's pictures. Needs
`corpus-builder build` of configs/corpus/debian.yaml and search.yaml; `--kept` tells what earlier calls found.

    python benchmarks/retrieval.py [--model [NAME=]MODEL ..] [--kept] [--save]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

SHOWN = ("opcode_tfidf", "constants_tfidf", "combo", "bag", "untrained")
"""Baselines that have a column of their own."""

Row = Mapping[str, Any]


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
    print(table(rows))
    if arguments.save:
        parts = [{name: result[name] for name in ("settings", "models", "lanes")} for result in results]
        save("retrieval", {"parts": parts, "retrieval": rows})
        draw(pictured(results), Path("docs/images"))
    print(json.dumps({"rows": len(rows)}))


def table(rows: Sequence[Row]) -> str:
    """Recall@1 of every lane at its largest pool, in Markdown."""
    lanes: dict[tuple[str, str, str, int], dict[str, Row]] = {}
    for row in rows:
        lane = (row["view"], row["task"], row["isa"], row["pool"])
        lanes.setdefault(lane, {})[row["model"]] = row
    largest = {lane[:3]: lane for lane in sorted(lanes, key=lambda lane: lane[3])}
    own = [name for name in next(iter(lanes.values())) if name.startswith("asmtrain")]
    names = [*SHOWN, *own]
    lines = [f"| view | lane | pool | {' | '.join(names)} |", "|---|---|--:|" + "--:|" * len(names)]
    for view, task, isa, pool in largest.values():
        found = [lanes[view, task, isa, pool].get(name) for name in names]
        cells = ["" if row is None else f"{row['recall_at_1']:.2f}" for row in found]
        lines.append(f"| {view} | {task}, {isa} | {pool:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
