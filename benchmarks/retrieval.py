"""The protocol's figures of the model that comes with asmtrain, beside all baselines (docs/embedding.md).

Runs `asmtrain eval retrieval` on the test split of the Debian corpus and on two corpora of large packages
(pools of 10,000): one on which words and settings were chosen, one that nobody looked at meanwhile. What is
trained learns from the first alone. Prints the tables of README and docs/embedding.md; `--save` writes them
there, draws the pictures, and keeps the rows of all queries in results/retrieval.json. Needs `corpus-builder
build` of configs/corpus/debian.yaml, search.yaml and unseen.yaml; `--kept` tells what earlier calls found.

    python benchmarks/retrieval.py [--model [NAME=]MODEL ..] [--kept] [--save]
"""

import argparse
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _report import markdown, report
from _saved import save

from asmtrain.encoder import default_model
from asmtrain.tasks import retrieval
from asmtrain.tasks.figure import draw

TRAINED_ON = Path("runs/debian/corpus")
ASKED = {
    "debian": ("*",),
    "search": ("XO mixed*",),
    "unseen": ("XO O0O3* aarch64", "XO mixed aarch64", "XA+XO*", "XM*"),
}
"""Corpora, as their configs call them, and the lanes that are asked of each, in both views."""

KEPT = ("settings", "models", "lanes", "date")
"""What results/retrieval.json says of each corpus beside the rows."""

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
    *(("debian", "XO O0O3", "aarch64", 128), ("debian", "XO O0O3", "aarch64", 1000)),
    *(("debian", "XO O0O3", "riscv64", 1000), ("debian", "XO O0O3", "x86_64", 1000)),
    *(("debian", "XC O2", "aarch64", 1000), ("debian", "XC O2", "x86_64", 1000)),
    *(("debian", "XA O2", "aarch64-x86_64", 1000), ("debian", "XA O2", "riscv64-x86_64", 1000)),
    *(("debian", "XA+XO", "aarch64-x86_64", 1000), ("debian", "XM", "all", 1000)),
    *(("search", "XO mixed", "aarch64", 10_000), ("unseen", "XO mixed", "aarch64", 10_000)),
    *(("unseen", "XA+XO", "aarch64-x86_64", 10_000), ("unseen", "XM", "all", 10_000)),
)
"""Lanes of README's table, by corpus, at the largest pool up to the number."""
MARKS = {"debian": "", "search": ", large", "unseen": ", unseen"}
"""What README's table says of a corpus."""
HEADLINE_BASELINES = ("opcode_tfidf", "constants_tfidf", "combo", "bag", "untrained")
README, PAGE, PICTURES = Path("README.md"), Path("docs/embedding.md"), Path("docs/images")

Row = Mapping[str, Any]
Lanes = dict[tuple[str, str, str, str, int], dict[str, Row]]
"""Corpus, view, task, ISA and pool to the row of each model."""


