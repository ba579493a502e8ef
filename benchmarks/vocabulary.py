"""How much shorter functions get when a pre-trained vocabulary is extended by tokens of assembly.

Learns from a corpus's training functions and measures on its test split, or where there is none on every
fifth training function, left out of learning: tokens a function before and after, by instruction set and
level, for several numbers of new tokens; and the same functions' C source, of which nothing is learnt.
Every text is decoded again and compared. Prints tables, and as its last line one JSON object; `--save`
keeps it in results/vocabulary.json.

    python benchmarks/vocabulary.py TOKENIZER [CORPUS] [--functions 4000] [--save]

TOKENIZER is a Hugging Face folder, such as Code Llama's, or a gguf file with a vocabulary (package gguf).
Llama 2's, which is Code Llama's but for 16 tokens, lies in the source distribution of llama-cpp-python:
vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from _saved import save
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from asmtrain.tokens import Document, documents, load_tokenizer
from asmtrain.vocabulary import extend_tokenizer
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import load_index, read_split

SIZES = (500, 1000, 2000, 4000)
"""Numbers of new tokens."""
SHOWN = 1000
"""The one whose variants are shown."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("runs/demo/corpus"))
    parser.add_argument("--functions", type=int, default=4000, help="of each split, at most")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    learnt, unseen = split(arguments.corpus, arguments.functions)
    texts = [item.text for record in learnt for item in documents(record, "completion")]
    tests = [item for record in unseen for item in documents(record, "completion")]
    sources = [record.source for record in unseen]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = original(arguments.tokenizer)
        before, c_before = lengths(plain, [item.text for item in tests]), lengths(plain, sources)
        figures: dict[str, Any] = {}
        for size in SIZES:
            original(arguments.tokenizer).save_pretrained(folder)
            added = extend_tokenizer(folder, texts, num_tokens=size)
            extended = load_tokenizer(folder)
            after = lengths(extended, [item.text for item in tests])
            figures[str(added)] = {
                "tokens_per_function": round(sum(after) / len(tests), 1),
                "times_shorter": round(sum(before) / sum(after), 3),
                "c_times_shorter": round(sum(c_before) / sum(lengths(extended, sources)), 3),
            }
            if size == SHOWN:
                groups = by_variant(tests, before, after)
    show(groups, figures, sum(before) / len(tests))
    result = {
        "vocabulary": len(plain),
        "functions_learnt": len(learnt),
        "functions": len(unseen),
        "documents": len(tests),
        "tokens_per_function": round(sum(before) / len(tests), 1),
        "extended_by": figures,
        f"by_variant_{SHOWN}": groups,
    }
    if arguments.save:
        save("vocabulary", result)
    print(json.dumps(result))


def split(corpus: Path, num_functions: int) -> tuple[list[FunctionRecord], list[FunctionRecord]]:
    """Functions to learn from and functions to measure on."""
    train = list(itertools.islice(read_split(corpus, "train"), num_functions))
    if any(shard.split == "test" for shard in load_index(corpus).shards):
        return train, list(itertools.islice(read_split(corpus, "test"), num_functions))
    return [r for i, r in enumerate(train) if i % 5], train[::5]


def original(path: Path) -> Any:
    """The tokenizer as a run has it."""
    if path.suffix != ".gguf":
        return load_tokenizer(path)
    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        return load_tokenizer(folder)


def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text, which must come back from them."""
    ids = tokenizer(texts)["input_ids"]
    for text, decoded in zip(texts, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        assert decoded == text, f"not lossless: {text[:200]!r} came back as {decoded[:200]!r}"
    return [len(item) for item in ids]


def by_variant(tests: list[Document], before: list[int], after: list[int]) -> dict[str, dict[str, Any]]:
    """Functions and mean tokens of each instruction set and level."""
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(tests):
        isa, _, level = item.variant.split(".")
        groups.setdefault(f"{isa}.{level}", []).append(number)
    return {
        name: {
            "functions": len({tests[i].key for i in members}),
            "documents": len(members),
            "before": round(sum(before[i] for i in members) / len(members), 1),
            "after": round(sum(after[i] for i in members) / len(members), 1),
            "times_shorter": round(sum(before[i] for i in members) / sum(after[i] for i in members), 3),
        }
        for name, members in sorted(groups.items())
    }


def show(groups: dict[str, dict[str, Any]], figures: dict[str, Any], before: float) -> None:
    """Two tables: by number of tokens, and by variant."""
    table = Table("new tokens", "tokens/function", "times shorter", "C source, times shorter")
    table.add_row("0", f"{before:.1f}", "", "")
    for added, row in figures.items():
        cells = (row["tokens_per_function"], row["times_shorter"], row["c_times_shorter"])
        table.add_row(added, *map(str, cells))
    Console().print(table)
    table = Table(f"with {SHOWN} tokens", "functions", "documents", "before", "after", "times shorter")
    for name, group in groups.items():
        table.add_row(name, *map(str, group.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
