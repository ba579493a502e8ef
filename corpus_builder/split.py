"""Splits: projects in, train/valid/test out.

Whole lineages are assigned, never functions, so that a test measures code of a codebase the model never saw.
A lineage is a set of projects that share code: those that name the same one, and those that carry copies of
the same C files, such as a vendored zlib. Files are the same if they differ in comments and white space only.
Invariant: the projects of a lineage are in one split. It is drawn by the smallest name of the lineage and the
seed, so that adding an unrelated project never moves another one.
Cost: reading the C files once (37 MB/s).
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from corpus_builder.config import Project, Split, SplitConfig
from corpus_builder.errors import ConfigError

MIN_BYTES = 1024
"""Files with less code than this say nothing about where they come from."""
BYTES_PER_VOTE = 32 << 10
"""A file counts once for each of these, so that a library in one large file joins projects, too."""
SHARED_VOTES = 3
"""Projects that share this many files, or as much in larger files, are of one lineage."""


def assign_splits(
    projects: Sequence[Project],
    config: SplitConfig,
    files: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, Split]:
    """Project name to split: the one fixed in its lineage, or one drawn by the lineage's smallest name.

    `files` are the `file_hashes` of each project, by its name.

    Raises:
        ConfigError: the shares leave nothing for training, or projects of one lineage have different splits.
    """
    if config.valid + config.test >= 1:
        raise ConfigError(
            f"split.valid {config.valid} and split.test {config.test} leave nothing for training",
            remedy="choose shares whose sum is below 1",
        )
    lineages = lineages_of(projects, files or {})
    fixed: dict[str, Project] = {}
    for project in sorted(projects, key=lambda project: project.name):
        if project.split:
            other = fixed.setdefault(lineages[project.name], project)
            if other.split != project.split:
                raise _contradiction(other, project, files or {})
    return {
        name: (fixed[lineage].split if lineage in fixed else None) or _drawn(lineage, config)
        for name, lineage in lineages.items()
    }


def lineages_of(projects: Sequence[Project], files: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Project name to the smallest project name of its lineage."""
    from scipy.cluster.hierarchy import DisjointSet

    sets: Any = DisjointSet(sorted(project.name for project in projects))
    named: dict[str, str] = {}
    for project in projects:
        if project.lineage:
            sets.merge(project.name, named.setdefault(project.lineage, project.name))
    known = {project.name for project in projects}
    for (first, second), votes in _shared_votes(files).items():
        if votes >= SHARED_VOTES and {first, second} <= known:
            sets.merge(first, second)
    return {name: min(subset) for subset in sets.subsets() for name in subset}


def file_hashes(root: Path) -> frozenset[str]:
    """What a source's C files are known by; a large file has several."""
    hashes: set[str] = set()
    for path in root.rglob("*.c"):
        if path.is_file() and not path.is_symlink():
            hashes.update(_votes_of(path.read_bytes()))
    return frozenset(hashes)


# Comments, and the literals that may look as if they held one.
_COMMENT = re.compile(
    rb"""/\*.*?\*/ | //[^\n]* | ("(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')""", re.DOTALL | re.VERBOSE
)


def _votes_of(text: bytes) -> list[str]:
    code = b"".join(_COMMENT.sub(rb"\1", text).split())
    if len(code) < MIN_BYTES:
        return []
    name = hashlib.sha256(code).hexdigest()[:32]
    return [f"{name}.{number}" for number in range(1 + len(code) // BYTES_PER_VOTE)]


def _shared_votes(files: Mapping[str, frozenset[str]]) -> Counter[tuple[str, str]]:
    holders: dict[str, list[str]] = defaultdict(list)
    for project in sorted(files):
        for name in files[project]:
            holders[name].append(project)
    shared: Counter[tuple[str, str]] = Counter()
    for projects in holders.values():
        shared.update(combinations(projects, 2))
    return shared


def _contradiction(first: Project, second: Project, files: Mapping[str, frozenset[str]]) -> ConfigError:
    names = {file.partition(".")[0] for file in files.get(first.name, frozenset())}
    shared = names & {file.partition(".")[0] for file in files.get(second.name, frozenset())}
    how = f"they share {len(shared)} C files" if shared else "through projects that share code with both"
    if first.lineage and first.lineage == second.lineage:
        how = f"both name {first.lineage!r}"
    return ConfigError(
        f"projects {first.name} ({first.split}) and {second.name} ({second.split}) are of one lineage: {how}",
        remedy="give both the same split, or leave one project out",
    )


def _drawn(name: str, config: SplitConfig) -> Split:
    digest = hashlib.sha256(f"{config.seed}/{name}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < config.test:
        return "test"
    return "valid" if share < config.test + config.valid else "train"
