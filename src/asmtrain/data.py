"""Batches: token caches in, the micro-batches of one rank out.

`build_cache` (cache.py) tokenises a split once into memory-mapped arrays. `RowBatches` packs cached documents
into rows; `pairs` draws functions in several variants. Every batch is a pure function of (step, seed, corpus,
settings): a resumed run asks for the step it stopped at, there is no iterator state. The global order of rows
does not depend on the number of ranks.

Cost: packing once at the start, about 1 us a document; then a batch costs copies of its tokens.

Shapes: B rows of a micro-batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from asmtrain.cache import TokenCache, build_cache
from asmtrain.errors import LaunchError
from asmtrain.fitting import TooLong, fit
from asmtrain.losses import IGNORE
from asmtrain.packing import IntArray, Rows, pack

__all__ = [
    "RowBatch",
    "RowBatches",
    "TokenCache",
    "build_cache",
    "cut_keeping_end",
    "interleave",
    "seeded",
    "share_of_rank",
    "to_device",
]

BatchT = TypeVar("BatchT", bound=Any)

_PERMUTE_DOCUMENTS, _PERMUTE_ROWS = range(2)
_PlannedRows: TypeAlias = list[tuple[int, int]]
"""Part, and row of its packing."""
_EMPTY = (-1, -1)


@dataclass(frozen=True)
class RowBatch:
    """Packed rows for `causal_lm` and `sft`, all int64 of shape (B, T)."""

    ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    """Count from 0 in each document. With attention_mask=None and use_cache=False they isolate documents
    under sdpa and eager attention; transformers' flash attention heeds them in batches of one row alone."""
    labels_BT: torch.Tensor
    """The ids; -100 at each document's first token, in its prompt if it has one, and in padding."""
    document_ids_BT: torch.Tensor
    """Number of the document in its row; -1 in padding."""


def to_device(batch: BatchT, device: torch.device | str) -> BatchT:
    """The batch with every tensor on a device."""
    moved: BatchT = type(batch)(**{item.name: getattr(batch, item.name).to(device) for item in fields(batch)})
    return moved


