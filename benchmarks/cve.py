"""Vulnerable functions found again in code of other ISAs, by models and baselines (`asmtrain eval cve`).

Prints the command's table, and as its last line one JSON object without the rows of single functions;
`--save` keeps it in results/cve.json, and its table in docs/embedding.md. Needs both corpora:
`corpus-builder build` of configs/corpus/cve-before.yaml, and of cve-after.yaml.

    python benchmarks/cve.py [--model [NAME=]MODEL ..] [--trained-on CORPUS] [--output runs/cve/eval] [--save]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _report import markdown, report
from _saved import save

from asmtrain.encoder import default_model
from asmtrain.tasks import cve


def main() -> None:
    """Evaluate, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="[NAME=]MODEL", dest="models")
    parser.add_argument("--before", type=Path, default=Path("runs/cve/before"))
    parser.add_argument("--after", type=Path, default=Path("runs/cve/after"))
    parser.add_argument("--trained-on", type=Path, metavar="CORPUS")
    parser.add_argument("--output", type=Path, default=Path("runs/cve/eval"))
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    models = arguments.models or [f"asmtrain={default_model()}"]
    cve.run(models, arguments.before, arguments.after, arguments.output, trained_on=arguments.trained_on)
    result = json.loads((arguments.output / "cve.json").read_bytes())
    figures = {name: result[name] for name in ("settings", "models", "summary", "cves")}
    if arguments.save:
        save("cve", figures)
        report(Path("docs/embedding.md"), {"cve": table(result["summary"])})
    print(json.dumps(figures))


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The page's table: a row an ISA and model."""
    named = ("recall_at_1", "recall_at_10", "mrr_at_10", "vulnerable_nearer", "fixed_nearer")
    cells = [
        [
            row["isa"],
            row["model"],
            *(f"{row[name]:.2f}" for name in named),
            "{:.2f}-{:.2f}".format(*row["ci95"]),
        ]
        for row in summary
    ]
    columns = ["to", "model", "R@1", "R@10", "MRR@10", "vulnerable nearer", "fixed nearer", "95 % of R@1"]
    return markdown(columns, cells)


if __name__ == "__main__":
    main()
