"""Deduplication against its naive versions: all pairs, by exact Jaccard similarity and by another library."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rensa import RMinHash

from corpus_builder import database, dedup
from corpus_builder.config import SPLITS
from corpus_builder.dedup import Functions, Signature, find_duplicates, signatures
from corpus_builder.errors import OutputError

NUM_PERM = 128
SHINGLE = 5
THRESHOLD = 0.85

Function = tuple[str, str, list[str], frozenset[int]]
"""Key, split, tokens, bodies."""


Item = tuple[str, str, str, Signature, frozenset[int]]
"""Key, split, source, signature, bodies."""


@dataclass(frozen=True)
class Fates:
    clusters: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def find(functions: list[Function], threshold: float = THRESHOLD) -> Fates:
    rows = signatures([tokens for _, _, tokens, _ in functions], num_perm=NUM_PERM, shingle=SHINGLE)
    items = [
        (key, split, " ".join(tokens), row, bodies)
        for (key, split, tokens, bodies), row in zip(functions, rows, strict=True)
    ]
    return find_items(items, threshold=threshold)


def find_items(items: list[Item], *, threshold: float, num_perm: int = NUM_PERM) -> Fates:
    """Each function is a unit of its own, at the place of its number."""
    batches = [(place, item[1], functions_of([item])) for place, item in enumerate(items)]
    with (
        tempfile.TemporaryDirectory() as folder,
        find_duplicates(batches, folder=Path(folder), threshold=threshold, num_perm=num_perm) as result,
    ):
        kept = list(result.kept())
        fates = Fates({k: c for _, clusters in kept for k, c in clusters.items()}, dict(result.dropped()))
        assert [place for place, _ in kept] == [
            n for n, item in enumerate(items) if item[0] in fates.clusters
        ]
        assert result.num_kept == len(fates.clusters)
        assert sum(result.num_dropped().values()) == len(fates.dropped)
        return fates


def functions_of(items: list[Item]) -> Functions:
    bodies = [(number, body) for number, item in enumerate(items) for body in sorted(item[4])]
    return Functions(
        keys=[item[0] for item in items],
        sources=[item[2] for item in items],
        signatures=np.stack([item[3] for item in items]),
        bodies=np.array([body for _, body in bodies], np.uint64),
        body_owners=np.array([number for number, _ in bodies], np.uint32),
    )


def naive(
    functions: list[Function],
    similarity: Callable[[list[str], list[str]], float] | None = None,
    threshold: float = THRESHOLD,
) -> Fates:
    similarity = similarity or jaccard
    result = Fates()
    kept: list[Function] = []
    for function in sorted(functions, key=lambda function: (SPLITS.index(function[1]), function[0])):
        key, split, tokens, bodies = function
        earlier = [other for other in kept if other[1] != split]
        if any(other[2] == tokens for other in kept):
            result.dropped[key] = "exact"
        elif any(other[3] & bodies for other in earlier):
            result.dropped[key] = "body"
        elif any(similarity(other[2], tokens) >= threshold for other in earlier):
            result.dropped[key] = "near"
        else:
            kept.append(function)
    clusters = {key: {key} for key, *_ in kept}
    for first, second in combinations(kept, 2):
        if first[1] == second[1] and similarity(first[2], second[2]) >= threshold:
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


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=15, deadline=None)
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
    trials = 200
    functions: list[Function] = []
    for trial in range(trials):
        shared = [f"s{chance.randrange(10**9)}" for _ in range(304)]
        for split in ("train", "test"):
            own = [f"o{chance.randrange(10**9)}" for _ in range(12)]
            # 300 common shingles of 324: 0.926
            functions.append((f"{trial:03d} {split}", split, shared + own, frozenset()))
    dropped = find(functions).dropped
    assert set(dropped.values()) == {"near"}
    assert all(key.endswith(" test") for key in dropped)
    assert len(dropped) >= 0.97 * trials


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_perm", [16, 128])
def test_equal_signatures_are_near_at_any_threshold(threshold: float, num_perm: int) -> None:
    row = signatures([["a"] * 40], num_perm=num_perm, shingle=SHINGLE)[0]
    items: list[Item] = [
        ("a", "train", "1", row, frozenset()),
        ("b", "train", "2", row, frozenset()),
        ("c", "valid", "3", row, frozenset()),
    ]
    result = find_items(items, threshold=threshold, num_perm=num_perm)
    assert result == Fates({"a": "a", "b": "a"}, {"c": "near"})


@pytest.mark.parametrize("seed", range(3))
def test_another_librarys_minhash_decides_the_same(seed: int) -> None:
    """No pair is closer to 0.6 than 0.1, four standard errors of either library's estimate."""
    chance = random.Random(seed)
    functions: list[Function] = []
    for _ in range(12):
        original = [f"t{chance.randrange(10**9)}" for _ in range(250)]
        for num_changes in (0, *chance.choices([1, 2, 4, 30, 60], k=4)):
            changed = list(original)
            for place in chance.sample(range(250), num_changes):
                changed[place] = f"u{chance.randrange(10**9)}"
            functions.append((a_key(chance), chance.choice(SPLITS), changed, frozenset()))
    fates = find(functions, 0.6)
    assert fates == naive(functions, rensa_similarity, 0.6)
    assert "near" in fates.dropped.values()
    assert any(key != cluster for key, cluster in fates.clusters.items())


