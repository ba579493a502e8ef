"""How full packed rows are: our best fit beside next fit and plain concatenation, on a corpus's own lengths.

Next fit opens a new row when the next document does not fit. Concatenation fills every row and cuts documents
where rows end; a cut document's second piece does not see its first. A document longer than a row is cut by
all three. Prints a table, and as its last line one JSON object; the split is `train`, the tokenizer is learnt
from the corpus unless one is given.

    python benchmarks/packing.py [CORPUS] [--context 4096] [--tokenizer FOLDER]
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from asmtrain.cache import TokenCache, build_cache
from asmtrain.config import DataConfig
from asmtrain.examples import tokenizer_texts
from asmtrain.fitting import fit
from asmtrain.packing import IntArray, pack
from asmtrain.tokens import load_tokenizer, train_tokenizer
from corpus_builder.shards import read_split

TASKS = {"completion": "split", "c_to_asm": "drop"}
"""What is packed, and what becomes of documents longer than a row."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("runs/demo/corpus"))
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder that holds one; default: learn 4,096 entries"
    )
    parser.add_argument("--max-functions", type=int, help="use this many functions; default: all")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else learnt(arguments.corpus)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="asmtrain-packing-") as folder:
        for task in TASKS:
            data = DataConfig(corpus=arguments.corpus, task=task, max_functions=arguments.max_functions)
            cache = build_cache(data, "train", tokenizer, Path(folder))
            figures[task] = measure(cache, arguments.context, TASKS[task])
    show(figures)
    worst = min(row["best_fit"] for row in figures.values())
    print(json.dumps({"context": arguments.context, "packing_efficiency": worst, **figures}))


def learnt(corpus: Path) -> Any:
    """A tokenizer learnt from the first functions of the training split."""
    records = itertools.islice(read_split(corpus, "train"), 500)
    return train_tokenizer(
        (text for record in records for text in tokenizer_texts(record, TASKS)), vocab_size=4096
    )


def measure(cache: TokenCache, context: int, too_long: Any) -> dict[str, Any]:
    """Share of the rows' places that hold a token, by each way, in one random order of the documents."""
    used = fit(cache, context, too_long).lengths
    lengths = used[np.random.default_rng(0).permutation(len(used))]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        rows = pack(lengths, context)
        seconds.append(time.perf_counter() - started)
    return {
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "rows": len(rows),
        "best_fit": round(rows.fill, 5),
        "next_fit": round(next_fit(lengths, context), 5),
        "cut_by_best_fit": round(float((lengths > context).mean()), 5),
        "cut_by_concatenation": round(cut_by_concatenation(lengths, context), 5),
        "microseconds_a_document": round(min(seconds) / len(lengths) * 1e6, 2),
    }


def next_fit(lengths: IntArray, context: int) -> float:
    """Fill when each document goes behind the one before it, or into a new row."""
    num_rows, free = 0, 0
    for length in lengths.tolist():
        for piece in [context] * (length // context) + [length % context]:
            if piece > free:
                num_rows, free = num_rows + 1, context
            free -= piece
    return float(lengths.sum()) / (num_rows * context)


def cut_by_concatenation(lengths: IntArray, context: int) -> float:
    """Share of the documents that a row's end cuts when all stand in one line."""
    ends = np.cumsum(lengths)
    return float(((ends - lengths) // context != (ends - 1) // context).mean())


def show(figures: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table("task", "documents", "best fit", "next fit", "cut by best fit", "cut by concatenation")
    for task, row in figures.items():
        shares = (row[name] for name in ("best_fit", "next_fit", "cut_by_best_fit", "cut_by_concatenation"))
        table.add_row(task, f"{row['documents']:,}", *(f"{share:.2%}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
