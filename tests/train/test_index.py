"""Index and search: neighbours with their origins, one model an index, whole at any moment."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmtrain import cli, export, index, search, store
from asmtrain.encoder import embed_texts, load_encoder
from asmtrain.errors import BinaryError, VectorIndexError
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import load_index, read_split
from functions import variant_of
from runs import make_run

DATA = "data-0"


@pytest.fixture(scope="module")
def built(model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    assert index.run_build([tiny_corpus], folder, model=model, variants=["*.o2", "*.o3"]) == 0
    return folder


@pytest.fixture
def opened(built: Path) -> Iterator[store.VectorIndex]:
    with contextlib.closing(store.load(built)) as found:
        yield found


@pytest.fixture
def query(tiny_corpus: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A function of the corpus as a file of its own, and its record."""
    record = next(read_split(tiny_corpus, "test"))
    path = tmp_path / "query.s"
    path.write_text(record.assembly[variant_of(record)])
    return path, record


def text_file(records: list[Any], path: Path) -> Path:
    path.write_text("".join(record.assembly[variant_of(record)] for record in records))
    return path


def records_of(corpus: Path, count: int) -> list[Any]:
    return [record for record, _ in zip(read_split(corpus, "test"), range(count), strict=False)]


def queries(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out)["queries"]


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    (only,) = queries(capsys)
    return only["neighbours"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 300), st.integers(0, 99))
def test_nearest_is_the_top_of_a_full_sort(num: int, top: int, num_queries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (num, 4)).astype(np.float32)  # small integers: plenty of ties
    asked = rng.integers(-2, 3, (num_queries, 4)).astype(np.float32)
    found = search.nearest(vectors, asked, top, rows_per_block=7)
    for query, hits in zip(asked, found, strict=True):
        expected = sorted(range(num), key=lambda at: (-float(vectors[at] @ query), at))[:top]
        assert [row for row, _ in hits] == expected
        assert [cosine for _, cosine in hits] == [float(vectors[at] @ query) for at in expected]
    some = np.flatnonzero(rng.integers(0, 2, num))
    for query, hits in zip(
        asked, search.nearest(vectors, asked, top, rows=some, rows_per_block=7), strict=True
    ):
        expected = sorted(some.tolist(), key=lambda at: (-float(vectors[at] @ query), at))[:top]
        assert [row for row, _ in hits] == expected


