"""One translation unit through one toolchain: assembly at every -O level.

In: a unit's command, a toolchain, levels. Out: the assembler text and object of each level, with a failure
row for each one that did not get there. Where the source tree is, the project's own commands run. For other
machines it gives one text for each macro class, from which alone they compile.
Invariants: the assembly is what the project's own command gives, byte for byte, either way; compilers write
into a private folder that is gone afterwards; no folder's name is in any result.
Cost: the compilers' own time. One shell runs all levels of a toolchain, and loads each program once
(`forkserver`): a supervised call for each level would add 3 ms to compilations that take 15 to 50. Assembling
proves that a text is whole and gives the sizes; GNU as adds 3 to 6 % to the time. clang's own assembler takes
more than twice as long, so clang's text goes to GNU as too where that is installed: 5 of 2,459 functions of
13 libraries come out some bytes shorter.
"""

import math
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corpus_builder.errors import OutputError, ToolchainError
from corpus_builder.forkserver import Call, script
from corpus_builder.objects import inlining_flags
from corpus_builder.process import Completed, Limits, run
from corpus_builder.record import Command, Failure, FailureCause, FailureStage, Unit, Variant
from corpus_builder.toolchain import Toolchain

_TAIL_LINES = 8
_PATIENCE = 2
# With line numbers asked for, clang adds the hash of each file, which compiling a text cannot know.
_FILE_HASH = re.compile(rb'(\t\.file\t\d+ "[^\n]*") md5 0x[0-9a-f]{32}')


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
        cwd = command.root / command.cwd
        calls = [
            Call(toolchain.preprocess_argv(command, level), cwd, folder / f"{level}.done", folder / level)
            for level in levels
        ]
        _run_calls(calls, toolchain, folder, limits)
        for level, call in zip(levels, calls, strict=True):
            if call.done.exists():
                text: bytes | Failure = (folder / level).read_bytes()
            else:
                text = preprocess_unit(unit, toolchain, level, limits=limits)
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
    levels: Sequence[str],
    *,
    texts: Mapping[str, bytes],
    limits: Limits,
    at_home: bool = False,
    options: Sequence[str] = (),
    report: bool = False,
) -> tuple[list[CompiledUnit], list[Failure]]:
    """Compile and assemble one unit at each level; what fails at one level says nothing of the others.

    `texts` maps macro classes to hermetic texts. `at_home`, in its tree, the unit's own command runs at
    levels without a text, and where a text did not compile. `options` are further compiler arguments that
    move no code; `report` asks for what was inlined.

    Raises:
        ToolchainError: the compiler is not installed on this machine.
        OutputError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        work = _Work(unit, toolchain, folder, options=tuple(options), report=report)
        for macro_class, text in texts.items():
            (folder / f"{macro_class}.i").write_bytes(text)
        jobs = [_Job(work, level, toolchain.macro_class(level) in texts) for level in levels]
        calls = [*(job.compile_call() for job in jobs), *(job.assemble_call() for job in jobs)]
        _run_calls(calls, toolchain, folder, limits)
        compiled: list[CompiledUnit] = []
        failures: list[Failure] = []
        for job in jobs:
            failure = None
            if not job.is_done:
                alone = replace(job, from_text=job.from_text and not at_home)
                failure = out_of_patience(unit, str(job.variant), failures) or _run_alone(alone, limits)
            if failure:
                failures.append(failure)
            else:
                compiled.append(job.result())
        return compiled, failures


def ir_of(
    unit: Unit, toolchain: Toolchain, level: str, *, text: bytes | None, limits: Limits
) -> str | Failure:
    """The unit's LLVM IR as clang's front end gives it, before any optimisation; raises as `compile_unit`.

    Without a text the unit's own command runs, in its tree.
    """
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        folder = Path(name)
        options = ("-emit-llvm", "-Xclang", "-disable-llvm-passes")
        job = _Job(_Work(unit, toolchain, folder, options), level, text is not None)
        (folder / f"{toolchain.macro_class(level)}.i").write_bytes(text or b"")
        call = _Call(unit, toolchain, str(job.variant), folder, limits)
        _, failure = call.run("compile", job.compile_argv(), cwd=job.cwd)
        return failure or job.file("s").read_text(errors="replace")


@dataclass(frozen=True)
class _Work:
    """One unit in one toolchain, and the private folder with its files."""

    unit: Unit
    toolchain: Toolchain
    folder: Path
    options: tuple[str, ...] = ()
    report: bool = False

    @property
    def command(self) -> Command:
        return self.unit.commands[self.toolchain.isa]


@dataclass(frozen=True)
class _Job:
    """One level; its files lie in the folder under its name."""

    work: _Work
    level: str
    from_text: bool
    """Whether the text of its macro class is compiled, and not the unit's own file in its tree."""

    @property
    def variant(self) -> Variant:
        return Variant(self.work.toolchain.isa, self.work.toolchain.compiler, self.level.lower())

    @property
    def is_done(self) -> bool:
        return self.file("done").exists()

    def file(self, suffix: str) -> Path:
        return self.work.folder / f"{self.level}.{suffix}"

    @property
    def cwd(self) -> Path:
        return self.work.folder if self.from_text else self.work.command.root / self.work.command.cwd

    def compile_argv(self) -> list[str]:
        work, output = self.work, str(self.file("s"))
        if self.from_text:
            text = f"{work.toolchain.macro_class(self.level)}.i"
            argv = work.toolchain.compile_argv(work.command, self.level, text, output)
        else:
            argv = work.toolchain.own_argv(work.command, self.level, output)
        argv += work.options
        if "-g1" in work.options:  # debug information would name the private folder
            here = "." if work.command.cwd == "." else f"./{work.command.cwd}"
            argv.append(f"-fdebug-prefix-map={work.folder}={here}")
        if work.report:
            argv += inlining_flags(work.toolchain.family, self.file("inlined"))
        return argv

    def assemble_argvs(self) -> list[list[str]]:
        work = self.work
        return work.toolchain.assemble_argvs(work.command, str(self.file("s")), str(self.file("o")))

    def compile_call(self) -> Call:
        return Call(self.compile_argv(), self.cwd, self.file("compiled"), errors=self.file("said"))

    def assemble_call(self) -> Call:
        return Call(self.assemble_argvs()[0], self.work.folder, self.file("done"))

    def result(self) -> CompiledUnit:
        said = [self.file("said"), self.file("inlined")]
        return CompiledUnit(
            variant=self.variant,
            flags=self.work.toolchain.arguments(self.work.command, self.level),
            assembly=_FILE_HASH.sub(rb"\1", self.file("s").read_bytes()),
            object=self.file("o").read_bytes(),
            inlining="".join(file.read_text(errors="replace") for file in said if file.exists()),
        )


