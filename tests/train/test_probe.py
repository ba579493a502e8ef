"""Probes beside scikit-learn's figures and models known to tell; the projector as TensorBoard serves it."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, r2_score

from asmtrain.cli import main
from asmtrain.errors import ModelError
from asmtrain.tasks import probe
from asmtrain.tasks.features import opcodes
from asmtrain.tasks.probe import Sample
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import Variant
from corpus_builder.shards import read_split

TARGETS = (*probe.NUMBERS, *probe.CLASSES)


@pytest.fixture(scope="module")
def probed(exported_run: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for an export and a callable that tells the size and nothing else."""
    output = tmp_path_factory.mktemp("probe")
    models = (f"export={exported_run / 'export' / 'embedding'}", f"sizes={__name__}:direction_by_size")
    arguments = ["--corpus", tiny_corpus, "--output", output, "--projector", output / "tb"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        arguments += [part for model in models for part in ("--model", model)]
        assert main(["eval", "probe", *map(str, arguments)]) == 0
    return output


def direction_by_size(texts: list[str]) -> Any:
    """Vectors whose direction is the logarithm of the number of instructions, if they are made unit ones."""
    angles = np.log([len(opcodes(text)) for text in texts]) / 8
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rows_of(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((output / "probe.json").read_bytes())["rows"]
    return {(row["target"], row["model"]): row for row in rows}


def test_every_target_has_a_row_a_model_and_baseline(probed: Path) -> None:
    rows = rows_of(probed)
    models = (probe.CONSTANT, probe.OPCODES, "untrained", "export", "sizes")
    assert set(rows) == {(target, model) for target in TARGETS for model in models}
    for (target, _), row in rows.items():
        score = "r2" if target in probe.NUMBERS else "accuracy"
        assert row[score] <= 1
        assert row[f"{score}_ci95"] == [row[score]] * 2, "one project: nothing to resample"
    assert (probed / "probe.png").stat().st_size > 10_000


def test_a_probe_finds_what_a_vector_tells_and_nothing_else(probed: Path) -> None:
    rows = rows_of(probed)
    assert rows["instructions", "sizes"]["r2"] > 0.9
    assert rows["isa", "sizes"]["accuracy"] < 0.8
    assert rows["isa", probe.OPCODES]["accuracy"] == 1
    assert rows["isa", probe.OPCODES]["macro_f1"] == 1
    assert rows["isa", probe.CONSTANT]["accuracy"] < 0.7
    assert rows["instructions", probe.CONSTANT]["r2"] <= 0


def test_settings_say_what_it_was_fitted_and_judged_on(probed: Path) -> None:
    settings = json.loads((probed / "probe.json").read_bytes())["settings"]
    assert settings["fitted"]["projects"] == ["train"]
    assert settings["judged"]["projects"] == ["test"]
    assert settings["judged"]["num_bodies"] > 50
    assert set(settings["models"]) == {"untrained", "export", "sizes"}


def test_a_sample_is_one_draw_of_distinct_long_bodies(tiny_corpus: Path) -> None:
    drawn = probe.sample(tiny_corpus, "test", 40, seed=0)
    assert len(set(drawn.texts)) == len(drawn.texts) == 40
    assert drawn == drawn
    again, other = (probe.sample(tiny_corpus, "test", 40, seed=seed) for seed in (0, 1))
    assert again.texts == drawn.texts
    assert other.texts != drawn.texts
    assert probe.sample(tiny_corpus, "test", 10, seed=0).texts == drawn.texts[:10]
    assert set(drawn.projects) == {"test"}
    assert np.exp(drawn.targets["instructions"]).min() > 9.99


def test_targets_are_those_of_the_body_shown(tiny_corpus: Path) -> None:
    drawn = probe.sample(tiny_corpus, "test", 10_000, seed=0)
    bodies = {
        (record.meta.name, Variant.parse(variant), meta.num_instructions, meta.code_bytes)
        for record in read_split(tiny_corpus, "test")
        for variant, meta in record.meta.variants.items()
    }
    for at, name in enumerate(drawn.names):
        isa, compiler, level = (str(drawn.targets[target][at]) for target in ("isa", "compiler", "level"))
        sizes = [round(np.exp(drawn.targets[target][at])) for target in probe.NUMBERS]
        assert (name, Variant(isa, compiler, f"o{level[1:]}"), *sizes) in bodies


def test_functions_that_leak_are_not_judged(tiny_corpus: Path) -> None:
    keys = [record.key for record in read_split(tiny_corpus, "test")]
    names = {record.meta.name for record in read_split(tiny_corpus, "test") if record.key in keys[6:]}
    drawn = probe.sample(tiny_corpus, "test", 10_000, seed=0, without=set(keys[:6]))
    assert set(drawn.names) <= names
    with pytest.raises(EmptyCorpus, match="no two bodies"):
        probe.sample(tiny_corpus, "test", 10, seed=0, without=set(keys))


def test_a_target_of_one_value_has_no_row() -> None:
    def of(level: str) -> Sample:
        targets = {"level": np.array([level, level]), "isa": np.array(["a", "b"])}
        return Sample(["mov", "ret"], ["f", "g"], np.array(["p", "p"]), targets)

    features = {probe.CONSTANT: (np.zeros((2, 0)), np.zeros((2, 0)))}
    assert list(probe.probe("level", features, of("O0"), of("O0"), 0)) == []
    assert len(list(probe.probe("isa", features, of("O0"), of("O0"), 0))) == 1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abc"), st.integers(0, 3)), min_size=2))
def test_class_figures_are_those_of_scikit_learn(items: list[tuple[str, str, int]]) -> None:
    asked, told = np.array([item[0] for item in items]), np.array([item[1] for item in items])
    projects = np.unique([item[2] for item in items], return_inverse=True)[1]
    figures = probe.class_figures(asked, told, projects, 0)
    assert figures["accuracy"] == pytest.approx(accuracy_score(asked, told))
    assert figures["macro_f1"] == pytest.approx(f1_score(asked, told, average="macro"))
    for name in ("accuracy", "macro_f1"):
        low, high = figures[f"{name}_ci95"]
        assert 0 <= low <= high <= 1


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=3, max_size=40))
def test_number_figures_are_those_of_scikit_learn(items: list[tuple[float, float]]) -> None:
    asked, told = np.array(items).T
    asked = asked + np.arange(len(asked))  # never all equal
    figures = probe.number_figures(asked, told, np.zeros(len(asked), dtype=np.intp), 0)
    assert figures["r2"] == pytest.approx(r2_score(asked, told), rel=1e-6, abs=1e-6)


