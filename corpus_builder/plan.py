"""What a build will do: a config in; units with their compilers and the names of their results out.

Fetches sources and probes compilers, compiles nothing. A unit's result is named by a hash of all that
goes into it (source, flags, compilers, levels, limits, this program), so equal names mean equal content.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_builder.config import CorpusConfig, Project
from corpus_builder.record import Unit
from corpus_builder.sources import content_sha256, fetch, units_of
from corpus_builder.split import assign_splits
from corpus_builder.toolchain import Toolchain, resolve

# Code that decides what a part holds: a change to it makes parts of earlier builds stale.
_PART_MODULES = (
    "asm", "compile", "csource", "dedup", "parts", "process", "record", "spelling", "toolchain", "worker",
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
    """Toolchains that fell back to another, or are left out."""
    splits: dict[str, str]
    """Project name to split."""

    def summary(self, config: CorpusConfig) -> dict[str, Any]:
        """What `corpus-builder plan` tells, as JSON can say it."""
        units = Counter(planned.project.name for planned in self.units)
        sizes: Counter[str] = Counter()
        for planned in self.units:
            sizes[planned.project.name] += planned.unit.size_bytes
        variants = len(self.toolchains) * len(config.levels)
        return {
            "projects": {
                project.name: {
                    "version": project.version,
                    "license": project.license,
                    "split": self.splits[project.name],
                    "units": units[project.name],
                    "source_bytes": sizes[project.name],
                }
                for project in config.projects
            },
            "toolchains": {toolchain.id: toolchain.version for toolchain in self.toolchains},
            "notes": list(self.notes),
            "levels": list(config.levels),
            "units": len(self.units),
            "variants": variants,
            "compilations": len(self.units) * variants,
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


def silent(progress: Progress) -> None:
    """Reports to nobody."""


def plan_build(config: CorpusConfig, progress: Callable[[Progress], None] = silent) -> Plan:
    """Fetch the sources, find the toolchains, list the units; nothing is compiled.

    Raises:
        UserFacingError: a source, a toolchain or the config cannot be used.
    """
    splits = assign_splits(config.projects, config.split)
    toolchains, notes = resolve(config.toolchains, config.toolchain_file)
    common = [
        _code_sha256(),
        [_fingerprint(toolchain) for toolchain in toolchains],
        config.model_dump(
            mode="json", include={"levels": True, "limits": True, "dedup": _SIGNATURE_SETTINGS}
        ),
    ]
    units: list[PlannedUnit] = []
    for number, project in enumerate(config.projects):
        progress(Progress("sources", number, len(config.projects)))
        root = fetch(project, config.cache)
        described = project.model_dump(mode="json", exclude={"recipe", "split"})
        context = [*common, described, content_sha256(project, root)]
        for unit in units_of(project, root):
            name = digest([context, unit.file, unit.flags])[:32]
            units.append(PlannedUnit(unit, project, f"{project.name}/{name}.part"))
    progress(Progress("sources", len(config.projects), len(config.projects)))
    units.sort(key=lambda planned: planned.unit.id)
    return Plan(tuple(units), tuple(toolchains), tuple(notes), dict(splits))


def digest(parts: Any) -> str:
    """The sha256 of anything JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fingerprint(toolchain: Toolchain) -> list[Any]:
    """What decides a compiler's output; where it is installed does not."""
    return [toolchain.id, toolchain.version, toolchain.target, toolchain.flags]


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in _PART_MODULES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def part_path(output: Path, part: str) -> Path:
    """Where a corpus folder keeps a part."""
    return output / "work" / "parts" / part
