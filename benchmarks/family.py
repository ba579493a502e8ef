"""The family by size: what small models find that learnt from the one that ships, and how fast they are.

Trains each config twice, as it stands and without its teacher, exports them, and asks the harness for the
large package's pool of 10,000 and for lanes of the Debian corpus, beside the teacher itself and the teacher's
vectors cut. Runs that are done are kept, so that it goes on where it stopped. Prints a table, and as its last
line one JSON object; `--save` keeps it in results/family.json, and its table in docs/embedding.md. Needs
`corpus-builder build` of configs/corpus/debian.yaml and search.yaml.

    python benchmarks/family.py [CONFIG ..] [--steps N] [--save]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from _commands import BIN, call
from _report import markdown, report
from _saved import save

from asmtrain.encoder import default_model
from asmtrain.tasks import retrieval

CONFIGS = (Path("configs/train/embed-small.yaml"), Path("configs/train/embed-encoder.yaml"))
HOME = Path("runs/bench/family")
PAGE = Path("docs/embedding.md")
TRAINED_ON = Path("runs/debian/corpus")
ASKED = {
    TRAINED_ON: ("XO O0O3 aarch64", "XA+XO aarch64-x86_64", "XM all"),
    Path("runs/search/corpus"): ("XO mixed*",),
}
"""Corpus to lanes."""


def main() -> None:
    """Train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", type=Path, nargs="*", default=CONFIGS)
    parser.add_argument("--steps", type=int, help="of each training, in place of the configs'")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    shipped = default_model()
    members = {"shipped": str(shipped), "shipped@64": f"{shipped}@64"}
    for config in options.configs:
        for taught in (True, False):
            name = config.stem + ("" if taught else "-alone")
            members[name] = str(trained(name, config, taught=taught, steps=options.steps))
    found: dict[str, dict[str, Any]] = {}
    for corpus, lanes in ASKED.items():
        models = [f"{name}={model}" for name, model in members.items()]
        output = HOME / corpus.parent.name
        retrieval.run(
            models, corpus=corpus, output=output, trained_on=TRAINED_ON, lanes=lanes, with_bag=False
        )
        found[corpus.parent.name] = json.loads((output / "retrieval.json").read_bytes())
    rows = [row_of(name, model, found) for name, model in members.items()]
    print(table(rows))
    if options.save:
        save("family", {"rows": rows})
        report(PAGE, {"family": table(rows)})
    print(json.dumps(rows))


def trained(name: str, config: Path, *, taught: bool, steps: int | None) -> Path:
    """The exported embedding of a config, with its teacher or without."""
    settings = yaml.safe_load(config.read_text())
    stage = settings["stages"][-1]
    settings["run"] = str(HOME / name)
    stage["steps"] = steps or stage["steps"]
    if not taught:
        del stage["embedding"]["distill"]
    HOME.mkdir(parents=True, exist_ok=True)
    own = HOME / f"{name}.yaml"
    own.write_text(yaml.safe_dump(settings))
    folder = HOME / name / "export" / "embedding"
    if not (folder / "provenance.json").exists():
        call("launch/train.sh", own)
        call(BIN / "asmtrain", "export", HOME / name)
    return folder


def row_of(name: str, model: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a member is, costs and finds."""
    folder = Path(model.partition("@")[0])
    row: dict[str, Any] = {"model": name, "mb": round(size(folder) / 1e6, 1)}
    settings = json.loads((folder / "config.json").read_text())
    row |= {"layers": settings["num_hidden_layers"], "hidden": settings["hidden_size"]}
    taken = HOME / name / "metrics.jsonl"
    if taken.exists():
        steps = [json.loads(line) for line in taken.read_text().splitlines()]
        row |= {"steps": len(steps), "train_s": round(sum(step["seconds"] for step in steps))}
    for result in found.values():
        (cost,) = [item for item in result["models"] if item["model"] == name]
        row |= {"functions_per_s": round(cost["functions_per_s"]), "bytes": cost["bytes_per_vector"]}
        for own in (item for item in result["rows"] if (item["model"], item["bucket"]) == (name, "all")):
            row[f"{own['task']} {own['isa']}"] = own["recall_at_1"]  # of the largest pool, which comes last
    return row


def size(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lanes = [key for key in rows[0] if key.startswith("X")]
    costs = ("layers", "hidden", "mb", "bytes", "steps", "train_s", "functions_per_s")
    cells = [
        [row["model"], *(row.get(key, "") for key in costs), *(f"{row[lane]:.3f}" for lane in lanes)]
        for row in rows
    ]
    headings = ("layers", "width", "MB", "bytes a vector", "steps", "training s", "functions/s")
    return markdown(["model", *headings, *lanes], cells)


if __name__ == "__main__":
    main()
