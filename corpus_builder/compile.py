"""One translation unit through one toolchain: preprocessed texts, then assembly at every -O level.

In: a unit's command, a toolchain, levels. Out: one text for each macro class, made where the source tree is;
and from the texts alone, on any machine, the assembler text and object of each level, with a failure row for
each one that did not get there.
Invariants: the assembly is what the project's own command would have given, byte for byte; compilers write
into a private folder that is gone afterwards; no folder's name is in any result.
Cost: the compilers' own time. One shell runs all levels of a toolchain: a supervised call for each would add
3 ms to compilations that take 15 to 50. Assembling proves that a text is whole and gives the sizes. GNU as
adds 3 to 6 % to the time; clang, whose libraries take 15 ms to load, added 35 % (156 files of 13 libraries),
so its text goes to GNU as too where that is installed: 5 of 2,459 functions come out some bytes shorter.
"""

import math
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corpus_builder.errors import OutputError, ToolchainError
from corpus_builder.objects import inlining_flags
from corpus_builder.process import Completed, Limits, run
from corpus_builder.record import Command, Failure, FailureCause, FailureStage, Unit, Variant
from corpus_builder.toolchain import Toolchain

_TAIL_LINES = 8
_PATIENCE = 2


@dataclass(frozen=True)
class CompiledUnit:
    """One unit in one variant."""

    variant: Variant
    flags: tuple[str, ...]
    """As a record keeps them."""
    assembly: bytes
    object: bytes
    """The assembled ELF file."""
    inlining: str
    """What the compiler said it inlined."""


def preprocess_unit(
    unit: Unit, toolchain: Toolchain, level: str, *, limits: Limits, expand: bool = False
) -> bytes | Failure:
    """The unit's preprocessed text with line markers, as it stands: with the project's folder in it.

    Raises:
        ToolchainError: the compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    command = unit.commands[toolchain.isa]
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        call = _Call(unit, toolchain, toolchain.id, Path(name), limits)
        argv = toolchain.preprocess_argv(command, level, expand=expand)
        completed, failure = call.run("preprocess", argv, cwd=command.root / command.cwd)
        return failure or completed.stdout


def preprocess_levels(
    unit: Unit, toolchain: Toolchain, levels: Sequence[str], *, limits: Limits
) -> tuple[dict[str, bytes], Failure | None]:
    """The same for several levels in one go: the texts up to the first that fails, and its failure."""
    command = unit.commands[toolchain.isa]
    texts: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        files = [folder / level for level in levels]
        argvs = [shlex.join(toolchain.preprocess_argv(command, level)) for level in levels]
        lines = [
            f"{argv} > {shlex.quote(str(file))} 2> /dev/null && : > {shlex.quote(f'{file}.done')} || exit"
            for argv, file in zip(argvs, files, strict=True)
        ]
        _run_script(lines, toolchain, folder, limits, cwd=command.root / command.cwd)
        for level, file in zip(levels, files, strict=True):
            done = file.with_name(f"{level}.done").exists()
            text = file.read_bytes() if done else preprocess_unit(unit, toolchain, level, limits=limits)
            if isinstance(text, Failure):
                return texts, text
            texts[level] = text
    return texts, None


def hermetic(text: bytes, command: Command) -> bytes:
    """A preprocessed text without the name of the folder it was made in."""
    return text.replace(str(command.root).encode(), b".")


def compile_unit(
    unit: Unit,
    toolchain: Toolchain,
    texts: Mapping[str, bytes],
    levels: Sequence[str],
    *,
    limits: Limits,
    options: Sequence[str] = (),
    report: bool = False,
) -> tuple[list[CompiledUnit], list[Failure]]:
    """Compile and assemble one unit at each level; what fails at one level says nothing of the others.

    `texts` maps macro classes to hermetic texts. `options` are further compiler arguments that move no
    code; `report` asks for what was inlined.

    Raises:
        ToolchainError: the compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        jobs = [_Job(unit, toolchain, level, folder, tuple(options), report) for level in levels]
        for macro_class, text in texts.items():
            (folder / f"{macro_class}.i").write_bytes(text)
        _run_script([job.shell_line() for job in jobs], toolchain, folder, limits, cwd=folder)
        compiled: list[CompiledUnit] = []
        failures: list[Failure] = []
        for job in jobs:
            failure = None
            if not job.is_done:
                failure = out_of_patience(job.unit, str(job.variant), failures) or _run_alone(job, limits)
            if failure:
                failures.append(failure)
            else:
                compiled.append(job.result())
        return compiled, failures


