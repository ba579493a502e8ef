"""MinHash in numpy: sets in, signatures out whose share of equal places estimates the Jaccard similarity.

Broder 1997, with multiply-shift hashes. The corpus builder's own signatures come from a library that the
trainer does not need; these thirty lines serve a baseline and the leakage rules.
"""

import zlib
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

NUM_PERM = 128

Signatures = npt.NDArray[np.uint32]


def shingles(tokens: Sequence[str], length: int) -> set[str]:
    """Every run of `length` tokens; a shorter text is one shingle."""
    last = max(1, len(tokens) - length + 1)
    return {"\n".join(tokens[start : start + length]) for start in range(last)}


def signatures(sets: Sequence[Collection[str]]) -> Signatures:
    """(N, NUM_PERM) of N sets, none of them empty."""
    factors_K, offsets_K = np.random.default_rng(0).integers(0, 1 << 63, (2, NUM_PERM), dtype=np.uint64)
    rows = np.empty((len(sets), NUM_PERM), np.uint32)
    for place, items in enumerate(sets):
        hashes_S = np.array([zlib.crc32(item.encode()) for item in items], np.uint64)
        mixed_SK = hashes_S[:, None] * (factors_K | np.uint64(1)) + offsets_K
        rows[place] = (mixed_SK >> np.uint64(32)).min(axis=0)
    return rows


def similarity(left_QK: Signatures, right_NK: Signatures) -> npt.NDArray[np.float32]:
    """(Q, N) estimated Jaccard similarities."""
    equal_QN = np.zeros((len(left_QK), len(right_NK)), np.uint8)
    for left_Q, right_N in zip(left_QK.T, right_NK.T, strict=True):
        equal_QN += left_Q[:, None] == right_N
    return equal_QN.astype(np.float32) / np.float32(NUM_PERM)