def rensa_similarity(first: list[str], second: list[str]) -> float:
    sketches = []
    for tokens in (first, second):
        sketches.append(RMinHash(num_perm=512, seed=7))
        sketches[-1].update([" ".join(shingle) for shingle in shingles(tokens)])
    similarity: float = sketches[0].jaccard(sketches[1])
    return similarity


def test_a_function_of_two_units_is_the_first_ones() -> None:
    rows = signatures([["a"] * 40, ["b"] * 40], num_perm=16, shingle=SHINGLE)
    first = functions_of([("k", "train", "s", rows[0], frozenset())])
    second = functions_of(
        [("k", "train", "t", rows[1], frozenset()), ("l", "train", "t", rows[1], frozenset())]
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        find_duplicates(
            [(9, "train", first), (2, "train", second)], folder=Path(folder), threshold=0.9, num_perm=16
        ) as result,
    ):
        assert list(result.kept()) == [(2, {"l": "l"}), (9, {"k": "k"})]
        assert list(result.dropped()) == []


@pytest.mark.parametrize("crowd", [8, dedup._CROWD])
def test_a_crowd_is_one_cluster_and_crosses_no_split(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sources than are compared pairwise, all alike; and a pair that shares some bands with them."""
    monkeypatch.setattr(dedup, "_CROWD", crowd)
    monkeypatch.setattr(dedup, "_NEIGHBOURS", crowd // 4)
    chance = np.random.default_rng(0)
    row = chance.integers(0, 2**32, NUM_PERM, dtype=np.uint32)
    items: list[Item] = []
    for number in range(2 * crowd):
        own = row.copy()
        own[chance.integers(NUM_PERM, size=3)] = number  # similar to any other by 0.95 and more
        items.append(
            (f"{number:05d}", "test" if number % 10 == 9 else "train", f"{number}", own, frozenset())
        )
    half = np.concatenate([row[:64], chance.integers(0, 2**32, 64, dtype=np.uint32)])
    items += [(f"x{split}", split, f"x{split}", half, frozenset()) for split in ("train", "valid")]
    fates = find_items(items, threshold=0.9)
    near = {item[0] for item in items if item[1] != "train"}
    assert fates.dropped == dict.fromkeys(near, "near")
    clusters = {key: "xtrain" if key == "xtrain" else "00000" for key in fates.clusters}
    assert fates.clusters == clusters


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
    assert find_items([], threshold=0.9, num_perm=16) == Fates()
    assert signatures([], num_perm=16, shingle=5) == []


def test_a_step_that_lacks_memory_gets_more_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: list[Function] = [
        (f"{i:04d}", SPLITS[i % 3], [f"t{i // 2}", *"abcdef"], frozenset({i})) for i in range(300)
    ]
    expected = find(functions)
    monkeypatch.setattr(database, "_MEMORY_MIB", 1)
    assert find(functions) == expected
    monkeypatch.setattr(database, "_MOST_MEMORY_MIB", 1)
    with pytest.raises(OutputError, match="Out of Memory"):
        find(functions)


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(OutputError, match="/proc/nowhere"), database.opened(Path("/proc/nowhere")):
        pass
