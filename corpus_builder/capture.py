"""Captured builds: a project's source tree in, the compile commands of its C units out.

The project's own build runs once for an instruction set, on a copy of the source in the cache, with our
compilers first on PATH (`ccwrapper`), in a sandbox: no network, a read-only system, limits on all it does.
Invariant: a folder of the cache that holds capture.json is whole, and is returned at once by a second call;
one without it is a build that was killed, and is made again. A build that fails is data: `CaptureFailure`.
Cost: that of the build, and 13 ms for each call of a compiler.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_builder import buildsite
from corpus_builder.buildsite import Builder, Mode
from corpus_builder.commands import Call, Commands, commands_of, read_database, read_log, retargeted
from corpus_builder.config import Build, Project
from corpus_builder.errors import SourceError, ToolchainError
from corpus_builder.record import Command, Unit
from corpus_builder.trees import cache_errors

# A cross-build that gives less than this share of the units of another build lost something on the way.
_MIN_SHARE = 0.5
# Raised whenever builds are run differently, so that earlier captures are made again.
_FORMAT = "1"


@dataclass(frozen=True)
class CaptureFailure:
    """A build that gave no unit."""

    project: str
    isa: str
    mode: str
    cause: str
    """As `process.Cause`."""
    exit: int
    command: str
    """The shell line that ended it; empty where none was run."""
    tail: str
    """Last lines of what it said."""


@dataclass(frozen=True)
class Capture:
    """What the build of one project for one instruction set gave."""

    project: str
    isa: str
    mode: str
    """`cross`: built for `isa`; `native`: built as for this machine, or for another (`origin`)."""
    origin: str
    """The instruction set that was built for; where it is not `isa`, the commands are re-targeted."""
    system: str
    root: Path
    """The source tree after the build."""
    cause: str
    """Empty for a build that ended well; else the units are those it had compiled."""
    exit: int
    num_calls: int
    commands: tuple[tuple[str, Command], ...]
    """C files relative to `root`, sorted, and how each is compiled."""
    skipped: Mapping[str, int]
    """Inputs of compiler calls that are no units, by kind."""
    tail: str
    """Last lines of the build's output."""

    failed: Mapping[str, Call] = field(default_factory=dict)
    """Files that the build did not compile, with the call that failed."""

    def summary(self) -> dict[str, Any]:
        """What an index keeps of it."""
        kept = ("system", "mode", "origin", "exit", "cause", "num_calls", "skipped")
        return {**{name: getattr(self, name) for name in kept}, "num_commands": len(self.commands)}


@dataclass(frozen=True)
class ProjectCapture:
    """The captures of one project: by instruction set, those that gave units; and what failed on the way."""

    captures: Mapping[str, Capture] = field(default_factory=dict)
    failures: tuple[CaptureFailure, ...] = ()


def capture_project(
    project: Project, tree: Path, isas: Sequence[str], *, content_id: str, builder: Builder
) -> ProjectCapture:
    """Commands for each instruction set: from a cross-build where it gives units, else re-targeted ones.

    `content_id` tells contents of `tree` apart (`sources.content_sha256`).

    Raises:
        ConfigError, ToolchainError, OutputError: as for `capture`.
    """
    build = project.build or Build()
    machine = buildsite.machine_isa()
    make = functools.partial(capture, project, tree, content_id=content_id, builder=builder)
    made = [make(isa, mode="cross") for isa in isas] if build.cross else []
    built = {item.isa: item for item in made if isinstance(item, Capture)}
    most = max((len(item.commands) for item in built.values()), default=0)
    good = {isa: item for isa, item in built.items() if len(item.commands) >= _MIN_SHARE * most}
    if len(good) < len(set(isas)):
        made.append(make(machine, mode="native"))
    failures = tuple(item for item in made if isinstance(item, CaptureFailure))
    native = made[-1] if made and isinstance(made[-1], Capture) and made[-1].mode == "native" else None
    if native and len(native.commands) * _MIN_SHARE > most:
        good = {}
    source = native or max(good.values(), key=lambda item: len(item.commands), default=None)
    if source is None:
        return ProjectCapture({}, failures)
    return ProjectCapture({isa: good.get(isa) or _for_isa(source, isa) for isa in isas}, failures)


def _for_isa(capture: Capture, isa: str) -> Capture:
    if capture.origin == isa:
        return capture
    commands = tuple((file, retargeted(command)) for file, command in capture.commands)
    return Capture(**{**vars(capture), "isa": isa, "mode": "native", "commands": commands})


def units_of_captures(project: str, captures: Mapping[str, Capture]) -> list[Unit]:
    """The units of a project: a file's commands of the same number joined over instruction sets."""
    joined: dict[tuple[str, int], dict[str, Command]] = {}
    for isa, capture in sorted(captures.items()):
        numbers: dict[str, int] = {}
        for file, command in capture.commands:
            numbers[file] = numbers.get(file, 0) + 1
            joined.setdefault((file, numbers[file]), {})[isa] = command
    units = []
    for (file, number), commands in sorted(joined.items()):
        size = (next(iter(commands.values())).root / file).stat().st_size
        units.append(Unit(project, file, commands, size, number))
    return units


