"""A tiny corpus of C functions that are really compiled."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from corpus_builder import asm
from corpus_builder.record import (
    FunctionMeta,
    FunctionRecord,
    SourceMeta,
    VariantMeta,
    function_key,
)
from corpus_builder.shards import CorpusIndex, write_index, write_shard
from functions import c_functions, write_unit

LEVELS = ("O0", "O1", "O2", "O3", "Os")
COMPILERS = {
    "aarch64.gcc": ("aarch64-linux-gnu-gcc",),
    "aarch64.clang": ("clang-19", "--target=aarch64-linux-gnu"),
    "x86_64.gcc": ("x86_64-linux-gnu-gcc",),
    "x86_64.clang": ("clang-19", "--target=x86_64-linux-gnu"),
}
"""Variant prefix to compiler; those that are not installed are left out."""

FUNCTIONS_OF_SPLIT = {"train": 48, "valid": 12, "test": 12}


def make_tiny_corpus(corpus: Path) -> Path:
    """A corpus of 48 train, 12 valid and 12 test functions, in two train shards, at five levels."""
    compilers = {name: command for name, command in COMPILERS.items() if shutil.which(command[0])}
    if len(compilers) < 2:
        pytest.skip("needs two of: aarch64-linux-gnu-gcc, x86_64-linux-gnu-gcc, clang-19")
    entries = []
    for number, (split, count) in enumerate(FUNCTIONS_OF_SPLIT.items()):
        records = _compiled(split, count, seed=1 + number, compilers=compilers, folder=corpus / split)
        half = len(records) // 2 if split == "train" else len(records)
        for place, part in enumerate((records[:half], records[half:])):
            if part:
                path = corpus / f"{split}-{place:05d}.tar.zst"
                entries.append(write_shard(path, split, part, zstd_level=3))
    index = CorpusIndex(
        name="tiny",
        toolchains={name: _version(command) for name, command in compilers.items()},
        levels=LEVELS,
        text="raw",
        members=(),
        dedup={},
        projects={split: {"split": split, "license": "MIT"} for split in FUNCTIONS_OF_SPLIT},
        shards=tuple(entries),
        totals={"functions": sum(FUNCTIONS_OF_SPLIT.values())},
        compiled={},
        failures={},
    )
    write_index(corpus, index)
    return corpus


def _version(command: Sequence[str]) -> str:
    run = subprocess.run([command[0], "--version"], capture_output=True, check=True, text=True)
    return run.stdout.splitlines()[0]


def _compiled(
    project: str, count: int, *, seed: int, compilers: dict[str, tuple[str, ...]], folder: Path
) -> list[FunctionRecord]:
    """Write `count` functions into one C file, compile it in every variant, and join the variants."""
    sources = c_functions(project, count, seed=seed)
    folder.mkdir()
    write_unit(folder / "unit.c", sources)
    texts: dict[str, dict[str, str]] = {name: {} for name in sources}
    for prefix, command in compilers.items():
        for level in LEVELS:
            argv = [*command, f"-{level}", "-S", "unit.c", "-o", "unit.s"]
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=60)
            for name, text in asm.split_functions((folder / "unit.s").read_bytes()).items():
                texts[name][f"{prefix}.{level.lower()}"] = text
    return [
        _record(project, name, source, line=3 + place, assembly=texts[name])
        for place, (name, source) in enumerate(sources.items())
    ]


def _record(project: str, name: str, source: str, *, line: int, assembly: dict[str, str]) -> FunctionRecord:
    key = function_key(project, "unit.c", line, name)
    meta = FunctionMeta(
        project=project,
        version="1",
        source=SourceMeta(kind="path", location="tests", sha256=None),
        license="MIT",
        file_license="",
        split=project,
        unit="unit.c",
        file="unit.c",
        name=name,
        signature=source.partition(" {")[0],
        lines=(line, line),
        comment="",
        source_sha256=hashlib.sha256(source.encode()).hexdigest(),
        cluster=key,
        variants={variant: _variant_meta(variant, text) for variant, text in assembly.items()},
    )
    return FunctionRecord(key, meta, source, assembly)


def _variant_meta(variant: str, text: str) -> VariantMeta:
    isa, compiler, level = variant.split(".")
    return VariantMeta(
        compiler=compiler,
        flags=(f"-O{level[1:]}",),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        body_sha256=asm.view_sha256(text, isa),
        num_instructions=asm.num_instructions(asm.clean(text, isa)),
        code_bytes=4 * asm.num_instructions(asm.clean(text, isa)),
        symbol="",
    )
