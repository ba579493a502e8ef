"""Functions in several variants: what a step holds, whatever the ranks, and that it is a pure function."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asmtrain.cache import TokenCache, build_cache
from asmtrain.config import DataConfig
from asmtrain.data import cut_keeping_end
from asmtrain.errors import ConfigError
from asmtrain.pairs import PairBatch, PairBatches, body_clusters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, folder: Path) -> TokenCache:
    return build_cache(DataConfig(corpus=tiny_corpus, task="retrieval"), "train", tiny_tokenizer, folder)


@pytest.fixture(scope="module")
def fewer(tiny_corpus: Path, tiny_tokenizer: Any, folder: Path) -> TokenCache:
    """Twelve of the functions, every fourth."""
    data = DataConfig(corpus=tiny_corpus, task="retrieval", max_functions=12)
    return build_cache(data, "train", tiny_tokenizer, folder)


def pairs(*caches: TokenCache, weights: Sequence[float] | None = None, **changes: Any) -> PairBatches:
    options = {"functions_per_step": 16, "micro_rows": 4, "max_tokens": 48, "seed": 3, **changes}
    return PairBatches(caches, weights or [1.0] * len(caches), **options)


def equal(first: Sequence[PairBatch], second: Sequence[PairBatch]) -> bool:
    sides = zip(map(dataclasses.astuple, first), map(dataclasses.astuple, second), strict=True)
    return all(torch.equal(a, b) for x, y in sides for a, b in zip(x, y, strict=True))


def texts_of(batch: PairBatch) -> list[list[list[int]]]:
    """The ids of each variant of each function, without padding."""
    return [
        [ids[mask == 1].tolist() for ids, mask in zip(*sides, strict=True)]
        for sides in zip(batch.ids_BKT, batch.mask_BKT, strict=True)
    ]


@pytest.mark.parametrize("variants", [2, 4])
def test_a_function_comes_in_different_bodies(cache: TokenCache, variants: int) -> None:
    batches = pairs(cache, variants=variants)
    for index in range(12):
        functions = []
        for batch in batches.step(index):
            functions += batch.functions_B.tolist()
            assert batch.documents_BK.shape == (len(batch.functions_B), variants)
            for function, documents, texts in zip(
                batch.functions_B.tolist(), batch.documents_BK.tolist(), texts_of(batch), strict=True
            ):
                own = cache.documents_of(function)
                assert set(documents) <= set(own)
                bodies = {int(cache.bodies[number]) for number in own}
                drawn = {int(cache.bodies[number]) for number in documents}
                assert len(drawn) == min(variants, len(bodies)) > 1
                assert texts == [cut_keeping_end(cache.tokens(number), 48).tolist() for number in documents]
            assert torch.equal(batch.bodies_BK, torch.from_numpy(cache.bodies[batch.documents_BK]))
        assert len(functions) == len(set(functions)) == 16


def test_a_function_with_fewer_bodies_shows_some_again(cache: TokenCache) -> None:
    least = min(len(set(cache.bodies[list(cache.documents_of(f))])) for f in range(cache.num_functions))
    batches = pairs(cache, variants=least + 2, functions_per_step=48)
    bodies = torch.cat([batch.bodies_BK for batch in batches.step(0)])
    counts = [len(row.unique()) for row in bodies]
    assert min(counts) == least
    assert max(counts) == least + 2


def test_masks_are_right_padded_and_texts_keep_their_end(cache: TokenCache, tiny_tokenizer: Any) -> None:
    num_cut = 0
    for batch in pairs(cache, micro_rows=16).step(0):
        ids, mask = batch.ids_BKT.flatten(0, 1), batch.mask_BKT.flatten(0, 1)
        lengths = mask.sum(1)
        assert torch.equal(mask, (torch.arange(mask.shape[1]) < lengths[:, None]).long())
        assert lengths.max() == mask.shape[1] <= 48
        assert (ids[mask == 0] == tiny_tokenizer.pad_token_id).all()
        assert (ids[torch.arange(len(ids)), lengths - 1] == tiny_tokenizer.eos_token_id).all()
        num_cut += int((lengths == 48).sum())
    assert num_cut > 0


@pytest.mark.parametrize("neighbours", [0.0, 0.5, 1.0])
def test_an_epoch_draws_each_function_once(cache: TokenCache, neighbours: float) -> None:
    batches = pairs(cache, neighbours=neighbours)
    assert batches.steps_per_epoch == 3
    epochs = []
    for first in (0, 3):
        drawn = [
            function
            for index in range(first, first + 3)
            for batch in batches.step(index)
            for function in batch.functions_B.tolist()
        ]
        assert sorted(drawn) == list(range(48))
        epochs.append(drawn)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_holds_the_same_on_any_number_of_ranks(cache: TokenCache, world: int) -> None:
    options = {"variants": 3, "neighbours": 0.5, "token_dropout": 0.2}

    def contents(parts: Sequence[PairBatch]) -> list[Any]:
        return sorted(
            (place, number, texts) for part in parts for place, number, texts in
            zip(part.places_B.tolist(), part.documents_BK.tolist(), texts_of(part), strict=True)
        )  # fmt: skip

    for index in (0, 7):
        ranks = [pairs(cache, rank=rank, world=world, **options).step(index) for rank in range(world)]
        assert {len(parts) for parts in ranks} == {pairs(cache, world=world).num_micro_steps}
        together = [part for parts in ranks for part in parts]
        alone = pairs(cache, micro_rows=3, **options)
        assert contents(together) == contents(alone.step(index))
        documents = [numbers[0] for _, numbers, _ in contents(together)]
        assert [alone.texts.key(number) for number in documents] == alone.keys(index)  # in the order drawn


def test_random_access_equals_going_through(cache: TokenCache, fewer: TokenCache) -> None:
    options = {"weights": [1.0, 3.0], "neighbours": 0.5, "token_dropout": 0.1}
    through = pairs(cache, fewer, **options)
    steps = [through.step(index) for index in range(10)]  # passes epochs of both
    for index in (9, 2, 6):
        assert equal(pairs(cache, fewer, **options).step(index), steps[index])
    assert not equal(pairs(cache, fewer, **options, seed=4).step(2), steps[2])


def test_neighbours_are_of_one_project_and_about_one_length(cache: TokenCache) -> None:
    batches = pairs(cache, neighbours=1.0, functions_per_step=8)
    batches.texts.projects = np.arange(48) % 2
    sizes = batches.texts.sizes
    groups = [torch.cat([batch.functions_B for batch in batches.step(index)]).numpy() for index in range(6)]
    for project in (0, 1):
        own = sorted((sizes[g].min(), sizes[g].max()) for g in groups if (g % 2 == project).all())
        assert len(own) == 3
        assert own[0][1] <= own[1][0] <= own[1][1] <= own[2][0]


def test_a_share_of_the_functions_has_neighbours(cache: TokenCache) -> None:
    def of_one_project(neighbours: float) -> int:
        batches = pairs(cache, neighbours=neighbours)
        batches.texts.projects = np.arange(48) % 2
        order = batches._order(0, 0)
        return sum(len(set(order[at : at + 8] % 2)) == 1 for at in range(41))

    assert of_one_project(0.0) < 3 <= of_one_project(0.5) < of_one_project(1.0)


def test_caches_stand_in_a_step_as_their_weights_do(cache: TokenCache, fewer: TokenCache) -> None:
    batches = pairs(cache, fewer, weights=[3.0, 1.0])
    for index in range(8):
        numbers = torch.cat([batch.functions_B for batch in batches.step(index)])
        assert int((numbers >= cache.num_functions).sum()) == 4
    assert batches.steps_per_epoch == 3  # 12 of 4 a step, and 48 of 12 take as long as 4: the first is over


def test_clusters_join_over_caches(cache: TokenCache, fewer: TokenCache) -> None:
    """The second cache's functions are the first's as well: never negatives of their copies."""
    batches = pairs(cache, fewer, functions_per_step=48)
    names = {int(f): str(cache.keys[cache.documents_of(int(f)).start]) for f in range(cache.num_functions)}
    names |= {
        cache.num_functions + f: str(fewer.keys[fewer.documents_of(f).start])
        for f in range(fewer.num_functions)
    }
    assert len(set(names.values())) == 48
    clusters = batches._clusters
    for number, name in names.items():
        for other, theirs in names.items():
            if name == theirs:
                assert clusters[number] == clusters[other]
    keys = batches.keys(0)
    functions = {int(n) for batch in batches.step(0) for n in batch.functions_B}
    assert {names[number] for number in functions} == set(keys)


def test_dropout_leaves_tokens_out_but_for_the_ends(cache: TokenCache) -> None:
    whole, thinned = (
        {
            int(number): text
            for batch in pairs(cache, max_tokens=4096, token_dropout=share).step(0)
            for numbers, texts in zip(batch.documents_BK, texts_of(batch), strict=True)
            for number, text in zip(numbers, texts, strict=True)
        }
        for share in (0.0, 0.25)
    )
    assert whole.keys() == thinned.keys()
    for number, text in thinned.items():
        assert (text[0], text[-1]) == (whole[number][0], whole[number][-1])
        rest = iter(whole[number])
        assert all(token in rest for token in text), "in their order"
    kept = sum(map(len, thinned.values())) / sum(map(len, whole.values()))
    assert kept == pytest.approx(0.75, abs=0.03)


def test_functions_with_one_body_are_left_out(
    tiny_corpus: Path, tiny_tokenizer: Any, cache: TokenCache, folder: Path
) -> None:
    """At O2 and O3 some functions have one body, others two."""
    compiler = str(cache.variants[0]).rpartition(".")[0]
    data = DataConfig(corpus=tiny_corpus, task="retrieval", variants=(f"{compiler}.o[23]",))
    two_levels = build_cache(data, "train", tiny_tokenizer, folder)
    several = {
        function
        for function in range(two_levels.num_functions)
        if len({int(two_levels.bodies[number]) for number in two_levels.documents_of(function)}) > 1
    }
    assert 0 < len(several) < two_levels.num_functions
    assert set(pairs(two_levels, functions_per_step=1).functions[0].tolist()) == several
    with pytest.raises(ConfigError, match=f"only {len(several)} functions"):
        pairs(two_levels, functions_per_step=len(several) + 1)


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=12))
def test_clusters_join_functions_over_chains_of_equal_bodies(bodies: list[list[int]]) -> None:
    """Against a naive search: as long as anything may change, functions take the lowest of a body's."""
    lowest = list(range(len(bodies)))
    for _ in bodies:
        for function, own in enumerate(bodies):
            joined = [other for other, theirs in enumerate(bodies) if set(own) & set(theirs)]
            lowest[function] = min(lowest[other] for other in joined)
    functions = np.repeat(np.arange(len(bodies)), [len(own) for own in bodies])
    found = body_clusters(functions, np.array([body for own in bodies for body in own])).tolist()
    assert [found.index(cluster) for cluster in found] == lowest
