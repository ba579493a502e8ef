from pathlib import Path

import pytest
import yaml

from corpus_builder.config import CorpusConfig, PathSource, load_config
from corpus_builder.errors import ConfigError
from samples import write_config

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "corpus").glob("*.yaml"))


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(CorpusConfig, path, overrides)
    return caught.value.message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(CorpusConfig, path).projects


def test_an_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert refused(path, "levls=[O0]").splitlines()[1:] == [
        "  levls: unknown key (value ['O0']); did you mean 'levels'?"
    ]
    assert "limits.memory_mb: unknown key (value 1); did you mean 'memory_mib'?" in refused(
        path, "limits.memory_mb=1"
    )
    nested = refused(path, "projects.tiny.recipe.includes=[x]")
    assert "projects.0.recipe.includes: unknown key (value ['x']); did you mean 'include'?" in nested
    in_source = refused(path, "projects.tiny.source.paht=/x")
    assert "source.path.paht: unknown key (value '/x'); did you mean 'path'?" in in_source
    assert "did you mean" not in refused(path, "zzzzzz=1")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write_config(tmp_path, levels=["O9"], workers=-1, shards={"samples": 0})
    message = refused(path, "name=null")
    assert message.startswith(f"{path} has 4 mistakes:")
    for dotted in ("levels.0", "workers", "shards.samples", "name"):
        assert f"\n  {dotted}: " in message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    data = yaml.safe_load(path.read_text())
    del data["toolchains"]
    path.write_text(yaml.safe_dump(data))
    assert "toolchains: required, but not given" in refused(path)


def test_overrides_reach_groups_and_list_items(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    overrides = [
        "shards.samples=7",
        "projects.tiny.version='2'",
        "projects.0.source.path=/elsewhere",
        "levels=[Os]",
    ]
    config = load_config(CorpusConfig, path, overrides)
    assert config.shards.samples == 7
    assert config.projects[0].version == "2"
    assert config.projects[0].source == PathSource(kind="path", path=Path("/elsewhere"))
    assert config.levels == ("Os",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels", "not of the form a.b=c"),
        ("levels=[", "not valid YAML"),
        ("projects.none.version=1", "no item 'none' in that list"),
        ("name.inner=1", "'name' is not a group of keys"),
    ],
)
def test_overrides_that_cannot_apply_are_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refused(write_config(tmp_path), override)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- a", "does not hold a YAML mapping"), (None, "cannot read")],
)
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    assert message in refused(path)


def test_projects_must_be_there_and_differ(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert "at least one project" in refused(path, "projects=[]")
    data = yaml.safe_load(path.read_text())
    data["projects"] *= 2
    path.write_text(yaml.safe_dump(data))
    assert "given more than once: tiny" in refused(path)
