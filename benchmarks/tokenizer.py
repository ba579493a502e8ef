"""Tokens an instruction: the assembly tokenizer beside a byte-level BPE with the GPT-2 word split.

Both learn the same number of entries from the same training functions and are measured on the test split's
functions, in the form that retrieval sees. Prints a table, and as its last line one JSON object.

    python benchmarks/tokenizer.py [CORPUS] [--vocab-size 4096] [--functions 2000]
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from asmtrain.tokens import Document, documents, train_tokenizer
from corpus_builder.asm import num_instructions
from corpus_builder.shards import read_split

_CONSTANT = re.compile(r"(?<![\w.%$@-])-?\d+(?![\w.])")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("runs/demo/corpus"))
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--functions", type=int, default=2000, help="functions of each split")
    arguments = parser.parse_args()
    train, test = (read(arguments.corpus, split, arguments.functions) for split in ("train", "test"))
    texts = [item.text for item in train]
    contenders = {
        "assembly": train_tokenizer(texts, vocab_size=arguments.vocab_size).backend_tokenizer,
        "gpt2_split": gpt2_split(texts, arguments.vocab_size),
    }
    figures = {name: measure(tokenizer, test) for name, tokenizer in contenders.items()}
    show(figures)
    ratio = figures["gpt2_split"]["tokens_per_function"] / figures["assembly"]["tokens_per_function"]
    setting = {"vocab_size": arguments.vocab_size, "train_documents": len(train), "test_documents": len(test)}
    print(json.dumps({**setting, **figures, "times_shorter": round(ratio, 3)}))


def read(corpus: Path, split: str, num_functions: int) -> list[Document]:
    """The documents of the first functions of a split."""
    records = itertools.islice(read_split(corpus, split), num_functions)
    return [item for record in records for item in documents(record, "retrieval")]


def gpt2_split(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as GPT-2 splits words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def measure(tokenizer: Tokenizer, test: list[Document]) -> dict[str, Any]:
    """Tokens an instruction (all, and per ISA and level), share of constants that are one token, speed."""
    started = time.perf_counter()
    encoded = tokenizer.encode_batch([item.text for item in test], add_special_tokens=False)
    seconds = time.perf_counter() - started
    tokens = [len(item.ids) for item in encoded]
    instructions = [num_instructions(item.text) for item in test]
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(test):
        isa, _, level = item.variant.split(".")
        groups.setdefault(f"{isa}.{level}", []).append(number)
    per_group = {
        name: round(sum(tokens[i] for i in members) / sum(instructions[i] for i in members), 3)
        for name, members in sorted(groups.items())
    }
    return {
        "tokens_per_instruction": round(sum(tokens) / sum(instructions), 3),
        "tokens_per_function": round(sum(tokens) / len(test), 1),
        "whole_constants": round(whole_constants(test, encoded), 4),
        "tokens_per_second": round(sum(tokens) / seconds),
        "by_variant": per_group,
    }


def whole_constants(test: list[Document], encoded: list[Any]) -> float:
    """Share of the constants in the texts that are exactly one token."""
    num_whole = num_constants = 0
    for item, encoding in zip(test, encoded, strict=True):
        offsets = set(encoding.offsets)
        spans = [match.span() for match in _CONSTANT.finditer(item.text)]
        num_constants += len(spans)
        num_whole += sum(span in offsets for span in spans)
    return num_whole / num_constants


def show(figures: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table("tokenizer", "tokens/instruction", "tokens/function", "constants whole", "tokens/s")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['tokens_per_instruction']:.2f}",
            f"{row['tokens_per_function']:.0f}",
            f"{row['whole_constants']:.1%}",
            f"{row['tokens_per_second']:,}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