def _run_calls(calls: Sequence[Call], toolchain: Toolchain, folder: Path, limits: Limits) -> None:
    """Run calls in one go, those of each program up to the first that fails."""
    lines = [f"ulimit -t {math.ceil(limits.time_s)}", *script(calls, folder), ""]
    together = replace(limits, time_s=limits.time_s * len(calls))
    run(
        ["sh"],
        cwd=folder,
        limits=together,
        env=toolchain.environment(folder),
        stdin="\n".join(lines).encode(),
    )


def out_of_patience(unit: Unit, variant: str, failures: Sequence[Failure]) -> Failure | None:
    """A failure for what is not even tried, once two calls of a unit ran out of time."""
    late = [failure for failure in failures if failure.cause == "timeout"]
    if len(late) < _PATIENCE:
        return None
    reason = f"not tried: {_PATIENCE} calls for this unit had run out of time"
    return replace(late[-1], unit=unit.id, variant=variant, command="", tail=reason)


def _run_alone(job: _Job, limits: Limits) -> Failure | None:
    """Compile one level by itself, to learn what is wrong with it."""
    work = job.work
    call = _Call(work.unit, work.toolchain, str(job.variant), work.folder, limits)
    completed, failure = call.run("compile", job.compile_argv(), cwd=job.cwd)
    if failure:
        return failure
    job.file("said").write_bytes(completed.stderr)
    for argv in job.assemble_argvs():
        _, failure = call.run("assemble", argv, cwd=job.cwd)
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
