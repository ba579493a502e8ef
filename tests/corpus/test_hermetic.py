"""Whole projects from their texts alone: the assembly is that of the direct commands, byte for byte."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from compilers import LIMITS, installed, texts_of
from corpus_builder.compile import compile_unit
from corpus_builder.config import CorpusConfig, load_config
from corpus_builder.errors import SourceError
from corpus_builder.process import run
from corpus_builder.record import Failure, Unit
from corpus_builder.sources import fetch, units_of
from corpus_builder.toolchain import Toolchain
from samples import ROOT

LEVELS = ("O0", "O2", "Os")


def real_project(name: str, folder: Path) -> list[Unit]:
    """The units of a copy of one of the demo's projects, which has the cache's own copy to itself."""
    config = load_config(CorpusConfig, ROOT / "configs" / "corpus" / "demo.yaml")
    project = next(project for project in config.projects if project.name == name)
    try:
        root = fetch(project, config.cache)
    except SourceError as error:
        pytest.skip(f"needs {name}'s source: {error}")
    copy = shutil.copytree(root, folder / "a folder of its own" / name)
    return units_of(project, copy, ["x86_64"])


def direct_assembly(unit: Unit, toolchain: Toolchain, level: str, folder: Path) -> bytes:
    """What the project's own command gives, run where it would be."""
    command = unit.commands[toolchain.isa]
    output = folder / f"{toolchain.compiler}-{level}.s"
    argv = [*toolchain.direct_argv(command, level), "-S", "-o", str(output), command.input]
    environment = toolchain.environment(folder)
    done = run(argv, cwd=command.root / command.cwd, limits=LIMITS, env=environment)
    assert done.ok, done.stderr.decode()
    return output.read_bytes()


def differences(work: tuple[Unit, Toolchain], folder: Path) -> tuple[int, list[str]]:
    """The number of variants compared, and those that differ; texts are compiled where no tree is."""
    unit, toolchain = work
    own = folder / toolchain.compiler / unit.file.replace("/", "_")
    own.mkdir(parents=True)
    direct = {level: direct_assembly(unit, toolchain, level, own) for level in LEVELS}
    texts = texts_of(unit, toolchain, LEVELS)
    assert not isinstance(texts, Failure), texts.tail
    root = unit.commands[toolchain.isa].root
    assert not any(os.fsencode(root) in text for text in texts.values())
    command = replace(unit.commands[toolchain.isa], root=folder / "gone")
    elsewhere = replace(unit, commands={toolchain.isa: command})
    compiled, failures = compile_unit(elsewhere, toolchain, LEVELS, texts=texts, limits=LIMITS)
    assert failures == []
    assert [str(item.variant) for item in compiled] == [f"{toolchain.id}.{level.lower()}" for level in LEVELS]
    different = [
        f"{unit.file} {item.variant}"
        for level, item in zip(LEVELS, compiled, strict=True)
        if item.assembly != direct[level]
    ]
    return len(compiled), different


@pytest.mark.parametrize("name", ["hiredis", "miniupnpc"])
def test_every_unit_of_a_project_compiles_as_its_own_command_would(name: str, tmp_path: Path) -> None:
    toolchains = installed("x86_64.gcc", "x86_64.clang")
    units = real_project(name, tmp_path)
    work = [(unit, toolchain) for unit in units for toolchain in toolchains]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(partial(differences, folder=tmp_path), work))
    assert [line for _, different in results for line in different] == []
    assert sum(count for count, _ in results) == len(units) * len(toolchains) * len(LEVELS) >= 30


def test_the_texts_of_a_project_need_neither_its_tree_nor_its_headers(tmp_path: Path) -> None:
    """The first compilation is made beside the tree; the second when there is none."""
    toolchains = installed("x86_64.gcc", "x86_64.clang")
    units = real_project("hiredis", tmp_path)[:3]
    root = units[0].commands["x86_64"].root
    prepared = [(unit, item, texts_of(unit, item, LEVELS)) for unit in units for item in toolchains]

    def compile_all() -> list[bytes]:
        made = []
        for unit, toolchain, texts in prepared:
            assert not isinstance(texts, Failure)
            compiled, failures = compile_unit(unit, toolchain, LEVELS, texts=texts, limits=LIMITS)
            assert failures == []
            made += [item.assembly for item in compiled] + [item.object for item in compiled]
        return made

    beside = compile_all()
    shutil.rmtree(root)
    assert compile_all() == beside
    assert len(beside) == 2 * len(units) * len(toolchains) * len(LEVELS)