def test_an_interval_is_over_projects() -> None:
    """A project told right and one told wrong: drawn with replacement, anything from none to all is right."""
    asked = np.array(["a"] * 100)
    told = np.array(["a"] * 50 + ["b"] * 50)
    projects = np.repeat([0, 1], 50)
    assert probe.class_figures(asked, told, projects, 0)["accuracy_ci95"] == [0, 1]


def test_a_model_may_not_be_called_as_a_baseline(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two models are called 'opcodes'"):
        probe.run([f"opcodes={__name__}:direction_by_size"], tiny_corpus, tmp_path)


def test_a_wrong_model_is_one_line(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(tmp_path / "none"), "--corpus", str(tiny_corpus), "--output", str(tmp_path)]
    assert main(["eval", "probe", *arguments]) == 2
    assert "is not an embedding model: no such folder" in capsys.readouterr().err


def test_tensorboard_serves_the_points_with_their_colours(probed: Path) -> None:
    with tensorboard(probed / "tb") as address:
        info = json.loads(fetch(f"{address}/info?run=."))["embeddings"]
        assert {item["tensorName"] for item in info} == {
            "untrained:00000",
            "export:00000",
            "sizes:00000",
        }
        name = urllib.parse.quote("export:00000")
        metadata = fetch(f"{address}/metadata?run=.&name={name}").decode().splitlines()
        assert metadata[0].split("\t") == ["name", "project", "level", "compiler", "isa", "instructions"]
        vectors = np.frombuffer(fetch(f"{address}/tensor?run=.&name={name}"), np.float32).reshape(-1, 16)
    assert len(vectors) == len(metadata) - 1 > 50
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    columns = list(zip(*(line.split("\t") for line in metadata[1:]), strict=True))
    assert set(columns[1]) == {"test"}
    assert set(columns[2]) <= {"O0", "O1", "O2", "O3", "Os"}
    assert len(set(columns[4])) > 1


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """A TensorBoard of its own; yields the address of its projector."""
    program = shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    assert program
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--port={port}", f"--logdir={folder}", "--load_fast=false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/data/plugin/projector"
    try:
        end = time.monotonic() + 120
        while "." not in json.loads(_patient(f"{address}/runs", end)):
            assert time.monotonic() < end
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def _patient(address: str, end: float) -> bytes:
    while True:
        try:
            return fetch(address)
        except OSError:
            assert time.monotonic() < end, f"nothing at {address}"
            time.sleep(0.5)


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return bytes(answer.read())
