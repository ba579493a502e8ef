"""One translation unit through one toolchain: assembly at every -O level.

In: a unit, a toolchain, levels. Out: per level the assembler text and the code size of every function, from
the object that the text was assembled to; and a failure row for each level that did not get there.
Invariant: the compiler works in the project's folder and writes elsewhere, into a private folder that is
gone afterwards; neither folder's name is in any result.
Cost: the compilers' own time. Assembling the text proves that it is whole, and gives the sizes. GNU as adds
3 to 6 % to the time; clang, whose libraries take 15 ms to load, added 35 % (156 files of 13 libraries), so
its text goes to GNU as too where that is installed: 5 of 2,459 functions come out some bytes shorter.
"""

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from corpus_builder.errors import OutputError, ToolchainError
from corpus_builder.process import Completed, Limits, run
from corpus_builder.record import Failure, FailureCause, FailureStage, Unit, Variant
from corpus_builder.toolchain import Toolchain

_TAIL_LINES = 8
_STT_FUNC = 2
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


@dataclass(frozen=True)
class CompiledUnit:
    """One unit in one variant."""

    variant: Variant
    flags: tuple[str, ...]
    """As a record keeps them."""
    assembly: bytes
    code_bytes: Mapping[str, int]
    """Function symbol to its size in the object."""


def compile_unit(
    unit: Unit, toolchain: Toolchain, levels: Sequence[str], *, limits: Limits
) -> tuple[list[CompiledUnit], list[Failure]]:
    """Compile and assemble one unit at each level; what fails at one level says nothing of the others.

    Raises:
        ToolchainError: the compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    compiled: list[CompiledUnit] = []
    failures: list[Failure] = []
    for level in levels:
        result = _compile_level(unit, toolchain, level, limits)
        if isinstance(result, Failure):
            failures.append(result)
        else:
            compiled.append(result)
    return compiled, failures


def preprocess_unit(unit: Unit, toolchain: Toolchain, level: str, *, limits: Limits) -> bytes | Failure:
    """The unit's preprocessed text with line markers; raises as `compile_unit` does."""
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        call = _Call(unit, toolchain, toolchain.id, Path(name), limits)
        completed, failure = call.run("preprocess", toolchain.preprocess_argv(unit, level))
        return failure or completed.stdout


def function_sizes(object_file: Path) -> dict[str, int]:
    """Name and size in bytes of every function in a 64-bit little-endian ELF object's symbol table."""
    with open(object_file, "rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".symtab")
        if table is None:
            return {}
        # One symbol at a time through pyelftools takes longer than assembling them.
        symbols = np.frombuffer(table.data(), dtype=_SYMBOL)
        names = elf.get_section(table["sh_link"]).data()
    functions = symbols[symbols["info"] & 0xF == _STT_FUNC]
    return {
        names[start : names.index(b"\0", start)].decode(errors="replace"): size
        for start, size in zip(functions["name"].tolist(), functions["size"].tolist(), strict=True)
    }


def _compile_level(unit: Unit, toolchain: Toolchain, level: str, limits: Limits) -> CompiledUnit | Failure:
    variant = Variant(toolchain.isa, toolchain.compiler, level.lower())
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        text, binary = folder / "unit.s", folder / "unit.o"
        call = _Call(unit, toolchain, str(variant), folder, limits)
        _, failure = call.run("compile", toolchain.compile_argv(unit, level, text))
        if failure:
            return failure
        for argv in toolchain.assemble_argvs(unit, text, binary):
            _, failure = call.run("assemble", argv)
            if not failure:
                break
        if failure:
            return failure
        return CompiledUnit(
            variant, toolchain.arguments(unit, level), text.read_bytes(), function_sizes(binary)
        )


@dataclass(frozen=True)
class _Call:
    """What the calls for one variant have in common."""

    unit: Unit
    toolchain: Toolchain
    variant: str
    folder: Path
    """Private, for outputs and temporary files."""
    limits: Limits

    def run(self, stage: FailureStage, argv: Sequence[str]) -> tuple[Completed, Failure | None]:
        env = self.toolchain.environment(self.folder)
        try:
            completed = run(argv, cwd=self.unit.root, limits=self.limits, env=env)
        except FileNotFoundError as error:
            raise ToolchainError(
                f"the compiler of {self.toolchain.id} is not on this machine: {error}",
                remedy="install the same compilers on every machine of the cluster",
            ) from None
        if completed.ok:
            return completed, None
        if b"No space left on device" in completed.stderr:
            raise OutputError(
                f"the disk is full: {self.toolchain.id} could not write to {self.folder.parent}",
                remedy="free some space, or point TMPDIR elsewhere; finished units are kept",
            )
        return completed, Failure(
            unit=self.unit.id,
            variant=self.variant,
            stage=stage,
            cause=_cause(completed),
            exit=completed.exit,
            command=self._anonymous(shlex.join([Path(argv[0]).name, *argv[1:]])),
            tail=self._anonymous(_tail(completed.stderr)),
        )

    def _anonymous(self, text: str) -> str:
        """The same on every machine and in every run: no folder of this one, no random name, no address."""
        text = text.replace(str(self.folder), "$TMP").replace(str(self.unit.root), ".")
        text = re.sub(r"(\$TMP/)[\w-]+(\.\w+)", r"\1unit\2", text)
        return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)


# gcc's driver and clang's report the death of the compiler proper as an error of their own.
_COMPILER_CRASH = re.compile(rb"internal compiler error|PLEASE submit a bug report|signal terminated program")


def _cause(completed: Completed) -> FailureCause:
    crashed = completed.cause == "error" and _COMPILER_CRASH.search(completed.stderr)
    return "crash" if crashed else completed.cause or "error"


def _tail(stderr: bytes) -> str:
    lines = stderr[-8192:].decode(errors="replace").rstrip().splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
