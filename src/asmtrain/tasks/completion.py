"""Completion: go on writing a function's assembly.

Input format: `asm.clean`, a function's instructions and labels with its symbols, begun at its first line.
Evaluation: perplexity of an exported model on a split, per ISA and -O level, with bits a byte beside those
of zstd at level 19 on the same text, a compressor that has learnt nothing in advance.

Cost: one forward pass a document, at most `max_functions` functions, each cut at `max_tokens`.
Shapes: B documents, T tokens, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import zstandard
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from asmtrain import terminal
from asmtrain.encoder import map_batches
from asmtrain.losses import IGNORE, token_loss_sum
from asmtrain.model import load_model
from asmtrain.tokens import documents, load_tokenizer
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import atomic_output, load_index, read_split

TOKENS_PER_BATCH = 2048

Piece: TypeAlias = tuple[list[int], float]
"""Token ids, and the bytes that they stand for."""


@dataclass
class Cell:
    """Sums over the documents of one ISA and level."""

    isa: str
    level: str
    texts: list[str] = field(default_factory=list)
    num_documents: int = 0
    num_tokens: int = 0
    loss: float = 0.0
    """Negative log likelihood in nats."""
    scored_bytes: float = 0.0


def run(
    model: Path,
    corpus: Path,
    output: Path,
    *,
    split: str = "valid",
    max_functions: int = 200,
    max_tokens: int = 1024,
) -> list[dict[str, Any]]:
    """Measure a `merged/` folder's perplexity on a split; write `completion.json` into `output`.

    Raises:
        ModelError: `model` is no language model.
        EmptyCorpus: the split is empty.
    """
    disable_progress_bar()
    lm = load_model(str(model), dtype="fp32").eval()
    tokenizer = load_tokenizer(model)
    cells = _cells(corpus, split, max_functions)
    with terminal.progress_bar("scoring", sum(len(cell.texts) for cell in cells)) as advance:
        for cell in cells:
            _score(cell, lm, _batches(cell.texts, tokenizer, max_tokens), advance)
    rows = [_row(cell, split) for cell in cells]
    with atomic_output(output / "completion.json") as stream:
        stream.write((json.dumps(rows, indent=1) + "\n").encode())
    show(rows, terminal.console())
    return rows


def _cells(corpus: Path, split: str, max_functions: int) -> list[Cell]:
    """The documents of evenly spread functions, by ISA and level; both compilers' stand in one cell."""
    total = sum(shard.num_functions for shard in load_index(corpus).shards if shard.split == split)
    step = max(1, math.ceil(total / max_functions))
    cells: dict[tuple[str, str], Cell] = {}
    for number, record in enumerate(read_split(corpus, split)):
        if number % step:
            continue
        for document in documents(record, "completion"):
            isa, _, level = Variant.parse(document.variant)
            cells.setdefault((isa, level), Cell(isa, level)).texts.append(document.text)
    if not cells:
        raise EmptyCorpus(f"split {split!r} of {corpus} is empty", remedy="choose another with --split")
    return [cells[place] for place in sorted(cells)]


def _batches(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> Iterator[list[Piece]]:
    """Token ids and the bytes they stand for, sorted by length, TOKENS_PER_BATCH together at most."""
    whole = tokenizer(list(texts))["input_ids"]
    pieces = [
        (ids[:max_tokens], len(text.encode()) * min(1.0, max_tokens / len(ids)))
        for ids, text in zip(whole, texts, strict=True)
    ]
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece[0])):
        if batch and (len(batch) + 1) * len(batch[0][0]) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _score(cell: Cell, lm: Any, batches: Iterator[list[Piece]], advance: Callable[[int], None]) -> None:
    """Add the loss of a cell's documents to it."""

    def loss_of(batch: list[Piece]) -> tuple[list[Piece], float]:
        ids_BT = torch.zeros(len(batch), len(batch[0][0]), dtype=torch.long)
        labels_BT = torch.full_like(ids_BT, IGNORE)
        for row, (ids, _) in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            labels_BT[row, 1 : len(ids)] = ids_BT[row, 1 : len(ids)]
        # Padding stands behind the text, and attention looks back only: no mask is needed.
        return batch, float(token_loss_sum(lm(input_ids=ids_BT, use_cache=False).logits, labels_BT))

    for batch, loss in map_batches(loss_of, batches, torch.device("cpu")):
        cell.loss += loss
        cell.num_documents += len(batch)
        cell.num_tokens += sum(len(ids) - 1 for ids, _ in batch)
        cell.scored_bytes += sum(num_bytes for _, num_bytes in batch)
        advance(len(batch))


def _row(cell: Cell, split: str) -> dict[str, Any]:
    text = "".join(cell.texts).encode()
    packed = zstandard.ZstdCompressor(level=19).compress(text)
    return {
        "task": "completion",
        "split": split,
        "isa": cell.isa,
        "level": cell.level,
        "num_documents": cell.num_documents,
        "num_tokens": cell.num_tokens,
        "perplexity": math.exp(cell.loss / max(cell.num_tokens, 1)),
        "bits_per_byte": cell.loss / math.log(2) / max(cell.scored_bytes, 1),
        "zstd_bits_per_byte": 8 * len(packed) / max(len(text), 1),
    }


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the table of an evaluation."""
    table = Table(title="Completion", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("isa", "level"):
        table.add_column(heading)
    for heading in ("documents", "tokens", "perplexity", "bits a byte", "zstd -19"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["isa"],
            row["level"],
            f"{row['num_documents']:,}",
            f"{row['num_tokens']:,}",
            f"{row['perplexity']:.2f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['zstd_bits_per_byte']:.3f}",
        )
    console.print(table)
