"""Splits: projects in, train/valid/test out.

Whole projects are assigned, never functions, so that a test measures code of a codebase the model never saw.
A project's split depends on its own name and the seed alone: adding a project never moves another.
"""

import hashlib
from collections.abc import Sequence

from corpus_builder.config import Project, Split, SplitConfig
from corpus_builder.errors import ConfigError


def assign_splits(projects: Sequence[Project], config: SplitConfig) -> dict[str, Split]:
    """Project name to split: the fixed one, or one drawn by the project's name.

    Raises:
        ConfigError: the shares leave nothing for training.
    """
    if config.valid + config.test >= 1:
        raise ConfigError(
            f"split.valid {config.valid} and split.test {config.test} leave nothing for training",
            remedy="choose shares whose sum is below 1",
        )
    return {project.name: project.split or _drawn(project.name, config) for project in projects}


def _drawn(name: str, config: SplitConfig) -> Split:
    digest = hashlib.sha256(f"{config.seed}/{name}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < config.test:
        return "test"
    return "valid" if share < config.test + config.valid else "train"