def test_a_function_finds_itself_first(
    built: Path, query: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = query
    assert search.run_search(built, [path], as_json=True) == 0
    found = answers(capsys)
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    similarities = [row["similarity"] for row in found]
    assert similarities == sorted(similarities, reverse=True)
    best = [row for row in found if row["similarity"] > 1 - 1e-6]
    assert (record.meta.name, record.meta.file, record.meta.project) in {
        (row["name"], row["file"], row["project"]) for row in best
    }
    assert all(row["variant"].endswith((".o2", ".o3")) for row in found)
    search.run_search(built, [path], top=2)
    printed = capsys.readouterr().out
    assert record.meta.name in printed
    assert "similarity" in printed


def test_an_object_file_gets_the_answer_of_its_text(
    built: Path, query: tuple[Path, Any], capsys: pytest.CaptureFixture[str], need: Any
) -> None:
    path, record = query
    assembler = {"aarch64": "aarch64-linux-gnu-as", "x86_64": "as"}[variant_of(record).partition(".")[0]]
    need(assembler)
    subprocess.run([assembler, path, "-o", path.with_suffix(".o")], check=True)
    search.run_search(built, [path], as_json=True)
    from_text = answers(capsys)
    search.run_search(built, [path.with_suffix(".o")], as_json=True)
    assert answers(capsys) == from_text


def test_every_function_of_every_file_is_searched_for(
    built: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = records_of(tiny_corpus, 5)
    files = [text_file(records[:3], tmp_path / "a.s"), text_file(records[3:], tmp_path / "b.s")]
    search.run_search(built, files, as_json=True)
    found = queries(capsys)
    assert [(item["file"], item["name"]) for item in found] == [
        *((str(files[0]), record.meta.name) for record in records[:3]),
        *((str(files[1]), record.meta.name) for record in records[3:]),
    ]
    for item in found:
        assert item["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_searched_for(
    built: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.o"
    bad.write_bytes(b"\x7fELF\2\1\1" + bytes(3))
    assert search.run_search(built, [bad, query[0]], as_json=True) == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)["queries"]) == 1
    assert said.err.count("error: ") == 1
    assert "bad.o" in said.err
    with pytest.raises(BinaryError, match=r"bad\.o"):
        search.run_search(built, [bad])


def test_the_graph_finds_what_exact_search_finds(opened: store.VectorIndex) -> None:
    rng = np.random.default_rng(0)
    queries_QD = opened.vectors_MD[rng.integers(0, len(opened.vectors_MD), 100)]
    queries_QD = queries_QD + rng.normal(size=queries_QD.shape).astype(np.float32) * 0.05
    queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
    by_graph = search.search(opened, queries_QD, top=10)
    exactly = search.search(opened, queries_QD, top=10, exact=True)
    same = [
        len({near.number for near in one} & {near.number for near in other}) / 10
        for one, other in zip(by_graph, exactly, strict=True)
    ]
    assert np.mean(same) > 0.98
    for one, other in zip(by_graph, exactly, strict=True):
        exact = {near.number: near.similarity for near in other}
        found = {near.number: near.similarity for near in one if near.number in exact}
        assert found == pytest.approx({number: exact[number] for number in found}, abs=1e-6)


def test_more_are_asked_for_than_there_are(model: Path, query: tuple[Path, Any], tmp_path: Path) -> None:
    index.run_build([query[0]], tmp_path / "own", model=model)
    with contextlib.closing(store.load(tmp_path / "own")) as own:
        for exact in (False, True):
            (found,) = search.search(own, own.vectors_MD[:1], top=50, exact=exact)
            assert [near.number for near in found] == [1]


def test_neighbours_of_one_isa_and_project(opened: store.VectorIndex) -> None:
    queries_QD = np.array(opened.vectors_MD[:3])
    isas = opened.counts("isa")
    assert len(isas) > 1
    for isa in isas:
        for hits in search.search(opened, queries_QD, top=4, isa=isa, project="valid"):
            assert len(hits) == 4
            assert {(near.entry.isa, near.entry.project) for near in hits} == {(isa, "valid")}
    assert search.search(opened, queries_QD, top=4, project="none of them") == [[], [], []]


def test_equal_bodies_are_embedded_once_and_all_are_found(
    model: Path, query: tuple[Path, Any], tmp_path: Path
) -> None:
    path, record = query
    twin = tmp_path / "twin.s"
    twin.write_text(path.read_text().replace(record.meta.name, "a_twin"))
    index.run_build([path, twin], tmp_path / "own", model=model)
    with contextlib.closing(store.load(tmp_path / "own")) as own:
        assert (own.meta.num_functions, own.meta.num_bodies, len(own.vectors_MD)) == (2, 1, 1)
        (found,) = search.search(own, own.vectors_MD, top=5)
    assert [near.entry.name for near in found] == [record.meta.name, "a_twin"]


def test_vectors_and_texts_belong_to_their_functions(
    opened: store.VectorIndex, tiny_corpus: Path, model: Path
) -> None:
    by_key = {record.key: record for split in ("train", "test") for record in read_split(tiny_corpus, split)}
    encoder = load_encoder(model)
    checked = 0
    for number in range(1, opened.meta.num_functions + 1, 37):
        entry, texts = opened.function(number)
        if record := by_key.get(entry.key):
            assert texts.source == record.source
            assert texts.assembly == view(record.assembly[entry.variant], Variant.parse(entry.variant).isa)
            (found,) = search.search(opened, embed_texts(encoder, [texts.assembly]), top=20)
            assert number in {near.number for near in found if near.similarity > 1 - 1e-5}
            checked += 1
    assert checked > 5
    assert opened.function(0) is None


def test_a_function_is_chosen_by_its_name(
    built: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = records_of(tiny_corpus, 3)
    path = text_file(records, tmp_path / "several.s")
    name = records[1].meta.name
    with pytest.raises(BinaryError) as raised:
        search.run_search(built, [path], function=name + "x")
    assert raised.value.remedy == f"did you mean {name}?"
    search.run_search(built, [path], function=name, as_json=True)
    assert name in {row["name"] for row in answers(capsys)}


def test_names_cannot_give_the_terminal_orders(
    model: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "\x1b[2J[red]x.s"
    hostile.write_text(query[0].read_text())
    index.run_build([hostile], tmp_path / "own", model=model)
    search.run_search(tmp_path / "own", [hostile])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.replace("\n", "").count("[red]x.s") == 2  # of the query, and of the neighbour


# Adding.


def test_what_is_added_is_found_and_what_was_there_stays(
    model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = records_of(tiny_corpus, 6)
    first, second = text_file(records[:3], tmp_path / "1.s"), text_file(records[2:], tmp_path / "2.s")
    grown, at_once = tmp_path / "grown", tmp_path / "at_once"
    index.run_build([first], grown, model=model)
    index.run_add(grown, [second])
    index.run_build([first, second], at_once, model=model)
    with contextlib.closing(store.load(grown)) as one, contextlib.closing(store.load(at_once)) as other:
        np.testing.assert_allclose(one.vectors_MD, other.vectors_MD, atol=1e-6)
        assert (one.meta.num_functions, one.meta.num_bodies) == (7, 6)
        for number in range(1, 8):
            assert one.function(number) == other.function(number)
        by_graph = search.search(one, np.array(one.vectors_MD), top=1)
    assert all(hits[0].similarity == pytest.approx(1, abs=1e-5) for hits in by_graph)
    capsys.readouterr()
    index.run_add(grown, [second])
    assert "0 functions added, 4 were there already" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in grown.glob("data-*")] == ["data-2"]


def test_another_models_vectors_are_refused(
    built: Path, query: tuple[Path, Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = make_run(tmp_path, tiny_tokenizer, scale=0.2)
    export.run(other)
    before = (built / "index.json").read_bytes()
    for use in (
        lambda model: search.run_search(built, [query[0]], model=model),
        lambda model: index.run_add(built, [query[0]], model=model),
    ):
        with pytest.raises(VectorIndexError, match="vectors of different models cannot be compared"):
            use(other / "export" / "embedding")
    assert (built / "index.json").read_bytes() == before


def test_a_model_that_moved_is_found_where_one_says(
    model: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.symlink_to(model)
    index.run_build([query[0]], tmp_path / "index", model=model)
    meta = json.loads((tmp_path / "index" / "index.json").read_bytes())
    (tmp_path / "index" / "index.json").write_text(json.dumps(meta | {"model": str(there)}))
    with pytest.raises(VectorIndexError, match="is gone") as raised:
        search.run_search(tmp_path / "index", [query[0]])
    assert "--model" in raised.value.remedy
    capsys.readouterr()
    search.run_search(tmp_path / "index", [query[0]], model=here, as_json=True)
    assert len(answers(capsys)) == 1


def test_killed_at_any_moment_it_is_the_old_index_or_the_new(
    model: Path, tiny_corpus: Path, query: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    index.run_build([query[0]], folder, model=model)
    chance = random.Random(0)
    for variants in ("*.o0", "*.o1", "*.o2", "*.o3", "*.os"):
        before = store.read_meta(folder)
        adding = subprocess.Popen(
            [sys.executable, "-c", _ADD, str(folder), str(tiny_corpus), variants, str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        adding.stdout.read(1)  # it begins
        time.sleep(chance.random())
        os.kill(adding.pid, signal.SIGKILL)
        adding.communicate()
        with contextlib.closing(store.load(folder)) as opened:
            assert opened.meta == before or opened.meta.num_functions > before.num_functions
            assert sum(opened.counts("isa").values()) == opened.meta.num_functions
            for hits in search.search(opened, np.array(opened.vectors_MD[[0, -1]]), top=1):
                assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    index.run_add(folder, [tiny_corpus], variants=["*"])
    assert len(list(folder.glob("data-*"))) == 1
    in_corpus = sum(shard.num_variants for shard in load_index(tiny_corpus).shards)
    assert store.read_meta(folder).num_functions == 1 + in_corpus


_ADD = """
import sys
from pathlib import Path
from asmtrain import index
from asmtrain.encoder import load_encoder
folder, corpus, variants, model = sys.argv[1:]
load_encoder(Path(model))
print("x", flush=True)
index.run_add(Path(folder), [Path(corpus)], variants=[variants])
"""


def test_two_writers_do_not_meet(built: Path, query: tuple[Path, Any]) -> None:
    with index._locked(built), pytest.raises(VectorIndexError, match="another process is writing"):
        index.run_add(built, [query[0]])


# What is wrong with an index, and what it says of itself.


def test_damaged_indexes_are_told_in_one_line(model: Path, query: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(VectorIndexError, match=r"index\.json is missing"):
        store.load(folder)
    index.run_build([query[0]], folder, model=model)
    for name in (store.VECTORS, store.GRAPH, store.FUNCTIONS):
        whole = (folder / DATA / name).read_bytes()
        (folder / DATA / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(VectorIndexError, match=f"damaged: {name} has"):
            store.load(folder)
        (folder / DATA / name).unlink()
        with pytest.raises(VectorIndexError, match=f"{name} is missing"):
            store.load(folder)
        (folder / DATA / name).write_bytes(bytes(len(whole)))
        with pytest.raises(VectorIndexError, match="damaged"), contextlib.closing(store.load(folder)) as it:
            it.counts("isa")
        (folder / DATA / name).write_bytes(whole)
    meta = json.loads((folder / "index.json").read_bytes())
    for wrong in ({"data": "../elsewhere"}, {"schema_version": 1}, {"num_bodies": 7}):
        (folder / "index.json").write_text(json.dumps(meta | wrong))
        with pytest.raises(VectorIndexError, match="damaged"):
            store.load(folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(VectorIndexError, match="damaged") as raised:
        store.load(folder)
    assert "\n" not in raised.value.message


def test_variants_that_no_function_has_are_told(model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpus, match=r"no function matches mips\.\*"):
        index.run_build([tiny_corpus], tmp_path / "index", model=model, variants=["mips.*"])
    assert not (tmp_path / "index" / "index.json").exists()
    assert not list((tmp_path / "index").glob("data-*"))


def test_a_build_that_fails_leaves_the_index_that_was_there(
    model: Path, tiny_corpus: Path, query: tuple[Path, Any], tmp_path: Path
) -> None:
    index.run_build([query[0]], tmp_path / "index", model=model)
    with pytest.raises(EmptyCorpus):
        index.run_build([tiny_corpus], tmp_path / "index", model=model, variants=["mips.*"])
    with contextlib.closing(store.load(tmp_path / "index")) as opened:
        assert opened.meta.num_functions == 1


def test_the_commands_work_together(
    model: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = str(tmp_path / "index"), str(query[0])
    bad = tmp_path / "bad.s"
    bad.write_text("nothing to see")
    assert cli.main(["index", "build", path, str(bad), "--output", folder, "--model", str(model)]) == 2
    assert "bad.s" in capsys.readouterr().err
    assert cli.main(["index", "add", folder, path]) == 0
    capsys.readouterr()
    assert cli.main(["index", "info", folder, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["functions"], said["distinct_bodies"], said["projects"]) == (1, 1, {"(files)": 1})
    assert said["model_sha256"] == load_encoder(model).sha256
    assert cli.main(["index", "info", folder]) == 0
    assert said["model"] in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["index", "search", folder, path, "--exact", "--top", "3", "--json"]) == 0
    assert answers(capsys)[0]["key"] == said_sha256(query[0])
    assert cli.main(["index", "search", folder, str(bad)]) == 2
    assert cli.main(["index", "info", str(tmp_path)]) == 2


def said_sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
