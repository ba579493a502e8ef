"""Untrained ways to compare functions, for the figures beside a model's.

In go view texts (`corpus_builder.asm.view`), out come similarities of a lane's queries and answers. What is
counted in a text is counted once (`TextTable`); weights and scales are fitted on the very texts that a lane
compares, which favours the baselines.

    length          fewer instructions of difference are better, as a ratio
    opcode_tfidf    cosine of TF-IDF over mnemonics
    bm25            BM25 over mnemonics, k1 1.2, b .75 (Robertson and Zaragoza 2009, eq. 3.15)
    minhash         share of 4-grams of mnemonics in common, by MinHash
    constants_tfidf cosine of TF-IDF over numbers, offsets included: the strongest signal across -O levels
    numeric         distance of 14 counts (`features.NUMERIC`), logarithms in standard deviations
    combo           opcode_tfidf + constants_tfidf + numeric, as z-scores among the pool
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfTransformer

from asmtrain.tasks import minhash
from asmtrain.tasks.features import NUMERIC, numbers, opcodes
from asmtrain.tasks.pools import Floats, Similarity
from corpus_builder.asm import constants

NEEDS: Mapping[str, tuple[str, ...]] = {
    "length": ("numbers",),
    "opcode_tfidf": ("opcodes",),
    "bm25": ("opcodes",),
    "minhash": ("grams",),
    "constants_tfidf": ("constants",),
    "numeric": ("numbers",),
    "combo": ("opcodes", "constants", "numbers"),
}
"""Each baseline and the columns of a `TextTable` that it reads."""

_GRAM = 4
_K1, _B = 1.2, 0.75
_BLOCKS = NUMERIC.index("blocks")


@dataclass(frozen=True)
class TextTable:
    """What is counted in N texts."""

    rows: Mapping[str, int]
    """Body sha256 to row."""
    opcodes: csr_matrix
    """(N, V) counts of mnemonics."""
    constants: csr_matrix
    """(N, W) counts of numbers."""
    grams: minhash.Signatures
    """(N, NUM_PERM)."""
    numbers: Floats
    """(N, 14), as `features.NUMERIC` names them."""

    def blocks(self, bodies: Sequence[str]) -> Any:
        """Basic blocks of some bodies."""
        return self.numbers[[self.rows[body] for body in bodies], _BLOCKS]


def text_table(texts: Mapping[str, str]) -> TextTable:
    """Count in the views of bodies, given by their sha256."""
    columns = {name: count(list(texts.values())) for name, count in _COLUMNS.items()}
    return TextTable({body: row for row, body in enumerate(texts)}, **columns)


def _counts(lists: Iterable[Iterable[str]]) -> csr_matrix:
    """(N, V) counts of the tokens of N lists."""
    vocabulary: dict[str, int] = {}
    places, values, starts = [], [], [0]
    for tokens in lists:
        for token, count in Counter(tokens).items():
            places.append(vocabulary.setdefault(token, len(vocabulary)))
            values.append(count)
        starts.append(len(places))
    shape = (len(starts) - 1, max(1, len(vocabulary)))
    return csr_matrix((np.array(values, np.float64), places, starts), shape=shape)


_COLUMNS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "opcodes": lambda texts: _counts(map(opcodes, texts)),
    "constants": lambda texts: _counts(map(constants, texts)),
    "grams": lambda texts: minhash.signatures([minhash.shingles(opcodes(text), _GRAM) for text in texts]),
    "numbers": lambda texts: np.array([numbers(text) for text in texts], np.float64),
}


def similarities(table: TextTable, queries: Sequence[str], answers: Sequence[str]) -> dict[str, Similarity]:
    """Each baseline on one lane, given the bodies of its queries and answers."""
    left, right = ([table.rows[body] for body in side] for side in (queries, answers))
    names = ("opcodes", "constants", "grams", "numbers")
    both = {name: (getattr(table, name)[left], getattr(table, name)[right]) for name in names}
    grams_Q, grams_N = both["grams"]
    found = {
        "length": _nearness(*(np.log1p(side[:, :1]) for side in both["numbers"])),
        "opcode_tfidf": _tfidf(*both["opcodes"]),
        "bm25": _bm25(*both["opcodes"]),
        "minhash": lambda rows, columns: minhash.similarity(grams_Q[rows], grams_N[columns]),
        "constants_tfidf": _tfidf(*both["constants"]),
        "numeric": _nearness(*_standardised(*both["numbers"])),
    }
    parts = [found[name] for name in ("opcode_tfidf", "constants_tfidf", "numeric")]
    found["combo"] = lambda rows, columns: np.sum([_z_scores(part(rows, columns)) for part in parts], axis=0)
    return found


def cosine(queries: Any, answers: Any) -> Similarity:
    """Similarity of two lists of unit vectors, dense or sparse, block by block."""

    def similarity(rows: slice, columns: slice) -> Floats:
        block = queries[rows] @ answers[columns].T
        dense: Floats = block if isinstance(block, np.ndarray) else block.toarray()
        return dense

    return similarity


def _tfidf(queries: csr_matrix, answers: csr_matrix) -> Similarity:
    weights = TfidfTransformer(sublinear_tf=True).fit(vstack([queries, answers]))
    return cosine(weights.transform(queries), weights.transform(answers))


def _bm25(queries: csr_matrix, answers: csr_matrix) -> Similarity:
    num_answers = answers.shape[0]
    frequency_V = np.bincount(answers.indices, minlength=answers.shape[1])
    idf_V = np.log1p((num_answers - frequency_V + 0.5) / (frequency_V + 0.5))
    lengths_N = np.asarray(answers.sum(axis=1)).ravel()
    norms_N = _K1 * (1 - _B + _B * lengths_N / lengths_N.mean())
    weights = answers.tocoo()
    saturated = weights.data * (_K1 + 1) / (weights.data + norms_N[weights.row]) * idf_V[weights.col]
    return cosine(queries, csr_matrix((saturated, (weights.row, weights.col)), shape=answers.shape))


def _nearness(queries: Floats, answers: Floats) -> Similarity:
    """Minus the Euclidean distance."""

    def similarity(rows: slice, columns: slice) -> Floats:
        left, right = queries[rows], answers[columns]
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
        near: Floats = -np.sqrt(np.maximum(squares, 0))
        return near

    return similarity


def _standardised(queries: Floats, answers: Floats) -> tuple[Floats, Floats]:
    left, right = np.log1p(queries), np.log1p(answers)
    both = np.concatenate([left, right])
    scale = np.maximum(both.std(axis=0), 1e-9)
    return (left - both.mean(axis=0)) / scale, (right - both.mean(axis=0)) / scale


def _z_scores(block: Floats) -> Floats:
    """Each query's similarities in standard deviations from their mean over the pool."""
    scores: Floats = (block - block.mean(axis=1, keepdims=True)) / np.maximum(
        block.std(axis=1, keepdims=True), 1e-9
    )
    return scores


def costs(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Functions a second and bytes a vector of each baseline, measured on some texts."""
    seconds, sizes = {}, {}
    for name, count in _COLUMNS.items():
        started = time.perf_counter()
        column = count(texts)
        seconds[name] = time.perf_counter() - started
        # A sparse vector stores a place and a value of four bytes each.
        sizes[name] = column.nnz * 8 / len(texts) if isinstance(column, csr_matrix) else column.shape[1] * 4
    rows = {
        name: {
            "functions_per_s": len(texts) / sum(seconds[column] for column in columns),
            "bytes_per_vector": sum(sizes[column] for column in columns),
        }
        for name, columns in NEEDS.items()
    }
    rows["length"]["bytes_per_vector"] = 4
    return rows
