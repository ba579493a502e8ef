"""Splits: shares, stability, and lineages of projects that share code."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.config import Project, SplitConfig
from corpus_builder.errors import ConfigError
from corpus_builder.split import MIN_BYTES, SHARED_VOTES, assign_splits, file_hashes, lineages_of
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


def hashes(*names: str) -> frozenset[str]:
    return frozenset(f"{name}.0" for name in names)


def test_projects_that_share_files_share_a_split() -> None:
    everyone = projects(60)
    vendored = hashes("inflate", "deflate", "trees")
    files = {project.name: hashes(f"{project.name}-a", f"{project.name}-b") for project in everyone}
    for name in ("project3", "project17", "project41"):
        files[name] |= vendored
    splits = assign_splits(everyone, SplitConfig(valid=0.3, test=0.3), files)
    assert splits["project3"] == splits["project17"] == splits["project41"]
    lineages = lineages_of(everyone, files)
    assert lineages["project3"] == lineages["project41"] == "project17"
    assert len(set(lineages.values())) == 58
    alone = assign_splits(everyone, SplitConfig(valid=0.3, test=0.3))
    assert splits.items() - alone.items() <= {(name, splits[name]) for name in ("project3", "project41")}


def test_lineages_are_joined_over_a_third_project() -> None:
    files = {
        "project0": hashes("a", "b", "c"),
        "project1": hashes("a", "b", "c", "d", "e", "f"),
        "project2": hashes("d", "e", "f"),
        "project3": hashes("a", "b", "x"),  # two of them are by chance
    }
    assert lineages_of(projects(4), files) == {
        "project0": "project0",
        "project1": "project0",
        "project2": "project0",
        "project3": "project3",
    }


def test_a_split_fixed_in_a_lineage_is_that_of_all() -> None:
    first, second, third = projects(3)
    fixed = [first, second.model_copy(update={"split": "test"}), third]
    files = {name: hashes("a", "b", "c") for name in ("project0", "project1")}
    assert assign_splits(fixed, SplitConfig(valid=0, test=0), files) == {
        "project0": "test",
        "project1": "test",
        "project2": "train",
    }


def test_two_fixed_splits_in_a_lineage_are_refused() -> None:
    first, second = projects(2)
    fixed = [first.model_copy(update={"split": "train"}), second.model_copy(update={"split": "test"})]
    files = {name: hashes("a", "b", "c") for name in ("project0", "project1")}
    with pytest.raises(ConfigError, match=r"project0 \(train\) and project1 \(test\).*share 3 C files"):
        assign_splits(fixed, SplitConfig(), files)
    named = [project.model_copy(update={"lineage": "zlib"}) for project in fixed]
    with pytest.raises(ConfigError, match="both name 'zlib'"):
        assign_splits(named, SplitConfig(), {})


def test_a_named_lineage_joins_what_shares_nothing() -> None:
    named = [project.model_copy(update={"lineage": "bsd"}) for project in projects(40)]
    assert len(set(assign_splits(named, SplitConfig(valid=0.3, test=0.3)).values())) == 1


@given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=6), min_size=1, max_size=8))
def test_lineages_agree_with_a_naive_search(sets: list[frozenset[str]]) -> None:
    everyone = projects(len(sets))
    files = {project.name: hashes(*names) for project, names in zip(everyone, sets, strict=True)}
    group = {project.name: {project.name} for project in everyone}
    for _ in everyone:  # as many rounds as a chain can be long
        for one, other in itertools.permutations(files, 2):
            if len(files[one] & files[other]) >= SHARED_VOTES:
                group[one] |= group[other]
    assert lineages_of(everyone, files) == {name: min(members) for name, members in group.items()}


def c_text(functions: int) -> str:
    return "".join(f"/* {i} */ int f{i}(int a) {{ return a * {i} + '\"'; }}\n" for i in range(functions))


def test_files_are_known_without_comments_and_spaces(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other", "changed")]
    text = c_text(40)
    assert len(text.encode()) > MIN_BYTES
    styled = "// ours now\n" + text.replace("/* 3 */", "/* 3, kept\n */").replace("{ ", "\n{\n\t")
    for folder, body in zip(folders, (text, styled, text.replace("* 7", "* 8")), strict=True):
        folder.mkdir()
        (folder / "a.c").write_text(body)
        (folder / "small.c").write_text("int x;")
    one, other, changed = (file_hashes(folder) for folder in folders)
    assert one == other != changed
    assert len(one) == 1


def test_what_looks_like_a_comment_in_a_string_is_code(tmp_path: Path) -> None:
    for name, url in (("a", "http://one.example"), ("b", "http://two.example")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.c").write_text(c_text(40) + f'char *url = "{url}";\n')
    assert file_hashes(tmp_path / "a") != file_hashes(tmp_path / "b")


def test_one_large_file_joins_projects(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.c").write_text(c_text(4000))
    files = {"project0": file_hashes(tmp_path / "a"), "project1": file_hashes(tmp_path / "b")}
    assert len(files["project0"]) >= SHARED_VOTES
    assert set(lineages_of(projects(2), files).values()) == {"project0"}
