"""What others read a corpus with: each finds in our shards what we wrote."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_builder.record import FunctionRecord, record_members
from corpus_builder.shards import read_samples, write_shard
from samples import a_record

NUM_RECORDS = 20
VARIANTS = ("aarch64.gcc12.o2", "x86_64.gcc12.o2")
CLONES = "aarch64.gcc12.o2.clones.s"


def records() -> list[FunctionRecord]:
    """As a build gives them: a compiler leaves some functions out, and some have further members."""
    whole = [a_record(f"f{i}", comment="/* \u00e9 */") for i in range(NUM_RECORDS)]
    return [
        without(record, "x86_64.gcc12.o2")
        if i % 2
        else replace(record, extras={CLONES: b"ret"} if i % 3 else {})
        for i, record in enumerate(whole)
    ]


def without(record: FunctionRecord, variant: str) -> FunctionRecord:
    variants = {name: meta for name, meta in record.meta.variants.items() if name != variant}
    texts = {name: record.assembly[name] for name in variants}
    return replace(record, meta=record.meta.model_copy(update={"variants": variants}), assembly=texts)


@pytest.fixture(params=["tar.zst", "tar"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path, request.param)


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"train-00000.{suffix}"
    write_shard(path, "train", records(), zstd_level=3)
    return path


def expected() -> list[tuple[str, dict[str, bytes]]]:
    return [(record.key, record_members(record)) for record in records()]


def test_we(shard: Path) -> None:
    assert list(read_samples(shard)) == expected()


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # its own: of resources, of pyarrow's names
def test_ray_data(shard: Path, ray_data: Any) -> None:
    rows = ray_data.read_webdataset([str(shard)], decoder=None, override_num_blocks=1).take_all()
    found = [
        # A table has every column in every row: a member that is not there is None or NaN.
        (row["__key__"], {k: v for k, v in row.items() if isinstance(v, bytes)})
        for row in rows
    ]
    assert found == expected()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it never closes its files
def test_webdataset(shard: Path) -> None:
    import webdataset

    if shard.suffix == ".zst" and not shutil.which("zstd"):
        pytest.skip("needs zstd")
    url = str(shard) if shard.suffix == ".tar" else f"pipe:zstd -dcq {shard}"
    found = [
        (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        for sample in webdataset.WebDataset(url, shardshuffle=False)
    ]
    assert found == expected()


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    path = written(tmp_path, "tar")  # of the two formats, the one that it opens
    # Without columns given, it takes them from the first five samples, and refuses those that differ.
    binary = datasets.Value("binary")
    columns = {"json": datasets.Json(), "c": binary, **{f"{variant}.s": binary for variant in VARIANTS}}
    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(path)},
        features=datasets.Features({"__key__": datasets.Value("string"), **columns}),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    rows = list(found)
    assert [row["__key__"] for row in rows] == [record.key for record in records()]
    for row, record in zip(rows, records(), strict=True):
        assert row["json"] == json.loads(record.meta.model_dump_json())
        assert row["c"].decode() == record.source
        texts = {variant: row[f"{variant}.s"] for variant in VARIANTS}
        assert {v: text.decode() for v, text in texts.items() if text is not None} == record.assembly
