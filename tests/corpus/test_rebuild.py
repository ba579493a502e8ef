"""`verify --rebuild`: what a corpus says of itself is enough to make it again, and a false text is found."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_builder.cli import main
from corpus_builder.pipeline import build
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import load_index, read_shard, write_index, write_shard
from corpus_builder.verify import verify_corpus
from samples import NATIVE_GCC, ROOT, TINY, TINY_FUNCTIONS, a_config, sha256

MAKEFILE = """\
OBJECTS = checksum.o queue.o ring.o
all: $(OBJECTS)
%.o: %.c
	$(CC) -Iinclude -DBUILT_BY_MAKE -O1 -g -c $< -o $@
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    folder = tmp_path_factory.mktemp("built")
    config = a_config(folder)
    build(config, address=ray_address)
    return folder / "corpus"


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """`verify --rebuild` with an empty cache; exit status, what it found, what it says of problems."""

    def verify(corpus: Path, number: int, *options: object) -> tuple[int, Any, str]:
        own = ["--cache", tmp_path / "own-cache", "--toolchains", ROOT / "configs" / "toolchains.yaml"]
        arguments = ["verify", corpus, "--json", "--rebuild", number, *own, *options]
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return verify


Verify = Callable[..., tuple[int, Any, str]]


def rewritten(corpus: Path, folder: Path, change: Callable[[FunctionRecord], FunctionRecord]) -> Path:
    """A copy of the corpus, each record changed, written by the builder's own writer."""
    index = load_index(corpus)
    entries = []
    for shard in index.shards:
        records = [change(record) for record in read_shard(corpus / shard.name)]
        entries.append(write_shard(folder / shard.name, shard.split, records, zstd_level=3))
    write_index(folder, index.model_copy(update={"shards": tuple(entries)}))
    return folder


def with_variants(record: FunctionRecord, **fields: Any) -> FunctionRecord:
    """The record with fields of all its variants set."""
    variants = {name: variant.model_copy(update=fields) for name, variant in record.meta.variants.items()}
    return replace(record, meta=record.meta.model_copy(update={"variants": variants}))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_function_of_a_corpus_comes_out_the_same(corpus: Path, verify: Verify, seed: int) -> None:
    status, found, errors = verify(corpus, len(TINY_FUNCTIONS), "--seed", seed)
    assert (status, errors) == (0, "")
    assert found == {"corpus": str(corpus), "rebuilt": 8, "skipped": [], "problems": []}


def test_more_than_there_is_means_all(corpus: Path, verify: Verify) -> None:
    assert verify(corpus, 1000)[1]["rebuilt"] == 8


def test_a_text_that_no_compiler_gave_is_found(corpus: Path, tmp_path: Path, verify: Verify) -> None:
    """Shard, index and hashes all fit: nothing but compiling again can tell."""

    def change(record: FunctionRecord) -> FunctionRecord:
        if record.meta.name != "adler32":
            return record
        texts = {name: text + "\tnop\n" for name, text in record.assembly.items()}
        variants = {
            name: variant.model_copy(update={"sha256": sha256(texts[name])})
            for name, variant in record.meta.variants.items()
        }
        return replace(record, meta=record.meta.model_copy(update={"variants": variants}), assembly=texts)

    altered = rewritten(corpus, tmp_path / "altered", change)
    assert verify_corpus(altered) == []
    status, found, errors = verify(altered, 8)
    assert status == 2
    assert (found["rebuilt"], found["skipped"]) == (7, [])
    (problem,) = found["problems"]
    assert problem.endswith("of tiny/checksum.c came out differently")
    assert f"error: {problem}" in errors


def test_another_version_of_the_compiler_is_skipped_and_said(
    corpus: Path, tmp_path: Path, verify: Verify
) -> None:
    """Its texts may differ with good reason."""
    other = rewritten(corpus, tmp_path / "other", lambda record: with_variants(record, compiler="gcc 12.9"))
    status, found, _ = verify(other, 3)
    assert (status, found["rebuilt"], found["problems"]) == (0, 0, [])
    assert len(found["skipped"]) == 3
    assert all(": compiled by gcc 12.9, here is " in line for line in found["skipped"])