def main() -> None:
    """Evaluate, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", metavar="[NAME=]MODEL", dest="models")
    parser.add_argument("--kept", action="store_true", help="read what earlier calls wrote")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    shipped = default_model()
    models = arguments.models or [f"asmtrain={shipped}", f"asmtrain64={shipped}@64"]
    results = {}
    for name, asked in ASKED.items():
        corpus, output = Path("runs", name, "corpus"), Path("runs", name, "eval")
        if not arguments.kept:
            views = ("default", "masked")
            retrieval.run(models, corpus, output, trained_on=TRAINED_ON, views=views, lanes=asked)
        path = output / "retrieval.json"
        results[name] = json.loads(path.read_bytes())
        results[name]["date"] = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    rows = [
        {"corpus": name, **row}
        for name, result in results.items()
        for row in result["rows"]
        if row["bucket"] == "all"
    ]
    lanes = by_lane(rows)
    tables = {f"lanes-{view}": table(lanes, view, ["debian"]) for view in ("default", "masked")}
    tables |= {f"large-{view}": table(lanes, view, ["search", "unseen"]) for view in ("default", "masked")}
    print(headlines(lanes), *tables.values(), beaten(lanes), sep="\n")
    if arguments.save:
        parts = {name: {key: result[key] for key in KEPT} for name, result in results.items()}
        save("retrieval", {"parts": parts, "retrieval": rows})
        draw(pictured(rows, "debian"), PICTURES)
        draw(pictured(rows, "unseen"), PICTURES / "unseen")
        report(README, {"found": headlines(lanes)})
        report(PAGE, tables)
    print(json.dumps({"rows": len(rows)}))


def by_lane(rows: Sequence[Row]) -> Lanes:
    """The rows of each lane and pool, by model."""
    lanes: Lanes = {}
    for row in rows:
        where = (row["corpus"], row["view"], row["task"], row["isa"], row["pool"])
        lanes.setdefault(where, {})[row["model"]] = row
    return lanes


def largest(lanes: Lanes, *lane: str, most: int) -> Mapping[str, Row]:
    """The rows of a lane (corpus, view, task, ISA) at its largest pool of at most so many."""
    return lanes[*lane, max(key[-1] for key in lanes if key[:-1] == lane and key[-1] <= most)]


def beaten(lanes: Lanes) -> str:
    """On how many lanes and pools the shipped model finds more than others."""
    biggest = {key[:-1]: key for key in sorted(lanes, key=lambda key: key[-1])}.values()
    baselines = [name for name in NAMES if not name.startswith("asmtrain")]

    def count(keys: Iterable[Any], others: Sequence[str]) -> int:
        found = ({name: row["recall_at_1"] for name, row in lanes[key].items()} for key in keys)
        return sum(one["asmtrain"] > max(one[name] for name in others) for one in found)

    return (
        f"more than combo in {count(lanes, ['combo'])} of {len(lanes)} lanes and pools; at the largest pool "
        f"more than the bag in {count(biggest, ['bag'])}, than any baseline in {count(biggest, baselines)} "
        f"of {len(biggest)} lanes"
    )


def headlines(lanes: Lanes) -> str:
    """README's table: Recall@1, and of the shipped model MRR@10 and the interval too."""
    baselines = (NAMES[name] for name in HEADLINE_BASELINES)
    columns = ["Recall@1", "pool", *baselines, "**asmtrain** (MRR@10)", "95 %"]
    cells = []
    for corpus, task, isa, most in HEADLINES:
        rows = largest(lanes, corpus, "default", task, isa, most=most)
        own = rows["asmtrain"]
        others = [rows[name]["recall_at_1"] for name in HEADLINE_BASELINES]
        best = f"{own['recall_at_1']:.2f}"
        best = f"**{best}**" if own["recall_at_1"] > max(others) else best
        interval = "{:.2f}-{:.2f}".format(*own["ci95"])
        figures = [*(f"{value:.2f}" for value in others), f"{best} ({own['mrr_at_10']:.2f})", interval]
        cells.append([f"{task}, {isa}{MARKS[corpus]}", own["pool"], *figures])
    return markdown(columns, cells)


def table(lanes: Lanes, view: str, corpora: Sequence[str]) -> str:
    """Recall@1 of all models on every lane of a view; several corpora at 1,000 and 10,000."""
    cells = []
    for lane in dict.fromkeys(key[:-1] for key in lanes if key[0] in corpora and key[1] == view):
        corpus, _, task, isa = lane
        for most in (1000, 10_000) if len(corpora) > 1 else (1000,):
            rows = largest(lanes, *lane, most=most)
            pool = next(iter(rows.values()))["pool"]
            figures = [f"{rows[name]['recall_at_1']:.2f}" if name in rows else "" for name in NAMES]
            cells.append((f"{task}, {isa}{MARKS[corpus]}", pool, *figures))
    return markdown(["lane", "pool", *NAMES.values()], dict.fromkeys(cells))


def pictured(rows: Sequence[Row], corpus: str) -> list[Row]:
    """The rows of a corpus that a picture has room for."""
    return [
        {**row, "model": "trained" if row["model"] == "asmtrain" else row["model"]}
        for row in sorted(rows, key=lambda row: (row["task"], row["isa"]))
        if row["corpus"] == corpus
        and row["view"] == "default"
        and row["isa"] in ("aarch64", "aarch64-x86_64", "all")
        and row["model"] != "asmtrain64"
    ]


if __name__ == "__main__":
    main()