def units_of_database(project: Project, tree: Path, isas: Sequence[str]) -> list[Unit]:
    """The units of a compile_commands.json that lies in the source, the same for each instruction set.

    It may come from another machine: files that it names with another folder in front are found in `tree`.

    Raises:
        SourceError: it cannot be read, or names no C file of the source.
    """
    assert project.compile_commands is not None
    path = tree / project.compile_commands
    calls = read_database(path)
    names = {os.path.normpath(os.path.join(call.cwd, word)) for call in calls for word in call.argv}
    mount = _mount_of(names, tree)
    found = commands_of(calls, mount=mount, root=tree) if mount else Commands(())
    commands = tuple((file, retargeted(command)) for file, command in found.units if _is_inside(tree, file))
    if not commands:
        raise SourceError(
            f"project {project.name}: {path} names no C file that is in the source",
            remedy="give one that was made in this source tree, with the files its build generated in place",
        )
    made = Capture(
        project.name, "", "native", "", "database", tree, "", 0, len(calls), commands, found.skipped, ""
    )
    return units_of_captures(project.name, dict.fromkeys(isas, made))


def _mount_of(names: set[str], tree: Path) -> str:
    """The folder that the most absolute names start with, where the rest of the name is in the tree."""
    votes: dict[str, int] = {}
    for name in sorted(names):
        if not name.startswith("/") or not name.endswith(".c"):
            continue
        parts = name.split("/")
        start = next((i for i in range(1, len(parts)) if tree.joinpath(*parts[i:]).is_file()), None)
        if start is not None:
            mount = "/".join(parts[:start])
            votes[mount] = votes.get(mount, 0) + 1
    return max(sorted(votes), key=lambda mount: votes[mount], default="")


def capture(
    project: Project, tree: Path, isa: str, *, content_id: str, builder: Builder, mode: Mode = "cross"
) -> Capture | CaptureFailure:
    """Build a copy of a source tree for one instruction set, or return what an earlier call gave.

    A build that ends with an error, but has compiled units, is a `Capture` that says so.

    Raises:
        ConfigError: the config's `build` cannot be used with this source.
        ToolchainError: the compiler or bubblewrap is not installed.
        OutputError: the cache cannot be written.
    """
    compiler = buildsite.compiler_for(isa, builder.compilers.get(isa))
    if builder.sandbox == "bwrap" and shutil.which("bwrap") is None:
        raise ToolchainError(
            f"project {project.name}: its build needs a sandbox, and bubblewrap is not installed",
            remedy="apt-get install bubblewrap, or set `sandbox: none` to run it unprotected, as you",
        )
    folder = builder.cache.expanduser().resolve() / "captures"
    key = _id(project, isa, mode, content_id=content_id, compiler=compiler, builder=builder)
    folder /= f"{project.name}-{isa}-{mode}-{key}"
    with cache_errors(builder.cache), _locked(folder):
        if not (folder / "capture.json").is_file():
            buildsite.make(project, tree, isa, mode=mode, compiler=compiler, folder=folder, builder=builder)
        return _load(project, folder)


def _load(project: Project, folder: Path) -> Capture | CaptureFailure:
    """What a finished build gave. Its log is read anew each time, so that commands are always today's."""
    data = json.loads((folder / "capture.json").read_text())
    calls = read_log(buildsite.calls_of_make(folder))
    host = frozenset(data["host"])
    read = functools.partial(commands_of, mount=data["mount"], root=folder / "tree")
    found = read(calls, host=host)
    if not found.units and data["mode"] == "native":
        found = read(calls)  # a Makefile that names its compiler itself
    units = tuple(item for item in found.units if _is_inside(folder / "tree", item[0]))
    if not units:
        tail = data["tail"] or "the build compiled no C file of the project"
        kept = {key: data[key] for key in ("isa", "mode", "cause", "exit", "command")}
        return CaptureFailure(project.name, **{**kept, "cause": kept["cause"] or "error"}, tail=tail)
    gone = len(found.units) - len(units)
    skipped = {**found.skipped, **({"gone": gone} if gone else {})}
    keys = ("isa", "mode", "system", "cause", "exit", "tail")
    return Capture(
        project.name,
        origin=data["isa"],
        root=folder / "tree",
        num_calls=len(calls),
        commands=units,
        skipped=skipped,
        failed=found.failed,
        **{key: data[key] for key in keys},
    )


def _is_inside(tree: Path, file: str) -> bool:
    """Whether it is a file of the tree after the build, and no link to one of this machine's."""
    path = tree / file
    return path.is_file() and path.resolve().is_relative_to(tree.resolve())


def _id(project: Project, isa: str, mode: Mode, *, content_id: str, compiler: str, builder: Builder) -> str:
    build = (project.build or Build()).model_dump_json()
    version = buildsite.version_of(compiler)
    parts = [project.name, isa, mode, content_id, build, version, builder.sandbox, _FORMAT]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes a capture; a second waits, and finds it made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
