"""MinHash (Broder 1997): sets in, signatures out whose equal places estimate the Jaccard similarity."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_PERM = 128

Signatures = npt.NDArray[np.uint64]


def shingles(tokens: Sequence[str], length: int) -> set[str]:
    """Every run of `length` tokens; a shorter text is one shingle."""
    last = max(1, len(tokens) - length + 1)
    return {"\n".join(tokens[start : start + length]) for start in range(last)}


def hashes(sets: Sequence[Collection[str]]) -> list[Any]:
    """A datasketch MinHash of each set."""
    from datasketch import MinHash

    # Named, because the library warns of its older scheme.
    encoded = [[item.encode() for item in items] for items in sets]
    return list(MinHash.bulk(encoded, num_perm=NUM_PERM, scheme="affine32"))


def signatures(sets: Sequence[Collection[str]]) -> Signatures:
    """(N, NUM_PERM) of N sets, none of them empty."""
    return np.stack([item.hashvalues for item in hashes(sets)])


def similarity(left_QK: Signatures, right_NK: Signatures) -> npt.NDArray[np.float32]:
    """(Q, N) estimated Jaccard similarities."""
    equal_QN = np.zeros((len(left_QK), len(right_NK)), np.uint8)
    for left_Q, right_N in zip(left_QK.T, right_NK.T, strict=True):
        equal_QN += left_Q[:, None] == right_N
    return equal_QN.astype(np.float32) / np.float32(NUM_PERM)
