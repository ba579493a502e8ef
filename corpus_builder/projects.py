"""One project from its config to its units: fetched, its licence known, its own build run where it has one.

In: a project's configuration and the instruction sets wanted. Out: the same project with version and licence
filled in, the folder of its source, and its units with their commands; or a failure row.
Invariant: nothing that a project does, or fails to do, costs another one anything. Mistakes in the config and
sources that are not what was pinned are raised: a build must not go on over them.
Cost: the project's own build, once for each instruction set; everything is kept in the cache.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from corpus_builder.buildsite import Builder
from corpus_builder.capture import (
    Capture,
    CaptureFailure,
    capture_project,
    units_of_captures,
    units_of_database,
)
from corpus_builder.config import CorpusConfig, DebianSource, Project
from corpus_builder.debian import dsc_sha256
from corpus_builder.errors import SourceError, TamperedSource
from corpus_builder.licenses import is_permissive, project_license
from corpus_builder.record import Failure, FailureCause, FailureStage, Unit
from corpus_builder.sources import content_sha256, fetch, units_of
from corpus_builder.split import file_hashes
from corpus_builder.toolchain import Toolchain


@dataclass(frozen=True)
class ResolvedProject:
    """A project that can be compiled, or the reason why it cannot."""

    project: Project
    """With version and licence."""
    root: Path | None = None
    """Of its source."""
    units: tuple[Unit, ...] = ()
    builds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """ISA to how its commands were learned: system, mode, exit, commands."""
    content: tuple[str, ...] = ()
    """Identity of all that a compiler may read of it."""
    files: frozenset[str] = frozenset()
    """Hashes of its C files, by which copies of other projects are known."""
    failures: tuple[Failure, ...] = ()
    note: str = ""


def resolve_project(
    project: Project, config: CorpusConfig, toolchains: Sequence[Toolchain]
) -> ResolvedProject:
    """Fetch a project, find its licence, learn its compile commands.

    Raises:
        ConfigError: the config asks for what the source does not have.
        TamperedSource: the source is not what the config pins.
        OutputError: the cache cannot be written.
    """
    try:
        root = fetch(project, config.cache)
    except TamperedSource:
        raise
    except SourceError as error:
        return ResolvedProject(project, failures=(_failure(project, "source", error.message),))
    project = _completed(project, root, config.cache)
    if config.licenses == "permissive" and not is_permissive(project.license):
        note = f"{project.name} is left out: its licence, {project.license}, is not permissive"
        return ResolvedProject(project, root, note=note)
    isas = list(dict.fromkeys(toolchain.isa for toolchain in toolchains))
    content = content_sha256(project, root)
    resolved = ResolvedProject(project, root, content=(content,), files=file_hashes(root))
    if project.recipe is not None:
        units = units_of(project, root, isas)
        return replace(resolved, units=tuple(units), builds={isa: {"mode": "recipe"} for isa in isas})
    try:
        if project.compile_commands is None:
            return _captured(resolved, root, isas, _builder(config, toolchains))
        units = units_of_database(project, root, isas)
    except SourceError as error:
        return replace(resolved, failures=(_failure(project, "capture", error.message),))
    return replace(resolved, units=tuple(units), builds={isa: {"mode": "database"} for isa in isas})


def _completed(project: Project, root: Path, cache: Path) -> Project:
    """The project with what its config leaves to the source."""
    found: dict[str, Any] = {"license": project_license(project, root)}
    if isinstance(project.source, DebianSource):
        sha256 = dsc_sha256(project.source, cache=cache.expanduser())
        found["source"] = project.source.model_copy(update={"sha256": sha256})
        found["version"] = project.version or project.source.version
    return project.model_copy(update=found)


def _builder(config: CorpusConfig, toolchains: Sequence[Toolchain]) -> Builder:
    """Projects are built by the first gcc of the config for each instruction set, where there is one."""
    compilers: dict[str, str] = {}
    for toolchain in toolchains:
        if toolchain.family == "gcc":
            compilers.setdefault(toolchain.isa, toolchain.command[0])
    return Builder(config.cache, config.build_limits, config.sandbox, compilers=compilers)


def _captured(
    resolved: ResolvedProject, root: Path, isas: Sequence[str], builder: Builder
) -> ResolvedProject:
    """The project with the commands of its own build, or with the failures to learn any."""
    project = resolved.project
    made = capture_project(project, root, isas, content_id=resolved.content[0], builder=builder)
    builds = {isa: capture.summary() for isa, capture in made.captures.items()}
    folders = sorted({capture.root.parent.name for capture in made.captures.values()})
    return replace(
        resolved,
        units=tuple(units_of_captures(project.name, made.captures)),
        builds=builds,
        content=(*resolved.content, *folders),
        failures=(
            *(_capture_failure(project, item) for item in made.failures),
            *(row for capture in made.captures.values() for row in _unit_failures(project, capture)),
        ),
    )


def _unit_failures(project: Project, capture: Capture) -> Iterator[Failure]:
    """The C files that the project's own build could not compile for the instruction set it was run for."""
    if capture.isa != capture.origin:
        return
    for file, call in capture.failed.items():
        yield Failure(
            unit=f"{project.name}/{file}",
            variant=capture.isa,
            stage="capture",
            cause="error",
            exit=call.exit,
            command=shlex.join([call.name, *call.argv]),
            tail="the project's own build could not compile it",
        )


def _failure(project: Project, stage: FailureStage, said: str) -> Failure:
    return Failure(unit=project.name, variant="", stage=stage, cause="error", exit=0, command="", tail=said)


def _capture_failure(project: Project, failed: CaptureFailure) -> Failure:
    return Failure(
        unit=project.name,
        variant=failed.isa,
        stage="capture",
        cause=cast(FailureCause, failed.cause),
        exit=failed.exit,
        command=failed.command,
        tail=failed.tail,
    )
