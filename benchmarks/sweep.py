"""The settings of the contrastive stage, one changed at a time: what each is worth on functions never seen.

Every row trains the contrastive stage of a config alone on equally many texts (so on about equal time; the
seconds are in the table), exports it, and asks the harness for Recall@1 of AArch64 O0 against O3 and of any
variant against any other (XM) at pool 1,000, with whole vectors and cut to 64 numbers. The baseline runs with
several seeds: a difference smaller than their range says nothing. The model starts from random weights, or
from `--model`, an exported merged/ folder. Rows that are done are kept, so that a sweep goes on where it
stopped. `--save` keeps the rows in results/sweep.json and their table in docs/embedding.md, by config.

    python benchmarks/sweep.py --corpus runs/demo/corpus --save
    python benchmarks/sweep.py --corpus runs/demo/corpus --rows 'pooling=*' baseline --texts 38400
    python benchmarks/sweep.py --corpus runs/debian/corpus --config configs/train/embed-cpu.yaml
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from _commands import BIN, call
from _report import markdown, report
from _saved import RESULTS, save

from asmtrain.config import load_train_config
from corpus_builder.shards import load_index

CHANGES: dict[str, Sequence[Any]] = {
    "temperature": (0.02, 0.05, 0.07),
    "pooling": ("lasttoken", "mean", "max", "learned"),
    "attention": ("causal", "bidirectional"),
    "variants": (2, 4),
    "neighbours": (0.0, 0.5),
    "false_negative_margin": (None, 0.1),
    "functions_per_step": (64, 256, 512),
    "matryoshka": ((), (32, 64)),
    "dim": (64, 128, 256, 512),
    "members": (1, 2, 4),
    "token_dropout": (0.0, 0.1),
}
LANES = {"xo": "XO O0O3 aarch64", "xm": "XM all"}
MAX_POOL = 1000
CUT = 64
PAGE = Path("docs/embedding.md")
SHOWN = ("embed-cpu", "demo")
"""Configs whose tables stand there."""


def main() -> None:
    options = parse()
    home = options.work / digest(options)
    rows = []
    for name, change, seed in planned(options):
        path = home / f"{name}-seed{seed}.json"
        if not path.exists():
            figures = measure(options, change, seed, home / "now")
            path.write_text(json.dumps({"name": name, "seed": seed, "change": change, **figures}) + "\n")
        rows.append(json.loads(path.read_text()))
    print(table(rows))
    result = {"texts": options.texts, "corpus": load_index(options.corpus).sha256(), "rows": rows}
    if options.save:
        kept = RESULTS / "sweep.json"
        others = json.loads(kept.read_bytes())["sweeps"] if kept.exists() else {}
        save("sweep", {"sweeps": others | {options.config.stem: result}})
        if options.config.stem in SHOWN:
            report(PAGE, {f"sweep-{options.config.stem}": table(rows)})
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="trained and judged on")
    parser.add_argument("--config", type=Path, default=Path("configs/train/demo.yaml"))
    parser.add_argument(
        "--model", type=Path, help="start from this merged/ folder; random weights without it"
    )
    parser.add_argument("--texts", type=int, default=19_200, help="texts that each row trains on")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the baseline")
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="GLOB", help="rows to run, as 'pooling=*'"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench/sweep"), help="folder of finished rows")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    return parser.parse_args()


def digest(options: argparse.Namespace) -> str:
    """What the rows of one folder have in common."""
    content = (stage_of(options), options.texts, str(options.model), load_index(options.corpus).sha256())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def stage_of(options: argparse.Namespace) -> dict[str, Any]:
    """The config's contrastive stage."""
    stages = load_train_config(options.config).stages
    stage = next(item for item in stages if item.objective == "contrastive")
    content: dict[str, Any] = stage.model_dump(mode="json")
    return content


