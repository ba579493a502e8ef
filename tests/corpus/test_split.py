from collections import Counter

import pytest

from corpus_builder.config import Project, SplitConfig
from corpus_builder.errors import ConfigError
from corpus_builder.split import assign_splits
from samples import a_project


def projects(number: int) -> list[Project]:
    one = a_project({"kind": "path", "path": "."})
    return [one.model_copy(update={"name": f"project{i}"}) for i in range(number)]


def test_shares_are_kept() -> None:
    counts = Counter(assign_splits(projects(4000), SplitConfig(valid=0.1, test=0.2)).values())
    assert counts["valid"] == pytest.approx(400, abs=80)
    assert counts["test"] == pytest.approx(800, abs=100)


def test_a_project_keeps_its_split_whatever_the_others_are() -> None:
    everyone = assign_splits(projects(200), SplitConfig())
    fewer = assign_splits(list(reversed(projects(200)[50:90])), SplitConfig())
    assert fewer.items() <= everyone.items()


def test_another_seed_moves_projects() -> None:
    assert assign_splits(projects(200), SplitConfig(seed=1)) != assign_splits(projects(200), SplitConfig())


def test_a_fixed_split_wins() -> None:
    fixed = [project.model_copy(update={"split": "valid"}) for project in projects(20)]
    assert set(assign_splits(fixed, SplitConfig(valid=0)).values()) == {"valid"}


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="leave nothing for training"):
        assign_splits(projects(1), SplitConfig(valid=0.5, test=0.5))
