"""Duplicates: functions' signatures in, one cluster or one reason to drop each function out.

Rules, in the order train, valid, test, then key:
  exact  equal source tokens: the first function stays, the others go;
  body   in valid and test: any variant's body equals one of a function kept in an earlier split;
  near   in valid and test: near duplicate of a function kept in an earlier split.
Near duplicates inside one split stay, joined by their cluster. Invariant: what stays in two splits shares
neither source, nor body, nor near-duplicate source. Near means an estimated Jaccard similarity of token
shingles (MinHash, Broder 1997) at or above the threshold, for candidates from locality-sensitive hashing.
Costs about 0.4 ms and 3 KB a function, half of it in the hash tables.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from corpus_builder.config import SPLITS

Reason = Literal["exact", "body", "near"]
Signature = NDArray[np.uint32]

_SCHEME = "affine32"
# A missed near duplicate is a leak, a false candidate only costs one comparison.
_RECALL = 0.99


@dataclass(frozen=True, slots=True)
class DedupItem:
    """What duplicates are found by, of one function."""

    key: str
    split: str
    source_sha256: str
    signature: Signature
    """From `signatures`."""
    bodies: frozenset[int]
    """Of every variant, the first 64 bits of `body_sha256`."""


@dataclass(frozen=True)
class Duplicates:
    """The fate of every function: in exactly one of the two."""

    clusters: dict[str, str] = field(default_factory=dict)
    """Key of a kept function to the smallest key among its near duplicates, often its own."""
    dropped: dict[str, Reason] = field(default_factory=dict)


def signatures(token_lists: Sequence[Sequence[str]], *, num_perm: int, shingle: int) -> list[Signature]:
    """MinHash signatures, one (num_perm,) row for each function's source tokens."""
    sets = [_shingles(tokens, shingle) for tokens in token_lists]
    hashes = MinHash.bulk(sets, num_perm=num_perm, scheme=_SCHEME)
    return [minhash.hashvalues.astype(np.uint32) for minhash in hashes]


def find_duplicates(items: Iterable[DedupItem], *, threshold: float, num_perm: int) -> Duplicates:
    """Apply the rules above; the result does not depend on the order of `items`."""
    result = Duplicates()
    near = _NearDuplicates(threshold, num_perm)
    sources: set[str] = set()
    earlier_bodies: set[int] = set()
    ordered = sorted(items, key=lambda item: (SPLITS.index(item.split), item.key))
    for split, group in groupby(ordered, key=lambda item: item.split):
        kept: list[DedupItem] = []
        for item in group:
            similar = list(near.similar_to(item))
            if item.source_sha256 in sources:
                result.dropped[item.key] = "exact"
            elif not earlier_bodies.isdisjoint(item.bodies):
                result.dropped[item.key] = "body"
            elif any(other.split != split for other in similar):
                result.dropped[item.key] = "near"
            else:
                kept.append(item)
                sources.add(item.source_sha256)
                near.add(item, similar)
        earlier_bodies.update(*(item.bodies for item in kept))
    result.clusters.update(near.clusters())
    return result


def _shingles(tokens: Sequence[str], length: int) -> list[bytes]:
    """Every run of `length` tokens; a shorter function is one shingle."""
    last = max(1, len(tokens) - length + 1)
    runs = {" ".join(tokens[start : start + length]) for start in range(last)}
    return [run.encode("utf-8", "backslashreplace") for run in sorted(runs)]


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Number and length of bands: the longest ones that still find a pair at the threshold.

    A pair of similarity s is a candidate with probability 1 - (1 - s^length)^number (Leskovec, Rajaraman and
    Ullman, Mining of Massive Datasets, 3.4). datasketch's own choice finds 81 % of the pairs at 0.9.
    """
    for length in range(num_perm // 2, 1, -1):
        number = num_perm // length
        if 1 - (1 - threshold**length) ** number >= _RECALL:
            return number, length
    return num_perm, 1


class _NearDuplicates:
    """Kept functions by similarity, and their connected components (union-find)."""

    def __init__(self, threshold: float, num_perm: int) -> None:
        self._threshold = threshold
        self._index: Any = MinHashLSH(num_perm=num_perm, params=_bands(threshold, num_perm))
        self._items: dict[str, DedupItem] = {}
        self._parent: dict[str, str] = {}

    def similar_to(self, item: DedupItem) -> Iterator[DedupItem]:
        for key in self._index.query(_minhash(item)):
            other = self._items[key]
            if np.mean(other.signature == item.signature) >= self._threshold:
                yield other

    def add(self, item: DedupItem, similar: Iterable[DedupItem]) -> None:
        self._index.insert(item.key, _minhash(item))
        self._items[item.key] = item
        self._parent[item.key] = item.key
        for other in similar:
            first, second = sorted((self.cluster(item.key), self.cluster(other.key)))
            self._parent[second] = first

    def clusters(self) -> dict[str, str]:
        return {key: self.cluster(key) for key in self._parent}

    def cluster(self, key: str) -> str:
        """The smallest key of the component, since the smaller root always becomes the parent."""
        while (parent := self._parent[key]) != key:
            self._parent[key] = self._parent[parent]
            key = parent
        return key


def _minhash(item: DedupItem) -> Any:
    # Look-ups do not use the permutations, and drawing them would cost more than all the rest.
    ones = np.ones(len(item.signature), np.uint32)
    return MinHash(hashvalues=item.signature, permutations=(ones, ones), scheme=_SCHEME)
