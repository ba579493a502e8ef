"""Toolchains for tests: the installed ones, and scripts that act as a compiler gone wrong."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from corpus_builder.compile import CompiledUnit, compile_unit, hermetic, preprocess_unit
from corpus_builder.errors import ToolchainError
from corpus_builder.prepare import macro_classes
from corpus_builder.probe import resolve
from corpus_builder.process import Limits
from corpus_builder.record import Command, Failure, Unit
from corpus_builder.toolchain import Toolchain

SHIPPED = Path(__file__).parents[2] / "configs" / "toolchains.yaml"
LIMITS = Limits(time_s=30.0, memory_mib=4096, output_mib=64)


def installed(*names: str) -> list[Toolchain]:
    """Toolchains of the shipped file; skips the test where one is missing."""
    try:
        toolchains, notes = resolve(names, SHIPPED)
    except ToolchainError as error:
        pytest.skip(f"needs a compiler: {error}")
    if notes:
        pytest.skip(f"needs a compiler: {notes[0]}")
    return toolchains


def a_unit(
    root: Path, file: str, flags: tuple[str, ...] = (), *, cwd: str = ".", project: str = "demo"
) -> Unit:
    """A unit that is compiled alike for every instruction set."""
    name = os.path.relpath(file, cwd)
    command = Command(root, cwd, name, flags)
    size = (root / file).stat().st_size if (root / file).exists() else 0
    return Unit(project, file, dict.fromkeys(("aarch64", "x86_64", "riscv64"), command), size)


def texts_of(
    unit: Unit, toolchain: Toolchain, levels: Sequence[str], limits: Limits = LIMITS
) -> dict[str, bytes] | Failure:
    """The hermetic texts that the levels need, by macro class."""
    texts = {}
    for name in macro_classes(toolchain, levels):
        text = preprocess_unit(unit, toolchain, name, limits=limits)
        if isinstance(text, Failure):
            return text
        texts[name] = hermetic(text, unit.commands[toolchain.isa])
    return texts


def compile_levels(
    unit: Unit, toolchain: Toolchain, levels: Sequence[str], *, limits: Limits = LIMITS
) -> tuple[list[CompiledUnit], list[Failure]]:
    """Both steps; a text that cannot be made is the only failure."""
    texts = texts_of(unit, toolchain, levels, limits)
    if isinstance(texts, Failure):
        return [], [texts]
    return compile_unit(unit, toolchain, levels, texts=texts, limits=limits)


def misbehaving(folder: Path, behaviour: str) -> Toolchain:
    """An x86-64 gcc that passes its probe, and then does as the shell text says with "$@"."""
    real = shutil.which("x86_64-linux-gnu-gcc") or pytest.skip("needs x86_64-linux-gnu-gcc")
    folder.mkdir(exist_ok=True)
    script = folder / "odd-gcc"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "--version) echo 'odd-gcc (Test) 12.9.9'; exit 0;;\n"
        "-dumpmachine) echo x86_64-linux-gnu; exit 0;;\n"
        # What it is asked before a unit's own compilation works.
        f'*probe.c|*/dev/null|*" -E "*) exec {real} "$@";;\n'
        "esac\n"
        f"real={real}\n{behaviour}\n"
    )
    script.chmod(0o755)
    file = folder / "toolchains.yaml"
    file.write_text(
        "toolchains:\n"
        "  - isa: x86_64\n    family: gcc\n    versions: [12]\n    triple: x86_64-linux-gnu\n"
        f"    commands: ['{script}']\n"
    )
    (toolchain,), _ = resolve(["x86_64.gcc12"], file)
    return toolchain
