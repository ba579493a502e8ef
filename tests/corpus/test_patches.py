"""Sources without some of their patches, by the real patch program."""

import difflib
import shutil
from pathlib import Path

import pytest

from corpus_builder import patches
from corpus_builder.config import CorpusConfig, DebianSource, Project, load_config
from corpus_builder.errors import ConfigError, SourceError
from corpus_builder.sources import content_sha256
from samples import ROOT

pytestmark = pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")

LINES = [f"int f{at}(int x) {{ return x + {at}; }}\n" for at in range(40)]
CVE = ["*CVE*"]


def patch(old: list[str], new: list[str], name: str = "a.c") -> str:
    return "".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))


def with_line(lines: list[str], at: int, text: str) -> list[str]:
    return [*lines[:at], text, *lines[at + 1 :]]


def a_tree(root: Path, series: dict[str, str], **files: str) -> Path:
    """A source with a.c of 40 functions, and patches that are not applied."""
    (root / "debian" / "patches").mkdir(parents=True)
    (root / "a.c").write_text("".join(LINES))
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "debian/patches/series").write_text("# first\n" + "".join(f"{name}\n" for name in series))
    for name, text in series.items():
        (root / "debian/patches" / name).parent.mkdir(exist_ok=True)
        (root / "debian/patches" / name).write_text(text)
    return root


def test_all_but_the_patches_that_match_are_applied(tmp_path: Path) -> None:
    first = with_line(LINES, 2, "int first;\n")
    fixed = with_line(first, 10, "int fixed;\nint more;\n")
    last = with_line(fixed, 30, "int last;\n")
    series = {
        "01-first": patch(LINES, first),
        "sub/CVE-2020-0001.patch": patch(first, fixed),
        "03-last": patch(fixed, last),
    }
    root = a_tree(tmp_path, series)
    patches.apply_others(root, CVE, package="demo")
    expected = with_line(first, 30, "int last;\n")
    assert (root / "a.c").read_text().splitlines(True) == expected
    assert patches.applied(root) == ["01-first", "03-last"]
    assert patches.left_out(root) == ["sub/CVE-2020-0001.patch"]
    assert patches.kept(root, CVE) == []
    assert patches.text(root, "sub/CVE-2020-0001.patch").decode() == series["sub/CVE-2020-0001.patch"]


def test_a_patch_that_a_later_one_builds_on_stays(tmp_path: Path) -> None:
    needed = with_line(LINES, 10, "int needed;\n")
    other = with_line(needed, 20, "int other;\n")
    built = with_line(other, 11, "int built_on_it;\n")
    series = {
        "CVE-1": patch(LINES, needed),
        "CVE-2": patch(needed, other),
        "99-later": patch(other, built),
    }
    root = a_tree(tmp_path, series)
    patches.apply_others(root, CVE, package="demo")
    text = (root / "a.c").read_text()
    assert "int needed;" in text
    assert "int built_on_it;" in text
    assert "int other;" not in text
    assert patches.left_out(root) == ["CVE-2"]
    assert patches.kept(root, CVE) == ["CVE-1"]


def test_a_patch_of_several_commits_to_one_file_is_left_out(tmp_path: Path) -> None:
    """Taken off in reverse it would fail: its second part builds on its first."""
    once = with_line(LINES, 10, "int once;\n")
    twice = with_line(once, 10, "int twice;\n")
    kept = with_line(twice, 30, "int kept;\n")
    series = {"CVE-1": patch(LINES, once) + "\n" + patch(once, twice), "2": patch(twice, kept)}
    root = a_tree(tmp_path, series)
    patches.apply_others(root, CVE, package="demo")
    assert (root / "a.c").read_text().splitlines(True) == with_line(LINES, 30, "int kept;\n")


def test_files_come_and_go_with_their_patches_and_are_of_one_age(tmp_path: Path) -> None:
    made = "--- /dev/null\n+++ b/{}\n@@ -0,0 +1 @@\n+int made;\n"
    gone = "--- a/old.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-int old;\n"
    changed = patch(LINES, with_line(LINES, 3, "int changed;\n"))
    series = {"CVE-1": made.format("fix.c"), "2": made.format("new.c") + gone, "3": changed}
    root = a_tree(tmp_path, series, **{"old.c": "int old;\n"})
    patches.apply_others(root, CVE, package="demo")
    assert sorted(path.name for path in root.glob("*.c")) == ["a.c", "new.c"]
    assert (root / "a.c").stat().st_mtime == (root / "new.c").stat().st_mtime


def test_no_patch_leads_out_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "outside.c").write_text("int b;\n")
    leading = "--- a/../outside.c\n+++ b/../outside.c\n@@ -1 +1 @@\n-int b;\n+int evil;\n"
    fix = patch(LINES, with_line(LINES, 3, "int fix;\n"))
    root = a_tree(tmp_path / "tree", {"CVE-1": fix, "2": leading})
    with pytest.raises(SourceError, match="patch 2 of demo does not apply"):
        patches.apply_others(root, CVE, package="demo")
    assert (tmp_path / "outside.c").read_text() == "int b;\n"


def test_a_glob_that_matches_nothing_is_a_mistake(tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree", {"fix-1": patch(LINES, LINES[1:])})
    with pytest.raises(ConfigError, match=r"'\*CVE\*' matches no patch of demo 1") as caught:
        patches.apply_others(root, ["fix*", "*CVE*"], package="demo 1")
    assert "fix-1" in caught.value.remedy
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="matches no patch"):
        patches.apply_others(tmp_path / "bare", CVE, package="demo")


def test_a_source_with_all_patches_is_what_it_was_before_there_was_a_choice(tmp_path: Path) -> None:
    whole = DebianSource(kind="debian", package="demo", version="1-1")
    assert whole.model_dump() == {"kind": "debian", "package": "demo", "version": "1-1", "sha256": None}
    less = whole.model_copy(update={"without_patches": ("*CVE*",)})
    assert less.model_dump(mode="json")["without_patches"] == ["*CVE*"]
    found = {content_sha256(Project(name="demo", source=source), tmp_path) for source in (whole, less)}
    assert len(found) == 2


def test_the_two_corpora_of_vulnerabilities_differ_in_patches_alone() -> None:
    before, after = (
        load_config(CorpusConfig, ROOT / f"configs/corpus/cve-{state}.yaml") for state in ("before", "after")
    )
    assert all(project.source.without_patches for project in before.projects)  # type: ignore[union-attr]
    whole = [
        project.model_copy(update={"source": project.source.model_copy(update={"without_patches": ()})})
        for project in before.projects
    ]
    assert tuple(whole) == after.projects
    same = {"name", "output", "projects"}
    assert before.model_dump(exclude=same) == after.model_dump(exclude=same)


def test_no_package_with_vulnerabilities_is_trained_on() -> None:
    asked = {
        project.name for project in load_config(CorpusConfig, ROOT / "configs/corpus/cve-after.yaml").projects
    }
    for name in ("demo", "debian"):
        config = load_config(CorpusConfig, ROOT / f"configs/corpus/{name}.yaml")
        assert not asked & {project.name for project in config.projects if project.split in (None, "train")}