def planned(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, changed key and seed of each row; a value that the baseline has is the baseline."""
    base = stage_of(options)["embedding"]
    rows = [("baseline", {}, seed) for seed in range(options.seeds)]
    for key, values in CHANGES.items():
        for value in values:
            plain = list(value) if isinstance(value, tuple) else value
            if base[key] != plain:
                rows.append((f"{key}={json.dumps(plain)}".replace('"', ""), {key: plain}, 0))
    yield from (row for row in rows if any(fnmatchcase(row[0], glob) for glob in options.rows))


def measure(
    options: argparse.Namespace, change: Mapping[str, Any], seed: int, folder: Path
) -> dict[str, Any]:
    """Train, export and judge one row in `folder`, which is emptied; the tokens are kept beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    shared = folder.parent / "cache"
    shared.mkdir(exist_ok=True)
    (folder / "train" / "cache").symlink_to(shared.resolve())
    config = write_config(options, change, seed, folder)
    call("launch/train.sh", config)
    call(BIN / "asmtrain", "export", folder / "train", "--output", folder)
    model, dim = folder / "embedding", change.get("dim", stage_of(options)["embedding"]["dim"])
    call(
        *(BIN / "asmtrain", "eval", "retrieval", "--model", f"whole={model}"),
        *(("--model", f"cut={model}@{CUT}") if dim > CUT else ()),
        *("--corpus", options.corpus, "--output", folder, "--no-bag", "--lanes"),
        *LANES.values(),
    )
    figures = judged(json.loads((folder / "retrieval.json").read_bytes())["rows"])
    steps = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    figures |= {"steps": len(steps), "train_s": round(sum(step["seconds"] for step in steps), 1)}
    shutil.rmtree(folder)
    return figures


def write_config(options: argparse.Namespace, change: Mapping[str, Any], seed: int, folder: Path) -> Path:
    """The stage alone, over the given corpus, for as many steps as the texts allow."""
    config = load_train_config(options.config).model_dump(mode="json")
    stage = stage_of(options)
    embedding = stage["embedding"] | change
    embedding["matryoshka"] = [size for size in embedding["matryoshka"] if size <= embedding["dim"]]
    if "matryoshka" in change:
        embedding["members"] = 1
    if embedding["members"] > 1:
        embedding["matryoshka"] = []
    steps = max(1, options.texts // (embedding["functions_per_step"] * embedding["variants"]))
    data = [{**part, "corpus": str(options.corpus)} for part in stage["data"]]
    optimizer = stage["optimizer"] | {"warmup_steps": steps // 10}
    stage |= {"embedding": embedding, "steps": steps, "data": data, "optimizer": optimizer, "eval_rows": 0}
    config |= {"run": str(folder / "train"), "seed": seed, "stages": [stage]}
    config["checkpoint"]["every_steps"] = steps
    if options.model is not None:
        config["model"] |= {"path": str(options.model), "shape": None}
    if config["tokenizer"] is not None:
        config["tokenizer"]["corpus"] = str(options.corpus)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Recall@1 and MRR@10 at the largest pool up to MAX_POOL, by lane, whole and cut."""
    figures: dict[str, Any] = {}
    for short, lane in LANES.items():
        own = [row for row in rows if f"{row['task']} {row['isa']}" == lane and row["bucket"] == "all"]
        own = [row for row in own if row["pool"] <= MAX_POOL]
        pool = max(row["pool"] for row in own)
        for row in own:
            if row["pool"] == pool and row["model"] in ("whole", "cut"):
                name = short if row["model"] == "whole" else f"{short}_{CUT}"
                figures |= {name: row["recall_at_1"], f"{name}_mrr": row["mrr_at_10"], f"{short}_pool": pool}
    return figures


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, the baseline's range first."""
    keys = ("xo", "xm", f"xo_{CUT}", f"xm_{CUT}")
    base = [row for row in rows if row["name"] == "baseline"]
    spans = [span([row[key] for row in base if key in row]) for key in keys]
    cells = [(f"as it is, least and most of {len(base)} seeds", *spans, "", "")] if base else []
    for row in rows:
        name = f"as it is, seed {row['seed']}" if row["name"] == "baseline" else row["name"]
        figures = (f"{row[key]:.3f}" if key in row else "" for key in keys)
        cells.append((name, *figures, row["steps"], round(row["train_s"])))
    xo, xm = (f"{lane} among {rows[0][f'{short}_pool']:,}" for short, lane in LANES.items())
    return markdown(["changed", xo, xm, *(f"at {CUT}: {lane}" for lane in ("XO", "XM")), "steps", "s"], cells)


def span(values: Sequence[float]) -> str:
    """The least and the greatest."""
    return f"{min(values):.3f}-{max(values):.3f}" if values else ""


if __name__ == "__main__":
    main()
