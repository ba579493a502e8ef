"""Deduplication against its naive version: all pairs, exact Jaccard similarity."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_builder.config import SPLITS
from corpus_builder.dedup import DedupItem, Duplicates, find_duplicates, signatures

NUM_PERM = 128
SHINGLE = 5
THRESHOLD = 0.85

Function = tuple[str, str, list[str], frozenset[int]]
"""Key, split, tokens, bodies."""


def find(functions: list[Function], threshold: float = THRESHOLD) -> Duplicates:
    rows = signatures([tokens for _, _, tokens, _ in functions], num_perm=NUM_PERM, shingle=SHINGLE)
    items = [
        DedupItem(key, split, " ".join(tokens), row, bodies)
        for (key, split, tokens, bodies), row in zip(functions, rows, strict=True)
    ]
    return find_duplicates(items, threshold=threshold, num_perm=NUM_PERM)


def naive(functions: list[Function]) -> Duplicates:
    result = Duplicates()
    kept: list[Function] = []
    for function in sorted(functions, key=lambda function: (SPLITS.index(function[1]), function[0])):
        key, split, tokens, bodies = function
        earlier = [other for other in kept if other[1] != split]
        if any(other[2] == tokens for other in kept):
            result.dropped[key] = "exact"
        elif any(other[3] & bodies for other in earlier):
            result.dropped[key] = "body"
        elif any(jaccard(other[2], tokens) >= THRESHOLD for other in earlier):
            result.dropped[key] = "near"
        else:
            kept.append(function)
    clusters = {key: {key} for key, *_ in kept}
    for first, second in combinations(kept, 2):
        if first[1] == second[1] and jaccard(first[2], second[2]) >= THRESHOLD:
            joined = clusters[first[0]] | clusters[second[0]]
            clusters.update((key, joined) for key in joined)
    result.clusters.update((key, min(members)) for key, members in clusters.items())
    return result


def jaccard(first: list[str], second: list[str]) -> float:
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def shingles(tokens: list[str]) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + SHINGLE]) for i in range(max(1, len(tokens) - SHINGLE + 1))}


def family(chance: random.Random, size: int) -> list[list[str]]:
    """Versions of one function, one token apart from it: similarity 0.92 and more."""
    original = [f"t{chance.randrange(10**9)}" for _ in range(250)]
    versions = [original]
    for _ in range(size - 1):
        changed = list(original)
        changed[chance.randrange(250)] = f"u{chance.randrange(3)}"
        versions.append(changed)
    return versions


def a_key(chance: random.Random) -> str:
    return f"{chance.randrange(10**12):012d}"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_the_naive_version_agrees(seed: int, sizes: list[int]) -> None:
    chance = random.Random(seed)
    functions: list[Function] = []
    for tokens in (tokens for size in sizes for tokens in family(chance, size)):
        trivial = chance.choices([1, 2, 3], k=int(chance.random() < 0.2))
        bodies = frozenset([chance.randrange(10**9), *trivial])
        functions.append((a_key(chance), chance.choice(SPLITS), tokens, bodies))
        if chance.random() < 0.2:  # an exact copy somewhere else
            functions.append((a_key(chance), chance.choice(SPLITS), tokens, frozenset()))
    chance.shuffle(functions)
    assert find(functions) == naive(functions)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=12), st.randoms())
def test_every_function_has_one_fate_whatever_the_order(
    bodies: list[list[str]], chance: random.Random
) -> None:
    functions = [(f"{i:03d}", SPLITS[i % 3], tokens, frozenset({i % 4})) for i, tokens in enumerate(bodies)]
    result = find(functions)
    assert result.clusters.keys() | result.dropped.keys() == {key for key, *_ in functions}
    assert not result.clusters.keys() & result.dropped.keys()
    chance.shuffle(functions)
    assert find(functions) == result


def test_pairs_at_the_threshold_are_found_as_promised() -> None:
    """The index finds 99 % of them; the estimate of 128 permutations then has a standard error of 0.02."""
    chance = random.Random(0)
    found = 0
    trials = 200
    for _ in range(trials):
        shared = [f"s{chance.randrange(10**9)}" for _ in range(304)]
        own = [[f"o{chance.randrange(10**9)}" for _ in range(12)] for _ in range(2)]
        first, second = shared + own[0], shared + own[1]  # 300 common shingles of 324: 0.926
        result = find([("a", "train", first, frozenset()), ("b", "test", second, frozenset())])
        found += result.dropped == {"b": "near"}
    assert found >= 0.97 * trials


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [16, 128])
def test_equal_signatures_are_near_at_any_threshold(threshold: float, num_perm: int) -> None:
    row = signatures([["a"] * 40], num_perm=num_perm, shingle=SHINGLE)[0]
    items = [
        DedupItem("a", "train", "1", row, frozenset()),
        DedupItem("b", "train", "2", row, frozenset()),
        DedupItem("c", "valid", "3", row, frozenset()),
    ]
    result = find_duplicates(items, threshold=threshold, num_perm=num_perm)
    assert result == Duplicates({"a": "a", "b": "a"}, {"c": "near"})


def test_clusters_join_through_a_third() -> None:
    """a and c are alike only through b, which comes last: the chain is one cluster under its smallest key."""
    base = [f"t{i}" for i in range(200)]
    left, right = [*base, *(f"l{i}" for i in range(24))], [*base, *(f"r{i}" for i in range(24))]
    functions: list[Function] = [
        ("a", "train", left, frozenset()),
        ("b", "train", right, frozenset()),
        ("c", "train", base, frozenset()),
    ]
    assert jaccard(left, right) < 0.85 < 0.88 < jaccard(base, left)
    assert set(find(functions).clusters.values()) == {"a"}


def test_a_body_of_a_dropped_function_drops_nothing() -> None:
    tokens = [f"t{i}" for i in range(50)]
    others = [[f"{name}{i}" for i in range(50)] for name in "xy"]
    result = find(
        [
            ("a", "train", tokens, frozenset({1})),
            ("b", "train", tokens, frozenset({2})),  # exact: leaves the corpus, and its body with it
            ("c", "test", others[0], frozenset({2})),
            ("d", "test", others[1], frozenset({1})),
        ]
    )
    assert result.dropped == {"b": "exact", "d": "body"}
    assert result.clusters == {"a": "a", "c": "c"}


def test_signatures_are_the_same_in_every_process() -> None:
    row = signatures([["int", "f", "(", ")", "{", "}"]], num_perm=16, shingle=3)[0]
    assert row.dtype == np.uint32
    assert row.tolist()[:4] == [1540665771, 2008141599, 936757146, 740473532]


def test_nothing_in_nothing_out() -> None:
    assert find_duplicates([], threshold=0.9, num_perm=16) == Duplicates()
    assert signatures([], num_perm=16, shingle=5) == []
