"""Index and search: exact neighbours, one model an index, answers that name project, file and variant."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmtrain import export, index
from asmtrain.errors import BinaryError, VectorIndexError
from corpus_builder.errors import EmptyCorpus
from corpus_builder.shards import read_split
from runs import make_run


@pytest.fixture(scope="module")
def model(exported_run: Path) -> Path:
    return exported_run / "export" / "embedding"


@pytest.fixture(scope="module")
def built(model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    index.run_build([tiny_corpus], model, folder, variants=["*.o2", "*.o3"])
    return folder


@pytest.fixture
def query(tiny_corpus: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A function of the corpus as a file of its own, and its record."""
    record = next(read_split(tiny_corpus, "test"))
    path = tmp_path / "query.s"
    path.write_text(record.assembly[variant_of(record)])
    return path, record


def variant_of(record: Any) -> str:
    return next(name for name in sorted(record.assembly) if name.endswith(".gcc.o2"))


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return json.loads(capsys.readouterr().out)["neighbours"]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
def test_nearest_is_the_top_of_a_full_sort(num: int, top: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (num, 4)).astype(np.float32)  # small integers: plenty of ties
    query = rng.integers(-2, 3, 4).astype(np.float32)
    expected = sorted(range(num), key=lambda at: (-float(vectors[at] @ query), at))[:top]
    found = index.nearest(vectors, query, top, rows_per_block=7)
    assert [position for position, _ in found] == expected
    assert [cosine for _, cosine in found] == [float(vectors[at] @ query) for at in expected]


def test_a_function_finds_itself_first(
    built: Path, query: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = query
    index.run_search(path, built, as_json=True)
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
    index.run_search(path, built, top=2)
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
    index.run_search(path, built, as_json=True)
    from_text = answers(capsys)
    index.run_search(path.with_suffix(".o"), built, as_json=True)
    assert answers(capsys) == from_text


def test_files_can_be_indexed_too(
    model: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = query
    index.run_build([path], model, tmp_path / "own")
    capsys.readouterr()
    index.run_search(path, tmp_path / "own", as_json=True)
    (only,) = answers(capsys)
    assert (only["file"], only["name"], only["project"]) == (str(path), record.meta.name, "")


def test_a_function_must_be_named_where_there_are_several(
    built: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record for record, _ in zip(read_split(tiny_corpus, "test"), range(3), strict=False)]
    path = tmp_path / "several.s"
    path.write_text("".join(record.assembly[variant_of(record)] for record in records))
    name = records[1].meta.name
    with pytest.raises(BinaryError, match="holds 3 functions") as raised:
        index.run_search(path, built)
    assert "--function" in raised.value.remedy
    with pytest.raises(BinaryError) as raised:
        index.run_search(path, built, function=name + "x")
    assert raised.value.remedy == f"did you mean {name}?"
    index.run_search(path, built, function=name, as_json=True)
    assert name in {row["name"] for row in answers(capsys)}


def test_another_models_index_is_refused(
    built: Path, query: tuple[Path, Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = make_run(tmp_path, tiny_tokenizer, scale=0.2)
    export.run(other)
    with pytest.raises(VectorIndexError, match="vectors of different models cannot be compared"):
        index.run_search(query[0], built, model=other / "export" / "embedding")


def test_a_model_that_moved_is_found_where_one_says(
    model: Path, query: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.symlink_to(model)
    index.run_build([query[0]], model, tmp_path / "index")
    meta = json.loads((tmp_path / "index" / "index.json").read_bytes())
    (tmp_path / "index" / "index.json").write_text(json.dumps(meta | {"model": str(there)}))
    with pytest.raises(VectorIndexError, match="is gone") as raised:
        index.run_search(query[0], tmp_path / "index")
    assert "--model" in raised.value.remedy
    capsys.readouterr()
    index.run_search(query[0], tmp_path / "index", model=here, as_json=True)
    assert len(answers(capsys)) == 1


def test_damaged_indexes_are_told_in_one_line(model: Path, query: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(VectorIndexError, match=r"index\.json is missing"):
        index.load(folder)
    index.run_build([query[0]], model, folder)
    vectors = (folder / "vectors.npy").read_bytes()
    (folder / "vectors.npy").write_bytes(vectors[: len(vectors) // 2])
    with pytest.raises(VectorIndexError, match="damaged"):
        index.load(folder)
    (folder / "vectors.npy").write_bytes(vectors)
    (folder / "functions.jsonl").write_text("")
    with pytest.raises(VectorIndexError, match="0 functions"):
        index.load(folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(VectorIndexError, match="damaged"):
        index.load(folder)


def test_variants_that_no_function_has_are_told(model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpus, match=r"no function matches mips\.\*"):
        index.run_build([tiny_corpus], model, tmp_path, variants=["mips.*"])
    assert not (tmp_path / "index.json").exists()
