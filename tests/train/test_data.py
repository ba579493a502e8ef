"""Caches and batches of a really compiled corpus: what they hold, and that a step is a pure function."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asmtrain.cache import TokenCache, build_cache, estimate_tokens
from asmtrain.config import DataConfig
from asmtrain.data import (
    RowBatch,
    RowBatches,
    cut_keeping_end,
    interleave,
    to_device,
)
from asmtrain.errors import LaunchError
from asmtrain.losses import IGNORE
from asmtrain.tokens import documents
from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import read_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def caches(tiny_corpus: Path, tiny_tokenizer: Any, folder: Path) -> list[TokenCache]:
    """The training split as `completion` and as `retrieval`."""
    return [
        build_cache(DataConfig(corpus=tiny_corpus, task=task), "train", tiny_tokenizer, folder)
        for task in ("completion", "retrieval")
    ]


@pytest.fixture(scope="module")
def records(tiny_corpus: Path) -> list[FunctionRecord]:
    return list(read_split(tiny_corpus, "train"))


def rows(caches: Sequence[TokenCache], **changes: Any) -> RowBatches:
    options = {"context": 128, "rows_per_step": 8, "micro_rows": 2, "seed": 3, **changes}
    return RowBatches(caches, [3.0, 1.0][: len(caches)], **options)


def equal(first: Sequence[RowBatch], second: Sequence[RowBatch]) -> bool:
    pairs_of_tensors = zip(map(dataclasses.astuple, first), map(dataclasses.astuple, second), strict=True)
    return all(torch.equal(a, b) for x, y in pairs_of_tensors for a, b in zip(x, y, strict=True))


def stacked(batches: Sequence[RowBatch]) -> torch.Tensor:
    """All tensors of the rows, in order: (rows, 4, T)."""
    return torch.cat([torch.stack(dataclasses.astuple(batch), dim=1) for batch in batches])


class TestCache:
    def test_holds_every_document_of_the_split(
        self, caches: list[TokenCache], records: list[FunctionRecord], tiny_tokenizer: Any
    ) -> None:
        for cache, task in zip(caches, ("completion", "retrieval"), strict=True):
            expected = [item for record in records for item in documents(record, task)]
            assert len(cache) == len(expected)
            assert cache.num_functions == len(records)
            assert cache.keys.tolist() == [item.key for item in expected]
            assert cache.variants.tolist() == [item.variant for item in expected]
            for number, item in enumerate(expected):
                assert cache.tokens(number).tolist() == tiny_tokenizer(item.text)["input_ids"]
            assert cache.num_tokens == sum(len(cache.tokens(number)) for number in range(len(cache)))

    def test_bodies_are_equal_where_hashes_are(
        self, caches: list[TokenCache], records: list[FunctionRecord]
    ) -> None:
        hashes = [item.body_sha256 for record in records for item in documents(record, "completion")]
        by_number = Counter(zip(caches[0].bodies.tolist(), hashes, strict=True))
        assert len(by_number) == len(set(hashes)) == len(set(caches[0].bodies.tolist()))

    def test_functions_own_their_documents(self, caches: list[TokenCache]) -> None:
        cache = caches[0]
        spans = [cache.documents_of(function) for function in range(cache.num_functions)]
        assert [number for span in spans for number in span] == list(range(len(cache)))
        assert all(len({str(cache.keys[number]) for number in span}) == 1 for span in spans)

    def test_bytes_do_not_depend_on_the_number_of_ranks(
        self, tiny_corpus: Path, tiny_tokenizer: Any, caches: list[TokenCache], tmp_path: Path
    ) -> None:
        data = DataConfig(corpus=tiny_corpus, task="completion")
        with pytest.raises(InterruptedError):  # rank 1 does its share first and stops at the barrier
            build_cache(data, "train", tiny_tokenizer, tmp_path, rank=1, world=2, barrier=_interrupt)
        other = build_cache(data, "train", tiny_tokenizer, tmp_path, rank=0, world=2)
        names = sorted(path.relative_to(other.folder) for path in other.folder.rglob("*.*"))
        assert len([name for name in names if name.name == "tokens.npy"]) == 2
        for name in names:
            assert (other.folder / name).read_bytes() == (caches[0].folder / name).read_bytes()

    def test_is_reused_when_nothing_changed_and_made_anew_when_something_did(
        self, tiny_corpus: Path, tiny_tokenizer: Any, caches: list[TokenCache], folder: Path
    ) -> None:
        data = DataConfig(corpus=tiny_corpus, task="completion")
        before = (caches[0].folder / "cache.json").stat().st_mtime_ns
        assert build_cache(data, "train", tiny_tokenizer, folder).folder == caches[0].folder
        assert (caches[0].folder / "cache.json").stat().st_mtime_ns == before
        changed = data.model_copy(update={"variants": ("*.o2",)})
        narrower = build_cache(changed, "train", tiny_tokenizer, folder)
        assert narrower.folder != caches[0].folder
        assert set(narrower.variants.tolist()) < set(caches[0].variants.tolist())

    def test_truncation_left_on_in_the_tokenizer_does_not_cut_the_cache(
        self, tiny_corpus: Path, tiny_tokenizer: Any, caches: list[TokenCache], folder: Path
    ) -> None:
        tiny_tokenizer("ret", truncation=True, max_length=8)  # leaves the backend truncating
        data = DataConfig(corpus=tiny_corpus, task="completion")
        assert build_cache(data, "train", tiny_tokenizer, folder).folder == caches[0].folder

    def test_a_build_that_stopped_goes_on_with_its_finished_parts(
        self, tiny_corpus: Path, tiny_tokenizer: Any, caches: list[TokenCache], tmp_path: Path
    ) -> None:
        target = tmp_path / caches[0].folder.name
        shutil.copytree(caches[0].folder, target)
        (target / "cache.json").unlink()
        shutil.rmtree(target / "part-00001")
        (target / ".part-00001.tmp").mkdir()  # what a killed build leaves
        before = (target / "part-00000" / "tokens.npy").stat().st_mtime_ns
        cache = build_cache(
            DataConfig(corpus=tiny_corpus, task="completion"), "train", tiny_tokenizer, tmp_path
        )
        assert len(cache) == len(caches[0])
        assert (target / "part-00000" / "tokens.npy").stat().st_mtime_ns == before

    def test_max_functions_takes_evenly_spread_ones(
        self, tiny_corpus: Path, tiny_tokenizer: Any, records: list[FunctionRecord], folder: Path
    ) -> None:
        data = DataConfig(corpus=tiny_corpus, task="retrieval", max_functions=6)
        cache = build_cache(data, "train", tiny_tokenizer, folder)
        assert sorted(set(cache.keys.tolist())) == sorted(record.key for record in records[::8])

    def test_mistakes_are_reported(self, tiny_corpus: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
        data = DataConfig(corpus=tiny_corpus, task="completion", variants=("mips.*",))
        with pytest.raises(EmptyCorpus, match=r"mips\.\*"):
            build_cache(data, "train", tiny_tokenizer, tmp_path)
        with pytest.raises(ShardError, match=r"index\.json"):
            build_cache(
                data.model_copy(update={"corpus": tmp_path}), "train", tiny_tokenizer, tmp_path / "cache"
            )


def _interrupt() -> None:
    raise InterruptedError


class TestRows:
    def test_rows_hold_documents_with_positions_and_labels(
        self, caches: list[TokenCache], tiny_tokenizer: Any
    ) -> None:
        cache = caches[0]
        texts = [cache.tokens(number).tolist() for number in range(len(cache))]
        pieces = {tuple(text[at : at + 128]) for text in texts for at in range(0, len(text), 128)}
        for batch in rows([cache]).step(0):
            assert {tuple(tensor.shape) for tensor in dataclasses.astuple(batch)} == {(2, 128)}
            for ids, positions, labels, numbers in zip(*dataclasses.astuple(batch), strict=True):
                padding = numbers == -1
                assert (ids[padding] == tiny_tokenizer.pad_token_id).all()
                assert (labels[padding] == IGNORE).all()
                for number in range(int(numbers.max()) + 1):
                    place = numbers == number
                    length = int(place.sum())
                    assert positions[place].tolist() == list(range(length))
                    assert labels[place].tolist() == [IGNORE, *ids[place].tolist()[1:]]
                    assert tuple(ids[place].tolist()) in pieces

    def test_an_epoch_shows_every_token_once(self, caches: list[TokenCache]) -> None:
        cache = caches[0]
        batches = rows([cache], rows_per_step=1, micro_rows=1)
        seen: Counter[int] = Counter()
        for index in range(int(batches.steps_per_epoch)):
            (batch,) = batches.step(index)
            seen.update(batch.ids_BT[batch.document_ids_BT >= 0].tolist())
        expected = Counter(np.concatenate([cache.tokens(n) for n in range(len(cache))]).tolist())
        ends = sum(1 for length in cache.lengths if length % 128 == 1)  # single last tokens are left out
        assert sum((expected - seen).values()) == ends
        assert not seen - expected

    def test_epochs_differ_in_order_alone(self, caches: list[TokenCache]) -> None:
        batches = rows([caches[0]], rows_per_step=1, micro_rows=1)
        num_rows = int(batches.steps_per_epoch)
        first, second = (
            [tuple(batches.step(epoch * num_rows + i)[0].ids_BT.flatten().tolist()) for i in range(num_rows)]
            for epoch in (0, 1)
        )
        assert first != second
        assert Counter(first) == Counter(second)

    @pytest.mark.parametrize("world", [2, 4])
    def test_global_order_does_not_depend_on_the_ranks(self, caches: list[TokenCache], world: int) -> None:
        one = rows(caches)
        ranks = [rows(caches, rank=rank, world=world) for rank in range(world)]
        for index in (0, 1, 40):
            parts = torch.cat([stacked(batches.step(index)) for batches in ranks])
            assert torch.equal(parts, stacked(one.step(index)))

    def test_random_access_equals_going_through(self, caches: list[TokenCache]) -> None:
        through = rows(caches)
        steps = [through.step(index) for index in range(30)]  # passes an epoch of the first part
        for index in (29, 3, 17):
            assert equal(rows(caches).step(index), steps[index])

    def test_another_seed_gives_another_order(self, caches: list[TokenCache]) -> None:
        assert not equal(rows(caches).step(0), rows(caches, seed=4).step(0))

    def test_parts_alternate_by_weight(self, caches: list[TokenCache]) -> None:
        of_first = {tuple(row[0].tolist()) for row in stacked(rows(caches[:1]).evaluation(10**6))}
        batches = rows(caches)
        shown = torch.cat([stacked(batches.step(index)) for index in range(50)])
        is_first = torch.tensor([tuple(row[0].tolist()) in of_first for row in shown])
        for stop in (4, 40, 400):
            assert abs(int(is_first[:stop].sum()) - 0.75 * stop) <= 1

    def test_any_prefix_of_a_mixture_follows_its_weights(self) -> None:
        weights = np.array([0.61, 0.29, 0.1])
        parts, occurrences = interleave(weights, 0, 3000)
        for part, weight in enumerate(weights):
            given = np.cumsum(parts == part)
            assert np.abs(given - weight * np.arange(1, 3001)).max() <= 1
            assert occurrences[parts == part].tolist() == list(range(given[-1]))

    @pytest.mark.parametrize("weights", [[0.61, 0.29, 0.1], [0.91, *[0.01] * 9], [1.0]])
    def test_any_window_of_a_mixture_is_cut_from_the_whole(self, weights: list[float]) -> None:
        """Among ten parts nine are due at once, which puts the tenth several rows before its share."""
        whole = interleave(np.array(weights), 0, 3000)
        for part, weight in enumerate(weights):
            assert whole[1][whole[0] == part].tolist() == list(range(int((whole[0] == part).sum())))
            assert abs(int((whole[0] == part).sum()) - weight * 3000) <= 1 + len(weights) / 2
        for first, stop in ((0, 7), (1, 2), (45, 55), (500, 900), (2990, 3000)):
            window = interleave(np.array(weights), first, stop)
            assert [side.tolist() for side in window] == [side[first:stop].tolist() for side in whole]

    def test_each_epoch_of_a_part_reads_every_row_once(self, caches: list[TokenCache]) -> None:
        batches = rows(caches)
        num_rows = [len(packed) for packed in batches.packed]
        seen: list[list[tuple[int, ...]]] = [[], []]
        for index in range(2 * int(batches.steps_per_epoch) + 2):
            of_rows = torch.cat(batches.parts(index)).tolist()
            for part, row in zip(of_rows, stacked(batches.step(index)), strict=True):
                seen[part].append(tuple(row[0].tolist()))
        assert len(seen[0]) > 2 * num_rows[0]
        for own, count in zip(seen, num_rows, strict=True):
            for first in range(0, len(own), count):
                epoch = own[first : first + count]
                assert len(set(epoch)) == len(epoch), "no row comes twice"
            assert set(own[:count]) == set(own[count : 2 * count]) or len(own) < 2 * count
        assert seen[0][: num_rows[0]] != seen[0][num_rows[0] : 2 * num_rows[0]]

    def test_micro_batches_of_a_step_may_be_uneven(self, caches: list[TokenCache]) -> None:
        batches = rows([caches[0]], micro_rows=3)
        assert [len(batch.ids_BT) for batch in batches.step(0)] == [3, 3, 2]
        assert batches.num_micro_steps == 3

    def test_evaluation_shows_each_row_once_and_fills_up_ranks(self, caches: list[TokenCache]) -> None:
        one = rows([caches[0]]).evaluation(7)
        two = [rows([caches[0]], rank=rank, world=2).evaluation(7) for rank in range(2)]
        assert len(two[0]) == len(two[1])
        both = torch.cat([stacked(item) for item in two])
        assert torch.equal(both[:7], stacked(one))
        assert (both[7:, 2] == IGNORE).all()
        num_rows = len(rows([caches[0]]).packed[0])
        everything = stacked(rows([caches[0]]).evaluation(10**6))
        assert len(everything) == num_rows == len({tuple(row[0].tolist()) for row in everything})

    def test_ranks_that_cannot_share_a_step_are_refused(self, caches: list[TokenCache]) -> None:
        with pytest.raises(LaunchError, match="8, which 3 ranks"):
            rows(caches, world=3)

    def test_rows_are_nearly_full(self, caches: list[TokenCache]) -> None:
        assert rows(caches).fill > 0.9


@pytest.mark.parametrize("task", ["completion", "c_to_asm"])
def test_a_cache_of_which_every_function_was_sampled_is_told_exactly(
    tiny_corpus: Path, tiny_tokenizer: Any, folder: Path, task: Any
) -> None:
    data = DataConfig(corpus=tiny_corpus, task=task)
    num_tokens = build_cache(data, "train", tiny_tokenizer, folder).num_tokens
    assert estimate_tokens(data, "train", tiny_tokenizer, num_functions=10_000) == pytest.approx(num_tokens)
    assert estimate_tokens(data, "train", tiny_tokenizer, num_functions=24) == pytest.approx(
        num_tokens, rel=0.5
    )


def test_cutting_equals_the_tokenizers_own(
    caches: list[TokenCache], records: list[FunctionRecord], tiny_tokenizer: Any
) -> None:
    texts = [item.text for record in records for item in documents(record, "completion")]
    for number, text in enumerate(texts[:40]):
        cut = tiny_tokenizer(text, truncation=True, max_length=32)["input_ids"]
        assert cut_keeping_end(caches[0].tokens(number), 32).tolist() == cut


def test_to_device_moves_every_tensor(caches: list[TokenCache]) -> None:
    batch = to_device(rows([caches[0]]).step(0)[0], "meta")
    assert {tensor.device.type for tensor in dataclasses.astuple(batch)} == {"meta"}
