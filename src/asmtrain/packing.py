"""Packing: document lengths in, fixed rows out. Pure.

A document longer than a row is cut into pieces of a row's size, and each piece is a document of its own to
the model. Pieces go, the longest first, into the fullest row that still has room (best fit decreasing,
Johnson 1974). Cost: a sort, then O(n log context); half a microsecond a document. How full rows get:
benchmarks/packing.py.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Packed rows: row r holds the pieces `row_starts[r]:row_starts[r + 1]` of the three piece arrays."""

    context: int
    row_starts: IntArray
    """Length: rows + 1."""
    documents: IntArray
    """Number of the document each piece is cut from."""
    starts: IntArray
    """First token of the piece in its document."""
    lengths: IntArray
    """Tokens of the piece."""

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def pieces(self, row: int) -> list[tuple[int, int, int]]:
        """(document, start, length) of each piece of one row."""
        part = slice(int(self.row_starts[row]), int(self.row_starts[row + 1]))
        columns = (self.documents[part], self.starts[part], self.lengths[part])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token, between 0 and 1."""
        return float(self.lengths.sum()) / (len(self) * self.context) if len(self) else 0.0


def pack(lengths: IntArray, context: int) -> Rows:
    """Pack documents of these lengths into rows of `context` tokens; which go together follows their order.

    Pieces of one token are left out: such a piece predicts nothing. Rows come in the order they were opened,
    the longest documents first.
    """
    documents, starts, sizes = _pieces(np.asarray(lengths, dtype=np.int64), context)
    longest_first = np.argsort(-sizes, kind="stable")
    row_of_piece = np.empty(len(sizes), dtype=np.int64)
    row_of_piece[longest_first] = _best_fit(sizes[longest_first].tolist(), context)
    order = np.argsort(row_of_piece, kind="stable")
    num_rows = int(row_of_piece.max()) + 1 if len(row_of_piece) else 0
    row_starts = np.searchsorted(row_of_piece[order], np.arange(num_rows + 1))
    return Rows(context, row_starts, documents[order], starts[order], sizes[order])


def _pieces(lengths: IntArray, context: int) -> tuple[IntArray, IntArray, IntArray]:
    """Cut documents: (document, start, length) of every piece of at least two tokens."""
    counts = -(-lengths // context)
    documents = np.repeat(np.arange(len(lengths)), counts)
    first_piece = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(documents)) - first_piece) * context
    sizes = np.minimum(lengths[documents] - starts, context)
    kept = sizes >= 2
    return documents[kept], starts[kept], sizes[kept]


def _best_fit(sizes: list[int], context: int) -> list[int]:
    """The row of each piece."""
    rows_with: dict[int, list[int]] = {}  # gap to the rows that have it
    rooms: list[int] = []  # those gaps, sorted: at most `context` of them
    rows, num_rows = [], 0
    for size in sizes:
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[place]
        else:
            room, row = context, num_rows
            num_rows += 1
        rows.append(row)
        gap = room - size
        if gap >= 2:  # no piece is smaller
            if gap not in rows_with:
                insort(rooms, gap)
            rows_with.setdefault(gap, []).append(row)
    return rows
