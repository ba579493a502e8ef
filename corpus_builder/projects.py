"""One project from its config to its units: fetched, its licence known, its own build run where it has one.

In: a project's configuration and the instruction sets wanted. Out: the same project with version and licence
filled in, the folder of its source, and its units with their commands; or a failure row.
Invariant: nothing that a project does, or fails to do, costs another one anything. Mistakes in the config and
sources that are not what was pinned are raised: a build must not go on over them.
Cost: the project's own build, once for each instruction set; everything is kept in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_builder.capture import CaptureFailure, capture_project, units_of_captures
from corpus_builder.commands import units_of_compile_commands
from corpus_builder.config import Build, CorpusConfig, DebianSource, Project
from corpus_builder.errors import ConfigError, SourceError, TamperedSource
from corpus_builder.licenses import is_permissive, project_license
from corpus_builder.record import Failure, Unit
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
    project = _completed(project, root)
    if config.licenses == "permissive" and not is_permissive(project.license):
        note = f"{project.name} is left out: its licence, {project.license}, is not permissive"
        return ResolvedProject(project, root, note=note)
    isas = list(dict.fromkeys(toolchain.isa for toolchain in toolchains))
    content = content_sha256(project, root)
    resolved = ResolvedProject(project, root, content=(content,), files=file_hashes(root))
    if project.recipe is not None:
        return _replace(resolved, units_of(project, root, isas), dict.fromkeys(isas, {"mode": "recipe"}))
    if project.compile_commands is not None:
        units = units_of_compile_commands(project, root, isas)
        return _replace(resolved, units, dict.fromkeys(isas, {"mode": "compile_commands"}))
    return _captured(resolved, root, config, toolchains)


def _captured(
    resolved: ResolvedProject, root: Path, config: CorpusConfig, toolchains: Sequence[Toolchain]
) -> ResolvedProject:
    """The project with the commands of its own build, or with the failure to learn any."""
    captures = capture_project(
        resolved.project,
        root,
        content=resolved.content[0],
        compilers=build_compilers(toolchains),
        cache=config.cache,
        limits=config.build_limits,
        sandbox=config.sandbox,
    )
    failed = [capture for capture in captures.values() if isinstance(capture, CaptureFailure)]
    good = {isa: item for isa, item in captures.items() if not isinstance(item, CaptureFailure)}
    rows = tuple(_capture_failure(resolved.project, failure) for failure in failed)
    builds = {isa: capture.summary() for isa, capture in good.items()}
    done = _replace(resolved, units_of_captures(resolved.project, good), builds)
    identities = sorted(capture.id for capture in good.values())
    return replace(done, content=(*resolved.content, *identities), failures=rows)


def build_compilers(toolchains: Sequence[Toolchain]) -> dict[str, Toolchain]:
    """For each instruction set the compiler that its projects are built with: gcc where there is one."""
    chosen: dict[str, Toolchain] = {}
    for toolchain in sorted(toolchains, key=lambda item: item.family != "gcc"):
        chosen.setdefault(toolchain.isa, toolchain)
    return chosen