def ir_of(unit: Unit, toolchain: Toolchain, text: bytes, level: str, *, limits: Limits) -> str | Failure:
    """The unit's LLVM IR as clang's front end gives it, before any optimisation; raises as `compile_unit`."""
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        (folder / "unit.i").write_bytes(text)
        command = unit.commands[toolchain.isa]
        argv = toolchain.compile_argv(command, level, "unit.i", "unit.ll")
        argv += ["-emit-llvm", "-Xclang", "-disable-llvm-passes"]
        call = _Call(unit, toolchain, f"{toolchain.id}.{level.lower()}", folder, limits)
        _, failure = call.run("compile", argv, cwd=folder)
        return failure or (folder / "unit.ll").read_text(errors="replace")


@dataclass(frozen=True)
class _Job:
    """One level of one unit in one toolchain; its files lie in `folder` under the level's name."""

    unit: Unit
    toolchain: Toolchain
    level: str
    folder: Path
    options: tuple[str, ...]
    report: bool

    @property
    def variant(self) -> Variant:
        return Variant(self.toolchain.isa, self.toolchain.compiler, self.level.lower())

    @property
    def command(self) -> Command:
        return self.unit.commands[self.toolchain.isa]

    @property
    def is_done(self) -> bool:
        return (self.folder / f"{self.level}.done").exists()

    def compile_argv(self) -> list[str]:
        text = f"{self.toolchain.macro_class(self.level)}.i"
        argv = self.toolchain.compile_argv(self.command, self.level, text, f"{self.level}.s")
        reporting = (
            inlining_flags(self.toolchain.family, Path(f"{self.level}.inlined")) if self.report else ()
        )
        return [*argv, *self.options, *self._hiding(), *reporting]

    def _hiding(self) -> list[str]:
        """Debug information would name the private folder."""
        return [f"-fdebug-prefix-map={self.folder}=."] if "-g1" in self.options else []

    def assemble_argvs(self) -> list[list[str]]:
        return self.toolchain.assemble_argvs(self.command, f"{self.level}.s", f"{self.level}.o")

    def shell_line(self) -> str:
        compile_line = f"{shlex.join(self.compile_argv())} 2> {self.level}.said"
        assemble_line = f"{shlex.join(self.assemble_argvs()[0])} 2> /dev/null"
        return f"{compile_line} && {assemble_line} && : > {self.level}.done || exit"

    def result(self) -> CompiledUnit:
        said = [self.folder / f"{self.level}.{suffix}" for suffix in ("said", "inlined")]
        return CompiledUnit(
            variant=self.variant,
            flags=self.toolchain.arguments(self.command, self.level),
            assembly=(self.folder / f"{self.level}.s").read_bytes(),
            object=(self.folder / f"{self.level}.o").read_bytes(),
            inlining="".join(file.read_text(errors="replace") for file in said if file.exists()),
        )


def _run_script(
    lines: Sequence[str], toolchain: Toolchain, folder: Path, limits: Limits, *, cwd: Path
) -> None:
    """Run commands in one go, up to the first that fails."""
    script = "\n".join([f"ulimit -t {math.ceil(limits.time_s)}", *lines, ""])
    together = replace(limits, time_s=limits.time_s * len(lines))
    run(["sh"], cwd=cwd, limits=together, env=toolchain.environment(folder), stdin=script.encode())


def out_of_patience(unit: Unit, variant: str, failures: Sequence[Failure]) -> Failure | None:
    """A failure for what is not even tried, once two calls of a unit ran out of time."""
    late = [failure for failure in failures if failure.cause == "timeout"]
    if len(late) < _PATIENCE:
        return None
    reason = f"not tried: {_PATIENCE} calls for this unit had run out of time"
    return replace(late[-1], unit=unit.id, variant=variant, command="", tail=reason)


def _run_alone(job: _Job, limits: Limits) -> Failure | None:
    """Compile one level by itself, to learn what is wrong with it."""
    call = _Call(job.unit, job.toolchain, str(job.variant), job.folder, limits)
    completed, failure = call.run("compile", job.compile_argv(), cwd=job.folder)
    if failure:
        return failure
    (job.folder / f"{job.level}.said").write_bytes(completed.stderr)
    for argv in job.assemble_argvs():
        _, failure = call.run("assemble", argv, cwd=job.folder)
        if not failure:
            break
    return failure


@dataclass(frozen=True)
class _Call:
    """What the calls for one variant have in common."""

    unit: Unit
    toolchain: Toolchain
    variant: str
    folder: Path
    """Private, for outputs and temporary files."""
    limits: Limits

    def run(self, stage: FailureStage, argv: Sequence[str], *, cwd: Path) -> tuple[Completed, Failure | None]:
        env = self.toolchain.environment(self.folder)
        try:
            completed = run(argv, cwd=cwd, limits=self.limits, env=env)
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
        root = self.unit.commands[self.toolchain.isa].root
        text = text.replace(str(self.folder), "$TMP").replace(str(root), ".")
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
