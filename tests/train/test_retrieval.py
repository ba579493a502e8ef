"""The retrieval protocol against naive versions, and the evaluation of a real export."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmtrain.cli import main
from asmtrain.errors import ConfigError, ModelError
from asmtrain.tasks import baselines, completion, pools, retrieval, scores
from asmtrain.tasks.lanes import Lane, lanes_of
from asmtrain.tasks.pools import Body, Function
from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.record import Variant

LANE = Lane("XO O0O3", "aarch64", ("aarch64.gcc.o0",), ("aarch64.gcc.o3",))
TOOLCHAINS = [".".join(pair) for pair in product(("aarch64", "riscv64", "x86_64"), ("gcc12", "clang19"))]
VARIANTS = [f"{toolchain}.{level}" for toolchain in TOOLCHAINS for level in ("o0", "o1", "o2", "o3", "os")]
SOME_LANES = ("XO O0O3 *", "XC O2 *", "XA O2 *", "XM *")


@pytest.fixture(scope="module")
def exported(exported_run: Path) -> Path:
    return exported_run / "export"


def make(
    name: str,
    bodies: tuple[str, str] | None = None,
    sizes: tuple[int, int] = (20, 20),
    *,
    source: str = "",
    key: str = "",
    levels: tuple[str, ...] = ("o0", "o3"),
) -> Function:
    texts = bodies or (f"{name} o0", f"{name} o3")
    sides = zip(levels, texts, sizes, strict=False)
    variants = {f"aarch64.gcc.{level}": Body(text, size) for level, text, size in sides}
    return Function(key or name, "project", name, "unit.c", source or name, variants)


def eligible(functions: list[Function], lane: Lane = LANE, seed: int = 0) -> tuple[Any, Any]:
    return pools.eligible(functions, lane, min_instructions=10, seed=seed)


def test_pairs_that_cannot_be_told_apart_are_left_out_and_counted() -> None:
    functions = [make(name) for name in "ab"]
    functions.append(make("short", sizes=(20, 9)))
    functions.append(make("same", bodies=("x", "x")))
    functions.append(make("half", levels=("o0",)))
    pairs, census = eligible(functions)
    assert {pair.key for pair in pairs} == {"a", "b"}
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
def test_no_pool_holds_two_right_answers(twin: dict[str, Any]) -> None:
    pairs, census = eligible([make("a", key="1"), make("b", key="2", **twin), make("c", key="3")])
    assert census.num_duplicate == 1
    assert len(pairs) == 2


def test_a_second_definition_in_the_same_file_is_no_negative() -> None:
    pairs, census = eligible([make("a"), make("a", ("p", "q"), source="s", key="2")])
    assert (len(pairs), census.num_duplicate) == (1, 1)


def test_order_and_draw_depend_on_seed_and_keys_alone() -> None:
    functions = [some_function(str(at), VARIANTS) for at in range(200)]
    lane = next(lane for lane in lanes_of(VARIANTS) if lane.task == "XM")
    forwards, _ = eligible(functions, lane, seed=3)
    backwards, _ = eligible(functions[::-1], lane, seed=3)
    other, _ = eligible(functions, lane, seed=4)
    assert forwards == backwards
    assert [pair.key for pair in forwards] != [pair.key for pair in other]
    drawn = [{(pair.query, pair.answer) for pair in pairs} for pairs in (forwards, other)]
    assert all(len(pairs) > 150 for pairs in drawn)  # of 870 that the lane allows
    assert drawn[0] != drawn[1]


def some_function(key: str, variants: list[str]) -> Function:
    return Function(key, "p", key, "f.c", key, {name: Body(f"{key} {name}", 20) for name in variants})


def test_lanes_are_those_of_the_protocol() -> None:
    lanes = lanes_of(VARIANTS)
    names = [lane.name for lane in lanes]
    crossed = ("O0O3", "O1O3", "O2O3", "O0Os", "O1Os", "O2Os", "mixed")
    assert [name for name in names if name.startswith("XO") and "riscv64" in name] == [
        f"XO {levels} riscv64" for levels in crossed
    ]
    assert [name for name in names if name.startswith("XC") and "x86_64" in name] == [
        f"XC {level} x86_64" for level in ("O0", "O1", "O2", "O3", "Os")
    ]
    isas = {lane.isa for lane in lanes if lane.task == "XA O2"}
    assert isas == {"aarch64-riscv64", "aarch64-x86_64", "riscv64-x86_64"}
    assert {lane.isa for lane in lanes if lane.task == "XA+XO"} == isas
    assert (lanes[-1].task, lanes[-1].queries, lanes[-1].answers) == (
        "XM",
        lanes[-1].answers,
        tuple(sorted(VARIANTS)),
    )
    assert len(names) == len(set(names)) == 3 * 7 + 3 * 5 + 3 * 5 + 3 + 1


def test_lanes_that_a_corpus_does_not_allow_are_left_out() -> None:
    at_o2 = lanes_of(name for name in VARIANTS if name.endswith("o2"))
    assert {lane.task for lane in at_o2} == {"XC O2", "XA O2", "XM"}
    zig = lanes_of(name.replace("gcc12", "zig20") for name in VARIANTS if "gcc" in name)
    assert not any(lane.task.startswith("XC") for lane in zig)
    assert any(lane.task == "XO O0O3" for lane in zig)
    assert lanes_of(["aarch64.gcc12.o0"]) == lanes_of([]) == []


def test_flag_sets_are_a_diagnosis_and_mix_with_nothing() -> None:
    lanes = lanes_of([*VARIANTS, "aarch64.gcc12.o2-no-inline", "aarch64.gcc12.o3-no-inline"])
    using = [lane for lane in lanes if any("-" in name for name in lane.queries + lane.answers)]
    assert [(lane.name, lane.queries, lane.answers) for lane in using] == [
        (f"XO O0O{at}-no-inline aarch64", ("aarch64.gcc12.o0",), (f"aarch64.gcc12.o{at}-no-inline",))
        for at in (2, 3)
    ]


RELATIONS: dict[str, Callable[[Variant, Variant], bool]] = {
    "XO": lambda q, a: q[:2] == a[:2] and q.level != a.level,
    "XC": lambda q, a: (q.isa, q.level) == (a.isa, a.level) and q.compiler[:3] == "gcc" != a.compiler[:3],
    "XA": lambda q, a: q.isa != a.isa and q[1:] == a[1:],
    "XA+XO": lambda q, a: q.isa != a.isa and q.level != a.level and q.compiler == a.compiler,
}


def test_negatives_obey_the_positives_constraint() -> None:
    """Of every two functions in a lane, not of the two variants of one alone."""
    rng = random.Random(0)
    functions = [some_function(str(at), rng.sample(VARIANTS, 20)) for at in range(60)]
    for lane in lanes_of(VARIANTS):
        pairs, _ = eligible(functions, lane)
        assert all(pair.query != pair.answer for pair in pairs)
        relation = RELATIONS.get(lane.task.split()[0])
        if relation and lane.task != "XO mixed":
            assert len(pairs) > 3
            assert all(
                relation(Variant.parse(one.query), Variant.parse(other.answer))
                for one, other in product(pairs, pairs)
            )
    mixed, _ = eligible(
        functions, next(lane for lane in lanes_of(VARIANTS) if lane.name == "XO mixed x86_64")
    )
    assert {pair.query.rpartition(".")[0] for pair in mixed} == {"x86_64.gcc12"}
    assert len({(pair.query, pair.answer) for pair in mixed}) > 10


@given(st.integers(1, 60), st.integers(1, 60))
def test_pools_ask_each_function_once_among_the_right_number(num_queries: int, size: int) -> None:
    num_pairs = max(num_queries, size)
    asked: list[int] = []
    for queries, pool in pools.pools(num_queries, size):
        members = range(num_pairs)[pool]
        assert len(members) == size
        assert set(range(num_pairs)[queries]) <= set(members)
        asked += range(num_pairs)[queries]
    assert asked == list(range(num_queries))


def test_pool_sizes_are_those_that_fit() -> None:
    wanted = (32, 128, 1000, 10_000)
    assert pools.pool_sizes(20, wanted) == [20]
    assert pools.pool_sizes(700, wanted) == [32, 128, 700]
    assert pools.pool_sizes(1400, wanted) == [32, 128, 1000]
    assert pools.pool_sizes(12_000, wanted) == [32, 128, 1000, 10_000]


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=5))
def test_ranks_are_those_of_a_sorted_list_with_ties_shared(table: list[list[int]]) -> None:
    similarity = np.array(table, dtype=np.float64)
    answers = np.arange(len(table))
    for query, (row, rank) in enumerate(zip(table, pools.expected_ranks(similarity, answers), strict=True)):
        places = [place for place, value in enumerate(sorted(row, reverse=True), 1) if value == row[query]]
        assert rank == np.mean(places)


def test_a_model_that_says_the_same_of_all_scores_nothing() -> None:
    ranks = pools.rank_lane(lambda q, p: np.ones((q.stop - q.start, p.stop - p.start)), 100, 50)
    assert scores.recall_at(ranks, 1) == 0
    assert scores.mrr_at_10(ranks) == 0


def test_figures_of_known_ranks() -> None:
    ranks = np.array([1, 1.5, 2, 10, 11])
    figures = scores.scores(ranks, np.array([0, 0, 0, 1, 1]), seed=0)
    assert figures["recall_at_1"] == pytest.approx(0.2)
    assert figures["recall_at_10"] == pytest.approx(0.8)
    assert figures["mrr_at_10"] == pytest.approx((1 + 1 / 1.5 + 0.5 + 0.1) / 5)
    assert figures["macro_recall_at_1"] == pytest.approx(1 / 6)
    assert (figures["num_queries"], figures["num_projects"]) == (5, 2)


def test_a_random_order_scores_what_chance_says() -> None:
    rng = np.random.default_rng(0)
    found = pools.rank_lane(lambda q, p: rng.random((q.stop - q.start, p.stop - p.start)), 4000, 20)
    expected = scores.chance(20, np.zeros(4000))
    figures = scores.scores(found, np.zeros(4000, np.intp), seed=0)
    for name in ("recall_at_1", "recall_at_10", "mrr_at_10"):
        assert figures[name] == pytest.approx(expected[name], abs=0.02)


def test_the_interval_is_that_of_projects_drawn_one_by_one() -> None:
    rng = random.Random(1)
    counts = np.array([float(rng.randint(5, 200)) for _ in range(20)])
    hits = np.array([float(rng.randint(0, int(count))) for count in counts])
    shares = []
    for _ in range(4000):
        drawn = rng.choices(range(20), k=20)
        shares.append(sum(hits[at] for at in drawn) / sum(counts[at] for at in drawn))
    assert scores.bootstrap(hits, counts, seed=0) == pytest.approx(
        np.quantile(shares, (0.025, 0.975)), abs=0.03
    )
    assert scores.bootstrap(hits, counts, seed=0) == scores.bootstrap(hits, counts, seed=0)
    share = hits[0] / counts[0]
    assert scores.bootstrap(hits[:1], counts[:1], seed=0) == [share, share]  # one project: no other to draw


def test_buckets_are_by_blocks_of_the_query() -> None:
    blocks = np.array([1, 4, 5, 19, 20, 100, 101])
    assert {name: blocks[mask].tolist() for name, mask in retrieval.buckets(blocks).items()} == {
        "all": [1, 4, 5, 19, 20, 100, 101],
        "<20": [1, 4, 5, 19],
        "20-100": [20, 100],
        ">100": [101],
        ">=5": [5, 19, 20, 100, 101],
    }


def test_evaluation_writes_rows_figures_pools_and_counts(
    exported: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = retrieval.run(
        [str(exported / "embedding")], tiny_corpus, tmp_path, lanes=SOME_LANES, with_bag=False
    )
    result = json.loads((tmp_path / "retrieval.json").read_bytes())
    assert result["rows"] == rows
    for picture in ("retrieval", "retrieval-pools"):
        assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    models = {"random", *baselines.NEEDS, "untrained", "trained"}
    assert {row["model"] for row in rows} == models
    assert {row["model"] for row in result["models"]} == models - {"random"}
    assert all(row["functions_per_s"] > 0 < row["bytes_per_vector"] for row in result["models"])
    for row in rows:
        assert row["view"] == "default"
        low, high = row["ci95"]
        assert 0 <= low <= row["recall_at_1"] <= high <= 1
        assert row["recall_at_1"] <= row["mrr_at_10"] <= row["recall_at_10"]
        assert row["macro_recall_at_1"] == pytest.approx(row["recall_at_1"])  # one project
        assert row["bucket"] != "all" or row["pool"] == row["num_queries"] > 1
    for lane in result["lanes"]:
        left_out = sum(lane[f"num_{why}"] for why in ("short", "identical", "duplicate", "over_limit"))
        assert lane["num_functions"] - left_out == lane["num_pairs"] == lane["num_queries"]
    members = [json.loads(line) for line in (tmp_path / "pools.jsonl").read_text().splitlines()]
    assert len(members) == sum(lane["num_pairs"] for lane in result["lanes"])
    # The template's functions differ in their constants alone, so this baseline must find nearly all.
    constants = [row for row in rows if (row["model"], row["bucket"]) == ("constants_tfidf", "all")]
    assert min(row["recall_at_1"] for row in constants if row["task"] != "XM") > 0.8
    said = capsys.readouterr().out
    assert "XO O0O3 " in said
    assert "functions/s" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) < 130


def test_evaluating_twice_gives_equal_rows(exported: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        retrieval.run([str(exported / "embedding")], tiny_corpus, folder, lanes=["XO *"], with_bag=False)
        result = json.loads((folder / "retrieval.json").read_bytes())
        files = ("pools.jsonl", "retrieval.png", "retrieval-pools.png", "retrieval-maps.png")
        found.append((result["rows"], result["settings"], [(folder / file).read_bytes() for file in files]))
    assert found[0] == found[1]


def test_a_perfect_model_finds_everything(tiny_corpus: Path) -> None:
    tasks, texts = retrieval.prepare(tiny_corpus, split="test", seed=0)
    table = baselines.text_table(texts)
    for task in tasks:
        vectors = {}
        for pair, unit in zip(task.pairs, np.eye(len(task.pairs), dtype=np.float32), strict=True):
            vectors[pair.query_body] = vectors[pair.answer_body] = unit
        rows = retrieval.evaluate(task, table, {"perfect": vectors}, seed=0)
        assert all(row["recall_at_1"] == row["mrr_at_10"] == 1 for row in rows if row["model"] == "perfect")
        swapped = replace(task, pairs=task.pairs[::-1])
        again = retrieval.evaluate(swapped, table, {"perfect": vectors}, seed=0)
        assert [row["mrr_at_10"] for row in again] == pytest.approx([row["mrr_at_10"] for row in rows])


def test_a_pool_larger_than_the_queries_holds_further_functions(
    tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "MAX_QUERIES", 3)
    monkeypatch.setattr(retrieval, "POOLS", (2, 6))
    [task], texts = retrieval.prepare(tiny_corpus, split="test", seed=0, lanes=["XC O2 aarch64"])
    assert (task.num_queries, len(task.pairs)) == (3, max(6, len(task.pairs)))
    asked = {pair.query_body for pair in task.pairs[:3]}
    assert set(texts) == asked | {pair.answer_body for pair in task.pairs}
    vectors = dict.fromkeys(texts, np.ones(1, np.float32))
    rows = retrieval.evaluate(task, baselines.text_table(texts), {"same": vectors}, seed=0)
    assert {row["num_queries"] for row in rows if row["bucket"] == "all"} == {3}
    same = {
        row["pool"]: row["recall_at_10"] for row in rows if row["model"] == "same" and row["bucket"] == "all"
    }
    assert same[6] == 1  # all tied: rank 3.5 of 6


def test_masked_and_import_views_are_judged_beside_the_default(
    exported: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    arguments = ("--model", exported / "embedding", "--corpus", tiny_corpus, "--output", tmp_path)
    options = ("--views", "default", "masked", "imports", "--lanes", "XC O2 *", "--no-bag")
    assert main(["eval", "retrieval", *map(str, arguments), *options]) == 0
    result = json.loads((tmp_path / "retrieval.json").read_bytes())
    assert {row["view"] for row in result["rows"]} == {"default", "masked", "imports"}
    masked = [row for row in result["rows"] if row["view"] == "masked" and row["model"] == "constants_tfidf"]
    assert all(row["recall_at_1"] == 0 for row in masked)
    # Functions of one template differ in constants alone: masked, one of each kind is left in a pool.
    pairs = {lane["view"]: lane["num_pairs"] for lane in result["lanes"] if lane["isa"] == "aarch64"}
    assert pairs["masked"] < pairs["default"] == pairs["imports"]


def test_several_models_and_other_libraries_folders_stand_side_by_side(
    exported: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(exported / "embedding", tmp_path / "other")
    (other / "provenance.json").unlink()  # any sentence-transformers folder, as far as we can know
    (tmp_path / "lengths_as_model.py").write_text(
        "def embed(texts):\n    return [[len(text), text.count('\\n')] for text in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    ours = exported / "embedding"
    models = [f"ours={ours}", "theirs=other", f"short={ours}@2", "lengths_as_model:embed"]
    rows = retrieval.run(models, tiny_corpus, tmp_path / "eval", lanes=SOME_LANES, with_bag=False)
    figures = {
        name: [row["mrr_at_10"] for row in rows if row["model"] == name]
        for name in ("untrained", "ours", "theirs", "short", "lengths_as_model:embed")
    }
    assert figures["ours"] == pytest.approx(figures["theirs"], abs=1e-6)
    assert len(set(map(tuple, figures.values()))) == 4
    models_told = json.loads((tmp_path / "eval" / "retrieval.json").read_bytes())["models"]
    bytes_of = {row["model"]: row["bytes_per_vector"] for row in models_told if row["model"] in figures}
    assert bytes_of["short"] * 8 == bytes_of["ours"]


def test_an_exported_lane_gives_the_same_figures(exported: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = ("--model", exported / "embedding", "--corpus", tiny_corpus, "--output", tmp_path / "eval")
    options = ("--lanes", "XO O0O3 *", "--no-bag", "--export", str(tmp_path / "lanes"))
    assert main(["eval", "retrieval", *map(str, arguments), *options]) == 0
    rows = json.loads((tmp_path / "eval" / "retrieval.json").read_bytes())["rows"]
    for isa in {row["isa"] for row in rows}:
        folder = tmp_path / "lanes" / f"default-xo-o0o3-{isa}"
        corpus, queries = (
            {item["_id"]: item["text"] for item in map(json.loads, (folder / file).read_text().splitlines())}
            for file in ("corpus.jsonl", "queries.jsonl")
        )
        heading, *lines = (folder / "qrels" / "test.tsv").read_text().splitlines()
        assert heading.split("\t") == ["query-id", "corpus-id", "score"]
        right = {query: document for query, document, _ in (line.split("\t") for line in lines)}
        assert right.keys() == queries.keys()
        assert set(right.values()) == corpus.keys()
        table = baselines.text_table(queries | corpus)
        similarity = baselines.similarities(table, list(queries), list(corpus))["constants_tfidf"]
        block = similarity(slice(0, None), slice(0, None))
        answers = np.array([list(corpus).index(right[query]) for query in queries])
        [row] = [
            row
            for row in rows
            if (row["isa"], row["model"], row["bucket"]) == (isa, "constants_tfidf", "all")
        ]
        assert scores.mrr_at_10(pools.expected_ranks(block, answers)) == pytest.approx(row["mrr_at_10"])


def test_what_cannot_be_evaluated_is_one_clear_line(
    exported: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(exported / "embedding")
    run: Any = lambda models, corpus=tiny_corpus, **options: retrieval.run(  # noqa: E731
        models, corpus, tmp_path, with_bag=False, **options
    )
    with pytest.raises(ModelError, match="not an embedding model"):
        run([str(exported / "merged")])
    with pytest.raises(ModelError, match="no such folder"):
        run([str(tmp_path / "nowhere")])
    with pytest.raises(ModelError, match="nothing_here:embed cannot be imported"):
        run(["nothing_here:embed"])
    with pytest.raises(ModelError, match="two models are called 'a'"):
        run([f"a={model}", f"a={model}"])
    (tmp_path / "flat_model.py").write_text("def embed(texts):\n    return [1.0 for _ in texts]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"gave an array of shape \(\d+,\) for \d+ texts"):
        run(["flat_model:embed"])
    with pytest.raises(ShardError, match="holds no corpus"):
        run([model], tmp_path)
    with pytest.raises(ConfigError, match="no lane is like XY"):
        run([model], lanes=["XY*"])
    monkeypatch.setattr(retrieval, "MIN_INSTRUCTIONS", 10_000)
    with pytest.raises(EmptyCorpus, match="no two functions of 10000 instructions"):
        run([model])


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
