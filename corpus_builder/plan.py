"""What a build will do: a config in; units with their compilers and the names of their results out.

Probes compilers, fetches sources and, for projects with a build of their own, runs that once for each
instruction set; nothing is replayed. A unit's result is named by a hash of all that goes into it (source,
commands, compilers, levels, limits, this program), so equal names mean equal content.
Projects are resolved side by side, one for each CPU; memory is about 1 KB a unit.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpus_builder import patches
from corpus_builder.config import CorpusConfig, DebianSource, Project
from corpus_builder.probe import check_levels, resolve
from corpus_builder.projects import ResolvedProject, resolve_project
from corpus_builder.record import Failure, Unit
from corpus_builder.split import assign_splits, lineages_of
from corpus_builder.toolchain import Toolchain

# Code that decides what a part holds: a change to it makes parts of earlier builds stale.
_PART_MODULES = (
    "asm", "compile", "csource", "dedup", "definitions", "forkserver", "forms", "licenses", "objects",
    "owntext", "parts", "prepare", "process", "record", "spelling", "statements", "task", "toolchain",
    "worker",
)  # fmt: skip

_SIGNATURE_SETTINGS = {"num_perm", "shingle"}


@dataclass(frozen=True)
class PlannedUnit:
    """A unit, and the name of its part."""

    unit: Unit
    project: Project
    part: str


@dataclass(frozen=True)
class Plan:
    """What a build will do."""

    units: tuple[PlannedUnit, ...]
    """Sorted by unit id."""
    toolchains: tuple[Toolchain, ...]
    notes: tuple[str, ...]
    """Toolchains that fell back to another, and what is left out."""
    projects: tuple[Project, ...]
    """Those that could be fetched, with version and licence."""
    splits: dict[str, str]
    """Project name to split."""
    lineages: dict[str, str]
    """Project name to the lineage it shares its split with."""
    builds: dict[str, dict[str, Any]]
    """Project name to instruction set to how its commands were learned."""
    roots: dict[str, Path]
    """Project name to the folder of its source."""
    failures: tuple[Failure, ...]
    """Projects that could not be fetched or built."""

    def summary(self, config: CorpusConfig) -> dict[str, Any]:
        """What `corpus-builder plan` tells, as JSON can say it."""
        units = Counter(planned.project.name for planned in self.units)
        sizes: Counter[str] = Counter()
        for planned in self.units:
            sizes[planned.project.name] += planned.unit.size_bytes
        compilations = sum(
            len(toolchain.levels(config.levels))
            for planned in self.units
            for toolchain in self.toolchains
            if toolchain.isa in planned.unit.commands
        )
        return {
            "projects": {
                project.name: {
                    "version": project.version,
                    "license": project.license,
                    "split": self.splits[project.name],
                    "units": units[project.name],
                    "source_bytes": sizes[project.name],
                    "builds": self.builds[project.name],
                }
                for project in self.projects
            },
            "toolchains": {toolchain.id: toolchain.version for toolchain in self.toolchains},
            "notes": list(self.notes),
            "failures": [asdict(failure) for failure in self.failures],
            "levels": list(config.levels),
            "units": len(self.units),
            "variants": sum(len(toolchain.levels(config.levels)) for toolchain in self.toolchains),
            "compilations": compilations,
        }


@dataclass(frozen=True)
class Progress:
    """Where a build stands."""

    stage: str
    """`sources`, `units`, `duplicates` or `shards`."""
    done: int
    total: int
    functions: int = 0
    failures: int = 0
    reused: int = 0
    """Units whose part an earlier build left."""
    share: float = 0.0
    """Of the work, by the sizes of the sources: units differ a hundredfold. Reused ones are none."""
    assembly_bytes: int = 0
    compiler_s: float = 0.0
    """CPU time of the compilers."""


def silent(progress: Progress) -> None:
    """Reports to nobody."""


def plan_build(config: CorpusConfig, progress: Callable[[Progress], None] = silent) -> Plan:
    """Find the toolchains, fetch the sources, learn the compile commands; list the units.

    Raises:
        UserFacingError: a toolchain or the config cannot be used, or a source is not what was pinned.
    """
    toolchains, notes = resolve(config.toolchains, config.toolchain_file)
    check_levels(config.levels, toolchains, config.toolchain_file)
    found = _resolve_all(config, toolchains, progress)
    usable = [item for item in found if item.root is not None and not item.note]
    projects = tuple(item.project for item in usable)
    files = {item.project.name: item.files for item in usable}
    common = _part_context(config, toolchains)
    units = [planned for item in usable for planned in _planned(item, common)]
    units.sort(key=lambda planned: planned.unit.id)
    return Plan(
        units=tuple(units),
        toolchains=tuple(toolchains),
        notes=(*notes, *(item.note for item in found if item.note), *_kept_patches(usable)),
        projects=projects,
        splits=dict(assign_splits(projects, config.split, files)),
        lineages=lineages_of(projects, files),
        builds={item.project.name: dict(item.builds) for item in usable},
        roots={item.project.name: item.root for item in usable if item.root},
        failures=tuple(failure for item in found for failure in item.failures),
    )


def _resolve_all(
    config: CorpusConfig, toolchains: Sequence[Toolchain], progress: Callable[[Progress], None]
) -> list[ResolvedProject]:
    """All projects in the config's order; what one raises ends the others too."""
    total = len(config.projects)
    progress(Progress("sources", 0, total))
    found: dict[str, ResolvedProject] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        futures = [pool.submit(resolve_project, project, config, toolchains) for project in config.projects]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                resolved = future.result()
                found[resolved.project.name] = resolved
                progress(Progress("sources", done, total, failures=len(resolved.failures)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[project.name] for project in config.projects]


def _kept_patches(resolved: Sequence[ResolvedProject]) -> Iterator[str]:
    for item in resolved:
        if isinstance(item.project.source, DebianSource) and item.root:
            for name in patches.kept(item.root, item.project.source.without_patches):
                yield f"{item.project.name}: {name} stays applied, for later patches build on it"


def _part_context(config: CorpusConfig, toolchains: Sequence[Toolchain]) -> list[Any]:
    """What decides every part."""
    settings: dict[str, Any] = {
        "levels": True,
        "limits": True,
        "licenses": True,
        "dedup": _SIGNATURE_SETTINGS,
    }
    return [
        _code_sha256(),
        [_fingerprint(toolchain) for toolchain in toolchains],
        config.model_dump(mode="json", include=settings),
        [config.shards.text, config.shards.members],
    ]


def _planned(resolved: ResolvedProject, common: Sequence[Any]) -> Iterator[PlannedUnit]:
    """A project's units, each with the name of its part."""
    project = resolved.project
    described = project.model_dump(mode="json", include={"name", "version", "license", "source"})
    context = [*common, described, resolved.content]
    for unit in resolved.units:
        commands = {
            isa: [command.cwd, command.input, command.flags] for isa, command in unit.commands.items()
        }
        name = digest([context, unit.id, commands])[:32]
        yield PlannedUnit(unit, project, f"{project.name}/{name}.part")


def digest(parts: Any) -> str:
    """The sha256 of anything JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fingerprint(toolchain: Toolchain) -> list[Any]:
    """What decides a compiler's output; where it is installed does not."""
    own = [toolchain.id, toolchain.version, toolchain.target, toolchain.flags, toolchain.assembler]
    return [*own, sorted(toolchain.flag_sets.items())]


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in _PART_MODULES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def part_path(work: Path, part: str) -> Path:
    """Where a build keeps a part."""
    return work / "parts" / part
