"""The retrieval protocol against naive versions, its baselines, and the evaluation of a real export."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmtrain.errors import ModelError
from asmtrain.tasks import baselines, completion, pools, retrieval
from asmtrain.tasks.pools import Lane
from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.record import FunctionMeta
from corpus_builder.shards import read_split

LANE = Lane("O0-O3", "aarch64", "gcc", "aarch64.gcc.o0", "aarch64.gcc.o3")


@pytest.fixture(scope="module")
def exported(exported_run: Path) -> Path:
    return exported_run / "export"


@pytest.fixture(scope="module")
def make_meta(tiny_corpus: Path) -> Callable[..., FunctionMeta]:
    template = next(read_split(tiny_corpus, "test")).meta

    def make(
        name: str,
        bodies: tuple[str, str] | None = None,
        sizes: tuple[int, int] = (20, 20),
        source: str = "",
        levels: tuple[str, ...] = ("o0", "o3"),
    ) -> FunctionMeta:
        some = next(iter(template.variants.values()))
        bodies = bodies or (f"{name} o0", f"{name} o3")
        variants = {
            f"aarch64.gcc.{level}": some.model_copy(update={"body_sha256": body, "num_instructions": size})
            for level, body, size in zip(levels, bodies, sizes, strict=False)
        }
        return template.model_copy(
            update={"name": name, "source_sha256": source or name, "variants": variants}
        )

    return make


def names_of(pairs: list[pools.Pair]) -> set[str]:
    return {pair.key for pair in pairs}


def test_pairs_that_cannot_be_told_apart_are_left_out_and_counted(
    make_meta: Callable[..., FunctionMeta],
) -> None:
    metas = [make_meta(name) for name in "ab"]
    metas.append(make_meta("short", sizes=(20, 9)))
    metas.append(make_meta("same", bodies=("x", "x")))
    metas.append(make_meta("half", levels=("o0",)))
    pairs, census = pools.eligible(
        [(meta.name, meta) for meta in metas], LANE, min_instructions=10, limit=9, seed=0
    )
    assert names_of(pairs) == {"a", "b"}
    assert census.as_dict() == {
        "num_functions": 4, "num_short": 1, "num_identical": 1, "num_duplicate": 0, "num_over_limit": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "twin",
    [
        {"bodies": ("a o0", "other")},  # the same query
        {"bodies": ("other", "a o3")},  # the same answer
        {"bodies": ("a o3", "other")},  # a query that equals another's answer
        {"source": "a"},
    ],
)
def test_no_pool_holds_two_right_answers(
    make_meta: Callable[..., FunctionMeta], twin: dict[str, Any]
) -> None:
    metas = [("1", make_meta("a")), ("2", make_meta("b", **twin)), ("3", make_meta("c"))]
    pairs, census = pools.eligible(metas, LANE, min_instructions=10, limit=9, seed=0)
    assert census.num_duplicate == 1
    assert len(pairs) == 2


def test_a_second_definition_in_the_same_file_is_no_negative(make_meta: Callable[..., FunctionMeta]) -> None:
    first, second = make_meta("a"), make_meta("a", bodies=("p", "q"), source="s")
    pairs, census = pools.eligible([("1", first), ("2", second)], LANE, min_instructions=10, limit=9, seed=0)
    assert (len(pairs), census.num_duplicate) == (1, 1)


def test_order_and_choice_depend_on_seed_and_keys_alone(make_meta: Callable[..., FunctionMeta]) -> None:
    metas = [(str(at), make_meta(f"f{at}")) for at in range(40)]
    options = {"min_instructions": 10, "limit": 15}
    forwards, census = pools.eligible(metas, LANE, seed=3, **options)
    backwards, _ = pools.eligible(metas[::-1], LANE, seed=3, **options)
    other, _ = pools.eligible(metas, LANE, seed=4, **options)
    assert forwards == backwards
    assert names_of(forwards) != names_of(other)
    assert (len(forwards), census.num_over_limit) == (15, 25)


def test_lanes_follow_from_the_variants() -> None:
    names = [f"{isa}.{compiler}.{level}" for isa in ("aarch64", "x86_64") for compiler in ("gcc12", "clang19")
             for level in ("o0", "o2", "o3")]  # fmt: skip
    lanes = pools.lanes_of(names)
    assert [(lane.task, lane.isa, lane.query, lane.answer) for lane in lanes] == [
        ("O0-O3", "aarch64", "aarch64.gcc12.o0", "aarch64.gcc12.o3"),
        ("O0-O3", "x86_64", "x86_64.gcc12.o0", "x86_64.gcc12.o3"),
        ("gcc-clang", "aarch64", "aarch64.gcc12.o2", "aarch64.clang19.o2"),
        ("gcc-clang", "x86_64", "x86_64.gcc12.o2", "x86_64.clang19.o2"),
        ("aarch64-x86_64", "aarch64-x86_64", "aarch64.gcc12.o2", "x86_64.gcc12.o2"),
    ]
    assert pools.lanes_of(name for name in names if "o2" in name) == lanes[2:]
    zig = pools.lanes_of(name.replace("gcc12", "zig20") for name in names if "clang" not in name)
    assert [lane.task for lane in zig] == ["O0-O3", "O0-O3", "aarch64-x86_64"]
    assert pools.lanes_of([]) == []


@given(st.integers(1, 60), st.integers(1, 60))
def test_pools_ask_each_function_once_among_the_right_number(num_pairs: int, size: int) -> None:
    size = min(size, num_pairs)
    asked: list[int] = []
    for queries, pool in pools.pools(num_pairs, size):
        members = range(num_pairs)[pool]
        assert len(members) == size
        assert set(range(num_pairs)[queries]) <= set(members)
        asked += range(num_pairs)[queries]
    assert asked == list(range(num_pairs))


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=5))
def test_ranks_are_those_of_a_sorted_list_with_ties_shared(table: list[list[int]]) -> None:
    similarity = np.array(table, dtype=np.float64)
    answers = np.arange(len(table))
    for query, (row, rank) in enumerate(zip(table, pools.expected_ranks(similarity, answers), strict=True)):
        places = [place for place, value in enumerate(sorted(row, reverse=True), 1) if value == row[query]]
        assert rank == np.mean(places)


def test_a_model_that_says_the_same_of_all_scores_nothing() -> None:
    ranks = pools.rank_lane(lambda q, p: np.ones((q.stop - q.start, p.stop - p.start)), 100, 50)
    assert pools.recall_at_1(ranks) == 0
    assert pools.mrr_at_10(ranks) == 0


def test_figures_of_known_ranks() -> None:
    ranks = np.array([1, 1.5, 2, 10, 11])
    assert pools.recall_at_1(ranks) == pytest.approx(0.2)
    assert pools.mrr_at_10(ranks) == pytest.approx((1 + 1 / 1.5 + 0.5 + 0.1) / 5)
    rng = np.random.default_rng(0)
    found = pools.rank_lane(lambda q, p: rng.random((q.stop - q.start, p.stop - p.start)), 4000, 20)
    recall, mrr = pools.chance(20)
    assert pools.recall_at_1(found) == pytest.approx(recall, abs=0.015)
    assert pools.mrr_at_10(found) == pytest.approx(mrr, abs=0.02)


def test_baselines_see_what_they_are_named_after() -> None:
    view = "movl $-22, %eax\ncmpb $3, 16(%rdi)\njne L0\nL0:\nret\n"
    assert baselines.opcodes(view) == ["movl", "cmpb", "jne", "ret"]
    assert baselines.constants(view) == ["-22", "3", "16"]
    other_constants = "movl $7, %ebx\ncmpb $9, (%rax)\njne L0\nL0:\nret\n"
    other_opcodes = "addq $-22, %rdx\nsubq $3, 16(%rcx)\nleave\nhlt\n"
    views = [view, other_constants, other_opcodes]
    for name, (same, different) in {
        "opcode_histogram": (1, 2), "opcode_tfidf": (1, 2), "constants_tfidf": (2, 1),
    }.items():  # fmt: skip
        features = baselines.BASELINES[name](views)
        cosines = (features @ features[0].T).toarray().ravel()
        assert cosines[same] == pytest.approx(1)
        assert cosines[different] < 0.1
    nothing = baselines.constants_tfidf(["ret\n", "nop\n"])
    assert nothing.shape[0] == 2
    assert nothing.nnz == 0


def test_evaluation_writes_rows_figure_and_counts(exported: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    rows = retrieval.run(exported / "embedding", tiny_corpus, tmp_path)
    assert json.loads((tmp_path / "retrieval.json").read_bytes()) == rows
    assert (tmp_path / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    expected = {"random", "opcode_histogram", "opcode_tfidf", "constants_tfidf", "untrained", "trained"}
    lanes = {(row["task"], row["isa"]) for row in rows}
    assert len(rows) == len(lanes) * len(expected)
    assert {row["model"] for row in rows} == expected
    for row in rows:
        assert 0 <= row["recall_at_1"] <= row["mrr_at_10"] <= 1
        assert row["pool"] == row["num_queries"] > 1  # fewer than 100 functions: one pool of all
        kept = row["num_functions"] - row["num_short"] - row["num_identical"] - row["num_duplicate"]
        assert kept - row["num_over_limit"] == row["num_queries"]
    # The template's functions differ in their constants alone, so this baseline must find nearly all.
    constants = [row["recall_at_1"] for row in rows if row["model"] == "constants_tfidf"]
    assert min(constants) > 0.8


def test_evaluating_twice_gives_equal_rows(exported: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    first = retrieval.run(exported / "embedding", tiny_corpus, tmp_path / "first")
    second = retrieval.run(exported / "embedding", tiny_corpus, tmp_path / "second")
    assert first == second
    assert (tmp_path / "first" / "retrieval.png").read_bytes() == (
        tmp_path / "second" / "retrieval.png"
    ).read_bytes()


def test_a_perfect_model_finds_everything(tiny_corpus: Path) -> None:
    tasks, texts = retrieval.prepare(tiny_corpus, split="test", seed=0)
    for task in tasks:
        vectors = {}
        for pair, unit in zip(task.pairs, np.eye(len(task.pairs), dtype=np.float32), strict=True):
            vectors[pair.query_body] = vectors[pair.answer_body] = unit
        rows = retrieval.evaluate(task, texts, {"perfect": vectors})
        assert all(row["recall_at_1"] == row["mrr_at_10"] == 1 for row in rows if row["model"] == "perfect")
        swapped = replace(task, pairs=task.pairs[::-1])
        again = retrieval.evaluate(swapped, texts, {"perfect": vectors})
        assert [row["mrr_at_10"] for row in again] == pytest.approx([row["mrr_at_10"] for row in rows])


def test_what_cannot_be_evaluated_is_one_clear_line(
    exported: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="not an embedding model"):
        retrieval.run(exported / "merged", tiny_corpus, tmp_path)
    with pytest.raises(ShardError, match="holds no corpus"):
        retrieval.run(exported / "embedding", tmp_path, tmp_path)
    monkeypatch.setattr(retrieval, "MIN_INSTRUCTIONS", 10_000)
    with pytest.raises(EmptyCorpus, match="no two functions of 10000 instructions"):
        retrieval.run(exported / "embedding", tiny_corpus, tmp_path)


def test_perplexity_of_an_untrained_model_is_near_its_vocabulary(
    exported: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = completion.run(exported / "merged", tiny_corpus, tmp_path)
    assert json.loads((tmp_path / "completion.json").read_bytes()) == rows
    assert {row["level"] for row in rows} == {"o0", "o1", "o2", "o3", "os"}
    for row in rows:
        assert row["perplexity"] == pytest.approx(1024, rel=0.3)
        assert 0 < row["zstd_bits_per_byte"] < 8
    monkeypatch.setattr(completion, "TOKENS_PER_BATCH", 1)  # one document at a time: no padding at all
    for row, alone in zip(rows, completion.run(exported / "merged", tiny_corpus, tmp_path), strict=True):
        assert alone["num_tokens"] == row["num_tokens"]
        assert alone["perplexity"] == pytest.approx(row["perplexity"], rel=1e-5)