class RowBatches:
    """Packed rows of a mixture of caches: `step(i)` gives this rank's micro-batches of optimizer step i.

    Each part's documents are shuffled and packed once; every epoch goes over its rows in a new order. The
    parts' rows alternate so that at any point their numbers stand as the weights do.
    """

    def __init__(
        self,
        caches: Sequence[TokenCache],
        weights: Sequence[float],
        *,
        context: int,
        rows_per_step: int,
        micro_rows: int,
        seed: int,
        too_long: Sequence[TooLong] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Pack; `too_long` has an entry for each cache, "split" without it.

        Raises:
            LaunchError: the rows of a step cannot be spread evenly over the ranks.
            EmptyCorpus: no example fits a row.
        """
        self.rows_per_rank = share_of_rank("rows_per_step", rows_per_step, world)
        self.caches = list(caches)
        self.context, self.rows_per_step, self.micro_rows = context, rows_per_step, micro_rows
        self.seed, self.rank, self.world = seed, rank, world
        self._weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._orders: list[IntArray] = []
        self.packed: list[Rows] = []
        for part, cache in enumerate(caches):
            used = fit(cache, context, too_long[part] if too_long else "split")
            order = seeded(seed, _PERMUTE_DOCUMENTS, part).permutation(len(used.documents))
            self._orders.append(used.documents[order])
            self.packed.append(pack(used.lengths[order], context))
        self._epochs: dict[tuple[int, int], IntArray] = {}

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches that `step` returns, the same on every rank: the gradient accumulation."""
        return -(-self.rows_per_rank // self.micro_rows)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps until the part that is used up first starts over."""
        rows = np.array([len(rows) for rows in self.packed])
        return float((rows / self._weights).min() / self.rows_per_step)

    @property
    def fill(self) -> float:
        """Share of all rows' places that hold a token."""
        num_tokens = sum(int(rows.lengths.sum()) for rows in self.packed)
        return num_tokens / (sum(len(rows) for rows in self.packed) * self.context)

    def step(self, index: int) -> list[RowBatch]:
        """This rank's micro-batches of optimizer step `index`, counted from 0."""
        first = index * self.rows_per_step
        rows = self._cut(self._schedule(first, first + self.rows_per_step))
        return [self._batch(micro) for micro in rows]

    def parts(self, index: int) -> list[torch.Tensor]:
        """The part of each row in what `step` returns: parts_B."""
        first = index * self.rows_per_step
        rows = self._cut(self._schedule(first, first + self.rows_per_step))
        return [torch.tensor([part for part, _ in micro]) for micro in rows]

    def keys(self, index: int) -> list[str]:
        """The functions that step `index` reads on all ranks, in the order of its rows."""
        rows = self._schedule(index * self.rows_per_step, (index + 1) * self.rows_per_step)
        pieces = ((part, piece[0]) for part, row in rows for piece in self._pieces(part, row))
        return list(dict.fromkeys(str(self.caches[part].keys[document]) for part, document in pieces))

    def evaluation(self, num_rows: int) -> list[RowBatch]:
        """This rank's share of the first `num_rows` rows, or of all there are, each once.

        Every rank gets as many batches as the others; rows that are left over are empty (no labels).
        """
        return [self._batch(rows) for rows in self._evaluated(num_rows)]

    def evaluation_documents(self, num_rows: int) -> list[list[list[tuple[int, int, int]]]]:
        """What lies in each row of each batch of `evaluation`, in order: (part, document, tokens)."""
        return [
            [
                [(part, document, length) for document, _, length in self._pieces(part, row)]
                for part, row in rows
            ]
            for rows in self._evaluated(num_rows)
        ]

    def _evaluated(self, num_rows: int) -> list[_PlannedRows]:
        available = int(self.steps_per_epoch * self.rows_per_step)
        rows = self._schedule(0, min(num_rows, max(available, 1)))
        return self._cut(rows + [_EMPTY] * (-len(rows) % self.world))

    def _cut(self, rows: _PlannedRows) -> list[_PlannedRows]:
        """Cut the rows of all ranks into this rank's micro-batches."""
        share = len(rows) // self.world
        own = rows[self.rank * share : (self.rank + 1) * share]
        return [own[at : at + self.micro_rows] for at in range(0, share, self.micro_rows)]

    def _schedule(self, first: int, stop: int) -> _PlannedRows:
        """(part, row of its packing) of the global rows `first` to `stop`."""
        parts, occurrences = interleave(self._weights, first, stop)
        return [
            (part, self._row(part, occurrence))
            for part, occurrence in zip(parts.tolist(), occurrences.tolist(), strict=True)
        ]

    def _row(self, part: int, occurrence: int) -> int:
        num_rows = len(self.packed[part])
        epoch, place = divmod(occurrence, num_rows)
        if (part, epoch) not in self._epochs:
            self._epochs = {key: order for key, order in self._epochs.items() if key[0] != part}
            self._epochs[part, epoch] = seeded(self.seed, _PERMUTE_ROWS, part, epoch).permutation(num_rows)
        return int(self._epochs[part, epoch][place])

    def _batch(self, rows: _PlannedRows) -> RowBatch:
        shape = (len(rows), self.context)
        ids, labels = np.full(shape, self.caches[0].pad_id), np.full(shape, IGNORE)
        positions, document_ids = np.zeros(shape, dtype=np.int64), np.full(shape, -1)
        for line, (part, row) in enumerate(rows):
            at = 0
            for number, (document, start, length) in enumerate(self._pieces(part, row)):
                cache = self.caches[part]
                place = slice(at, at + length)
                ids[line, place] = labels[line, place] = cache.tokens(document)[start : start + length]
                labels[line, at : at + max(1, int(cache.prompt_lengths[document]))] = IGNORE
                positions[line, place] = np.arange(length)
                document_ids[line, place] = number
                at += length
            positions[line, at:] = np.arange(self.context - at)
        return RowBatch(*(torch.from_numpy(array) for array in (ids, positions, labels, document_ids)))

    def _pieces(self, part: int, row: int) -> list[tuple[int, int, int]]:
        if (part, row) == _EMPTY:
            return []
        order = self._orders[part]
        return [(int(order[place]), start, length) for place, start, length in self.packed[part].pieces(row)]


def cut_keeping_end(tokens: npt.NDArray[np.integer], max_tokens: int) -> npt.NDArray[np.integer]:
    """At most `max_tokens` tokens, the last one kept: what the tokenizer's own truncation gives."""
    if len(tokens) <= max_tokens:
        return tokens
    return np.concatenate((tokens[: max_tokens - 1], tokens[-1:]))


def seeded(*words: int) -> np.random.Generator:
    """A generator that equal words make equal."""
    return np.random.default_rng(words)


def share_of_rank(name: str, total: int, world: int) -> int:
    """`total` over `world` ranks; raises LaunchError where they cannot share it evenly."""
    if total % world:
        raise LaunchError(
            f"{name} is {total}, which {world} ranks cannot share evenly",
            remedy=f"make {name} a multiple of the number of ranks",
        )
    return total // world


def interleave(weights: npt.NDArray[np.float64], first: int, stop: int) -> tuple[IntArray, IntArray]:
    """Which part gives each global row from `first` to `stop`, and how many rows that part gave before.

    The k-th row of a part of weight w is due at time (k + 1/2) / w; rows come in the order of those times,
    so a prefix of the order never depends on what follows. Weights sum to 1. A part is at most half as many
    rows from its share as there are parts, and one: rows well before `first` need not be looked at.
    """
    slack = len(weights) + 2
    spans = [(max(0, int(first * w) - slack), int(np.ceil(stop * w)) + slack) for w in weights]
    counted = [np.arange(start, end) for start, end in spans]
    due = np.concatenate([(own + 0.5) / w for own, w in zip(counted, weights, strict=True)])
    parts = np.repeat(np.arange(len(weights)), [len(own) for own in counted])
    skipped = sum(start for start, _ in spans)
    order = np.lexsort((parts, due))[first - skipped : stop - skipped]
    return parts[order], np.concatenate(counted)[order]
