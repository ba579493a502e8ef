"""Functions that training has seen, planted under each rule: found, told, and left out of the evaluation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asmtrain.cli import main
from asmtrain.tasks import leaks, retrieval
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import load_index, read_split, write_index, write_shard

O0 = "aarch64.gcc.o0"
LONG = [f"\tadd\tw{at % 7}, w{at % 5}, {at}\n" for at in range(200)]


def assembly_of(lines: list[str]) -> str:
    return "f:\n" + "".join(lines) + "\tret\n"


def changed(record: FunctionRecord, key: str, *, text: str = "", **fields: Any) -> FunctionRecord:
    """A function of another key, whose name and bodies are its own unless `fields` say otherwise.

    With a `text` it has that at O0, on one ISA alone, and nothing else.
    """
    variants = {
        variant: item.model_copy(update={"body_sha256": f"{key} {variant}"})
        for variant, item in record.meta.variants.items()
        if not text or variant == O0
    }
    update = {"name": key, "source_sha256": key, "variants": variants} | fields
    assembly = {variant: text or record.assembly[variant] for variant in variants}
    return replace(record, key=key, meta=record.meta.model_copy(update=update), assembly=assembly)


@pytest.fixture
def plant(tiny_corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """A corpus of the tiny one's functions with further ones in training and test."""

    def planted(train: list[FunctionRecord], test: list[FunctionRecord]) -> Path:
        entries = [
            write_shard(
                tmp_path / f"{split}-00000.tar.zst",
                split,
                [*read_split(tiny_corpus, split), *more],
                zstd_level=1,
            )
            for split, more in (("train", train), ("test", test))
        ]
        index = load_index(tiny_corpus)
        write_index(tmp_path, index.model_copy(update={"shards": tuple(entries)}))
        return tmp_path

    return planted


@pytest.fixture
def some(tiny_corpus: Path) -> FunctionRecord:
    return next(read_split(tiny_corpus, "train"))


def test_a_corpus_without_leaks_passes(tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "leaks", str(tiny_corpus)]) == 0
    assert "0 of 12 functions in test were seen in training" in capsys.readouterr().out


def test_each_rule_finds_what_it_is_for(
    plant: Callable[..., Path], some: FunctionRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    near = [*LONG[:50], "\tmul\tw0, w0, w1\n", *LONG[51:]]  # one line of 200: 6 of 205 runs differ
    far = [line if at % 9 else "\tmul\tw0, w0, w1\n" for at, line in enumerate(LONG)]
    body = some.meta.variants["x86_64.gcc.o3"]  # at O0 it is another
    corpus = plant(
        [changed(some, "long", text=assembly_of(LONG))],
        [
            changed(some, "by-body", text=assembly_of(far), variants={O0: body}),
            changed(some, "by-name", text=assembly_of(far), name=some.meta.name),
            changed(some, "other-file", text=assembly_of(far[::-1]), name=some.meta.name, file="other.c"),
            changed(some, "by-text", text=assembly_of(near)),
            changed(some, "far", text=assembly_of(far)),
        ],
    )
    assert main(["eval", "leaks", str(corpus), "--json"]) == 1
    found = {item["key"]: (item["rule"], item["seen"]) for item in json.loads(capsys.readouterr().out)}
    expected = {"by-body": ("body", some.key), "by-name": ("name", some.key), "by-text": ("text", "long")}
    assert found == expected
    assert main(["eval", "leaks", str(corpus)]) == 1
    said = capsys.readouterr().out
    assert "(1 by body, 1 by name, 1 by text)" in said
    assert all(key in said for key in expected)


def test_a_corpus_without_training_leaks_nothing(tiny_corpus: Path, tmp_path: Path) -> None:
    records = list(read_split(tiny_corpus, "test"))
    entry = write_shard(tmp_path / "test-00000.tar.zst", "test", records, zstd_level=1)
    write_index(tmp_path, load_index(tiny_corpus).model_copy(update={"shards": (entry,)}))
    assert list(leaks.leaks(tmp_path, "test", tmp_path)) == []


def test_what_leaks_is_not_asked_for(
    plant: Callable[..., Path], some: FunctionRecord, exported_run: Path, tmp_path: Path
) -> None:
    corpus = plant([], [changed(some, "seen", name=some.meta.name), changed(some, "new")])
    model = str(exported_run / "export" / "embedding")
    retrieval.run([model], corpus, tmp_path / "eval", lanes=["XO *"], with_bag=False)
    # Both have the O0 text of `some`, so the third rule finds the one that the second does not.
    keys = {json.loads(line)["key"] for line in (tmp_path / "eval" / "pools.jsonl").read_text().splitlines()}
    assert keys
    assert not keys & {"seen", "new"}
    settings = json.loads((tmp_path / "eval" / "retrieval.json").read_bytes())["settings"]
    assert settings["leaks"] == {"body": 0, "name": 1, "text": 1}
