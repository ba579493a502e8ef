"""The demo script itself, on a corpus of three tiny projects and a model of three steps a stage."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from functions import c_functions, write_unit
from test_train import run_config

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("train", "valid", "test")
QUERY = "mix_test_3"


@pytest.fixture(scope="module")
def demo(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and what the script said."""
    need("gcc", "aarch64-linux-gnu-gcc", "clang-19")
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, corpus_config(folder), train_config(folder))


def run_demo(*arguments: object) -> str:
    done = subprocess.run(
        ["launch/demo.sh", *map(str, arguments), QUERY],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONWARNINGS": ""},  # the commands are users' own: only our tests raise
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def corpus_config(folder: Path) -> Path:
    projects = []
    for seed, split in enumerate(SPLITS, start=1):
        source = folder / "source" / split
        source.mkdir(parents=True)
        write_unit(source / "unit.c", c_functions(split, 48 if split == "train" else 18, seed=seed))
        projects.append(
            {
                "name": f"tiny-{split}",
                "version": "1",
                "license": "MIT",
                "split": split,
                "source": {"kind": "path", "path": str(source)},
                "recipe": {"sources": ["*.c"]},
            }
        )
    config = {
        "name": "tiny",
        "output": str(folder / "corpus"),
        "cache": str(folder / "cache"),
        "toolchains": ["aarch64.gcc", "aarch64.clang", "x86_64.gcc"],
        "levels": ["O0", "O2", "O3"],
        "projects": projects,
    }
    return written(folder / "corpus.yaml", config)


def train_config(folder: Path) -> Path:
    path = run_config(folder, folder / "corpus", run=str(folder / "train"))
    config = yaml.safe_load(path.read_text())
    for stage in config["stages"]:
        stage["steps"] = 3
    return written(path, config)


def written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def test_everything_lies_where_the_readme_says(demo: tuple[Path, str]) -> None:
    folder, said = demo
    rows = json.loads((folder / "eval" / "retrieval.json").read_bytes())["rows"]
    assert {"XO O0O3", "XC O2", "XA O2", "XA+XO", "XM"} == {row["task"] for row in rows}
    assert {"constants_tfidf", "combo", "bag", "untrained", "trained"} <= {row["model"] for row in rows}
    for row in rows:
        assert 0 <= row["recall_at_1"] <= row["mrr_at_10"] <= 1
        assert 1 <= row["num_queries"] <= row["pool"]
    assert (folder / "eval" / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "train" / "tb").rglob("events.out.tfevents.*"))
    assert f"tensorboard --logdir {folder}/train/tb" in said


def test_text_and_object_have_the_same_neighbours(demo: tuple[Path, str]) -> None:
    answers = re.split(rf"^ {QUERY} ", demo[1], flags=re.MULTILINE)[1:]
    row = re.compile(r"^ +([1-5] +[01]\.\d{3} .*)$", re.MULTILINE)
    by_text, by_object = (row.findall(answer) for answer in answers)
    assert len(by_text) == 5
    assert by_text == by_object


def test_both_exports_load_with_the_users_libraries(demo: tuple[Path, str]) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM

    export = demo[0] / "export"
    model = AutoModelForCausalLM.from_pretrained(export / "merged")
    logits = model(torch.tensor([[1, 5, 9]])).logits
    assert logits.shape == (1, 3, 1024)
    assert torch.isfinite(logits).all()
    vectors = SentenceTransformer(str(export / "embedding"), device="cpu").encode(["mov w0, 1\nret\n"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_second_run_reuses_what_is_finished(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    kept = ["corpus/index.json", "train/finished.json", "export/embedding/provenance.json"]
    kept += ["eval/retrieval.json", "index/index.json"]
    before = {name: (folder / name).stat().st_mtime_ns for name in kept}
    run_demo(folder, folder / "corpus.yaml", folder / "config.yaml")
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == before