def test_a_toolchain_that_is_not_installed_is_skipped_and_said(
    corpus: Path, tmp_path: Path, verify: Verify
) -> None:
    toolchains = tmp_path / "toolchains.yaml"
    text = (ROOT / "configs" / "toolchains.yaml").read_text()
    toolchains.write_text(re.sub(r"commands: .*", "commands: [no-such-compiler]", text))
    status, found, _ = verify(corpus, 2, "--toolchains", toolchains)
    assert (status, found["rebuilt"], found["problems"]) == (0, 0, [])
    assert len(found["skipped"]) == 2
    assert all("cannot be used" in line for line in found["skipped"])


def test_a_source_that_is_gone_is_skipped_and_said(tmp_path: Path, ray_address: str, verify: Verify) -> None:
    project = shutil.copytree(TINY, tmp_path / "project")
    config = a_config(tmp_path, projects={"tiny": project})
    build(config, address=ray_address)
    shutil.rmtree(project)
    status, found, _ = verify(config.output, 2)
    assert (status, found["rebuilt"], found["problems"]) == (0, 0, [])
    assert len(found["skipped"]) == 2


def captured_corpus(folder: Path, makefile: str, ray_address: str, **settings: Any) -> Path:
    """A corpus of the tiny project as its own build compiles it, in another form at other levels."""
    project = shutil.copytree(TINY, folder / "project")
    (project / "Makefile").write_text(makefile)
    described = {"name": "tiny", "version": "1", "license": "MIT", "split": "train"}
    described |= {"source": {"kind": "path", "path": str(project)}, "build": {}}
    config = a_config(folder, **{"levels": ["O0", "O2-no-inline"], **settings}).model_copy()
    config = type(config).model_validate({**config.model_dump(), "projects": [described]})
    build(config, address=ray_address)
    return Path(str(config.output))


def test_a_project_is_captured_again_by_its_own_build(
    tmp_path: Path, ray_address: str, verify: Verify, need: Callable[..., None]
) -> None:
    need("bwrap", "make")
    shards = {"text": "clean", "members": ["inlined", "object", "lines"]}
    corpus = captured_corpus(tmp_path, MAKEFILE, ray_address, shards=shards)
    builds = load_index(corpus).projects["tiny"]["builds"]
    assert {(way["system"], way["mode"]) for way in builds.values()} == {("make", "cross")}
    records = [record for shard in load_index(corpus).shards for record in read_shard(corpus / shard.name)]
    flags = {
        flag for record in records for variant in record.meta.variants.values() for flag in variant.flags
    }
    assert {"-DBUILT_BY_MAKE", "-fno-inline"} <= flags
    status, found, errors = verify(corpus, 8)
    assert (status, errors) == (0, "")
    assert (found["rebuilt"], found["skipped"]) == (8, [])
    assert (tmp_path / "own-cache" / "captures").is_dir()


def test_commands_of_one_build_for_all_are_found_again_for_one(
    tmp_path: Path, ray_address: str, verify: Verify, need: Callable[..., None]
) -> None:
    """A build that gives little for one instruction set: it gets the commands of another one's build."""
    need("bwrap", "make", "aarch64-linux-gnu-gcc", "x86_64-linux-gnu-gcc")
    makefile = MAKEFILE.replace("all:", "ifneq (,$(findstring aarch64,$(CC)))\nOBJECTS = ring.o\nendif\nall:")
    makefile = makefile.replace("-O1", "-O1 -DCC_IS_$(firstword $(subst -, ,$(CC)))")
    toolchains = [NATIVE_GCC, *({"aarch64.gcc", "x86_64.gcc"} - {NATIVE_GCC})]
    corpus = captured_corpus(tmp_path, makefile, ray_address, toolchains=toolchains, levels=["O2"])
    for seed in range(4):
        status, found, errors = verify(corpus, 1, "--seed", seed)
        assert (status, errors, found["rebuilt"], found["skipped"]) == (0, "", 1, [])
