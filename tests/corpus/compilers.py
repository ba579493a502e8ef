"""Toolchains for tests: the installed ones, and scripts that act as a compiler gone wrong."""

import shutil
from pathlib import Path

import pytest

from corpus_builder.errors import ToolchainError
from corpus_builder.process import Limits
from corpus_builder.toolchain import Toolchain, resolve

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
        f'*probe.c) exec {real} "$@";;\n'
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
