"""Vulnerable functions found again in code of other ISAs, by models and baselines (`asmtrain eval cve`).

Prints the command's table, and as its last line one JSON object without the rows of single functions;
`--save` keeps it in results/cve.json. Needs both corpora: `corpus-builder build` of
configs/corpus/cve-before.yaml, and of cve-after.yaml.

    python benchmarks/cve.py [--model [NAME=]MODEL ..] [--trained-on CORPUS] [--output runs/cve/eval] [--save]
"""

import argparse
import json
from pathlib import Path

from _saved import save

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
    models = arguments.models or ["runs/demo/export/embedding"]
    cve.run(models, arguments.before, arguments.after, arguments.output, trained_on=arguments.trained_on)
    result = json.loads((arguments.output / "cve.json").read_bytes())
    figures = {name: result[name] for name in ("settings", "models", "summary", "cves")}
    if arguments.save:
        save("cve", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
