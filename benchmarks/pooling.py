"""Poolings side by side: the demo's training, shortened, once with each, and what each finds again.

Everything but the pooling is equal: corpus, model, seed, steps, the pairs of every step and their order.
Prints Recall@1 and MRR@10 of AArch64 O0 against O3 among unseen projects, and as its last line one JSON
object. Needs the demo's corpus; takes about three minutes a pooling on two cores.

    python benchmarks/pooling.py [--steps 150] [--config configs/train/demo.yaml]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from _commands import BIN, call
from rich.console import Console
from rich.table import Table

from asmtrain.config import load_train_config

POOLINGS = ("mean", "lasttoken", "max")


def main() -> None:
    """Train, export and evaluate with each pooling; print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="steps of the embedding stage")
    parser.add_argument("--config", type=Path, default=Path("configs/train/demo.yaml"))
    arguments = parser.parse_args()
    table = Table("pooling", "pool", "Recall@1", "MRR@10", "queries")
    figures: dict[str, Any] = {"steps": arguments.steps}
    for pooling in POOLINGS:
        figures[pooling] = measure(arguments.config, pooling, arguments.steps)
        for row in figures[pooling]:
            table.add_row(
                pooling,
                str(row["pool"]),
                f"{row['recall_at_1']:.3f}",
                f"{row['mrr_at_10']:.3f}",
                str(row["num_queries"]),
            )
    Console().print(table)
    print(json.dumps(figures))


def measure(config: Path, pooling: str, steps: int) -> list[dict[str, Any]]:
    """The trained model's rows of AArch64 O0 against O3, a pool size each."""
    corpus = load_train_config(config).stages[-1].data[0].corpus
    with tempfile.TemporaryDirectory(prefix="asmtrain-pooling-") as name:
        run = Path(name)
        settings = {
            "run": run / "train",
            "stages.pretrain.steps": 20,
            "stages.lora.steps": 10,
            "stages.embed.steps": steps,
            "stages.embed.embedding.pooling": pooling,
        }
        overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        call("launch/train.sh", config, *overrides)
        call(BIN / "asmtrain", "export", run / "train", "--output", run / "export")
        model = run / "export" / "embedding"
        call(
            *(BIN / "asmtrain", "eval", "retrieval"),
            *("--model", model, "--corpus", corpus, "--output", run),
            *("--lanes", "XO O0O3 aarch64", "--no-bag"),
        )
        rows = json.loads((run / "retrieval.json").read_bytes())["rows"]
    kept = ("pool", "recall_at_1", "mrr_at_10", "num_queries")
    return [
        {key: row[key] for key in kept} for row in rows if (row["model"], row["bucket"]) == ("trained", "all")
    ]


if __name__ == "__main__":
    main()
