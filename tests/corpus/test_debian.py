"""Debian sources through the real apt and dpkg-source, from an archive made here; no network."""

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corpus_builder.config import DebianSource, Project
from corpus_builder.debian import (
    download,
    dsc_sha256,
    from_deb822,
    from_list,
    unpack,
    versions,
)
from corpus_builder.errors import SourceError, TamperedSource
from corpus_builder.licenses import file_license, project_license
from corpus_builder.pipeline import build
from corpus_builder.sources import content_sha256, fetch
from samples import a_config

TOOLS = ("apt-get", "dpkg-source", "dpkg-scansources")
pytestmark = [
    pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed") for tool in TOOLS
]

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 A
License: Expat

Files: third/*
Copyright: 2019 B
License: GPL-2+
"""
PATCH = "--- a/add.c\n+++ b/add.c\n@@ -1 +1 @@\n-int add;\n+int patched;\n"


class Archive:
    """A flat apt archive of source packages, and an apt configuration that knows nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = folder / "pool"
        self.pool.mkdir(parents=True)
        (folder / "parts").mkdir()
        (folder / "parts" / "own.list").write_text(f"deb [trusted=yes] file:{self.pool} ./\n")
        config = f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{folder}/parts/";\n'
        (folder / "apt.conf").write_text(config)

    def put(self, version: str) -> None:
        """Make a source package with one patch, and list it."""
        upstream = version.rpartition(":")[2].rpartition("-")[0]
        tree = self.folder / "work" / f"demo-{upstream}"
        files = {
            "add.c": "int add;\n",
            "third/b.c": "int b(int x) { return x + 1; }\n",
            "debian/source/format": "3.0 (quilt)\n",
            "debian/control": "Source: demo\nMaintainer: A <a@example.org>\n\n"
            "Package: demo\nArchitecture: any\nDescription: a demo\n",
            "debian/changelog": f"demo ({version}) stable; urgency=low\n\n  * First.\n\n"
            " -- A <a@example.org>  Mon, 01 Jan 2024 00:00:00 +0000\n",
            "debian/copyright": COPYRIGHT,
            "debian/patches/series": "fix.patch\n",
            "debian/patches/fix.patch": PATCH,
        }
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        os.symlink("/etc/hostname", tree / "leak.c")
        os.symlink("add.c", tree / "same.c")
        orig = tree.parent / f"demo_{upstream}.orig.tar.gz"
        names = [f"demo-{upstream}/{name}" for name in ("add.c", "third", "leak.c", "same.c")]
        subprocess.run(["tar", "czf", orig, *names], cwd=tree.parent, check=True)
        subprocess.run(["dpkg-source", "-b", tree], cwd=tree.parent, check=True, capture_output=True)
        for file in tree.parent.glob("demo_*"):
            shutil.copy(file, self.pool)
        shutil.rmtree(tree.parent)
        listed = subprocess.run(["dpkg-scansources", "."], cwd=self.pool, check=True, capture_output=True)
        (self.pool / "Sources").write_bytes(listed.stdout)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(tmp_path / "archive")
    made.put("1:1.0-1")
    monkeypatch.setenv("APT_CONFIG", str(made.folder / "apt.conf"))
    return made


def a_source(version: str = "1:1.0-1") -> DebianSource:
    return DebianSource(kind="debian", package="demo", version=version)


def a_debian_project(version: str = "1:1.0-1") -> Project:
    return Project(name="demo", source=a_source(version))


def test_a_package_is_fetched_once_with_its_patches_applied(archive: Archive, tmp_path: Path) -> None:
    project = a_debian_project()
    root = fetch(project, tmp_path / "cache")
    assert (root / "add.c").read_text() == "int patched;\n"
    assert project_license(project, root) == "MIT"
    assert file_license(root, "third/b.c") == "GPL-2.0-or-later"
    shutil.rmtree(archive.pool)
    assert fetch(project, tmp_path / "cache") == root
    assert content_sha256(project, root) == content_sha256(project, root)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["apt", "archives", "sources"]
    assert [path.name for path in (tmp_path / "cache" / "sources").iterdir()] == [root.name]


def test_a_package_can_be_had_without_a_patch(archive: Archive, tmp_path: Path, ray_address: str) -> None:
    """The corpus holds the patch that its code lacks."""
    source = a_source().model_copy(update={"without_patches": ("fix*",)})
    recipe = {"root": ".", "sources": ["third/*.c"]}
    project = Project.model_validate({"name": "demo", "source": source, "recipe": recipe})
    root = fetch(project, tmp_path / "cache")
    assert (root / "add.c").read_text() == "int add;\n"
    assert root != fetch(a_debian_project(), tmp_path / "cache")
    config = a_config(tmp_path, levels=["O2"]).model_copy(update={"projects": (project,)})
    index = build(config, address=ray_address)
    assert index.projects["demo"]["source"]["without_patches"] == ["fix*"]
    assert (tmp_path / "corpus/patches/demo/left-out/fix.patch").read_text() == PATCH
    assert not (tmp_path / "corpus/patches/demo/kept").exists()


def test_links_out_of_a_package_are_removed(archive: Archive, tmp_path: Path) -> None:
    root = fetch(a_debian_project(), tmp_path / "cache")
    assert not (root / "leak.c").is_symlink()
    assert (root / "same.c").read_text() == "int patched;\n"


def test_a_version_that_is_gone_names_those_that_are_there(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has demo 0\.9-1; there is 1:1\.0-1"):
        fetch(a_debian_project("0.9-1"), tmp_path)
    with pytest.raises(SourceError, match="has a source package 'nothing'"):
        download(DebianSource(kind="debian", package="nothing", version="1"), cache=tmp_path)
    assert not list((tmp_path / "archives" / "debian").iterdir())


def test_versions_are_ordered_as_debian_orders_them(archive: Archive, tmp_path: Path) -> None:
    for version in ("1:1.0~rc1-1", "1:1.10-1", "1:1.9-1"):
        archive.put(version)
    assert versions("demo", cache=tmp_path) == ["1:1.10-1", "1:1.9-1", "1:1.0-1", "1:1.0~rc1-1"]


def test_lists_are_fetched_again_for_a_version_that_they_lack(archive: Archive, tmp_path: Path) -> None:
    download(a_source(), cache=tmp_path)
    archive.put("1:2.0-1")
    with pytest.raises(SourceError, match="no archive"):  # the lists are seconds old
        download(a_source("1:2.0-1"), cache=tmp_path)
    two_hours_ago = (tmp_path / "apt" / "updated").stat().st_mtime - 7200
    os.utime(tmp_path / "apt" / "updated", (two_hours_ago, two_hours_ago))
    assert list(download(a_source("1:2.0-1"), cache=tmp_path).glob("*.dsc"))


def test_a_damaged_download_is_refused(archive: Archive, tmp_path: Path) -> None:
    kept = download(a_source(), cache=tmp_path / "cache")
    tar = next(kept.glob("*.orig.tar.gz"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"!")
    (tmp_path / "out").mkdir()
    with pytest.raises(TamperedSource, match=r"demo_1\.0\.orig\.tar\.gz has sha256 .*its \.dsc says"):
        unpack(a_source(), tmp_path / "out", cache=tmp_path / "cache")


def test_an_archive_that_lies_about_a_file_is_refused(archive: Archive, tmp_path: Path) -> None:
    tar = archive.pool / "demo_1.0.orig.tar.gz"
    body = tar.read_bytes()
    tar.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(SourceError, match="cannot be fetched"):
        fetch(a_debian_project(), tmp_path)
    assert not list((tmp_path / "archives" / "debian").iterdir())


def test_the_dsc_identifies_the_package(archive: Archive, tmp_path: Path) -> None:
    listed = archive.pool / "demo_1.0-1.dsc"
    found = dsc_sha256(a_source(), cache=tmp_path)
    assert found == hashlib.sha256(listed.read_bytes()).hexdigest()
    pinned = a_source().model_copy(update={"sha256": found})
    assert download(pinned, cache=tmp_path) == download(a_source(), cache=tmp_path)
    with pytest.raises(TamperedSource, match=rf"sha256 {found}, but the config pins 0000"):
        download(pinned.model_copy(update={"sha256": "0" * 64}), cache=tmp_path)


def test_builds_at_the_same_time_share_one_state(archive: Archive, tmp_path: Path) -> None:
    archive.put("1:2.0-1")
    wanted = [a_source(), a_source("1:2.0-1")] * 4
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda source: download(source, cache=tmp_path), wanted))
    assert len(set(folders)) == 2
    assert all(len(list(folder.iterdir())) == 3 for folder in folders)
    assert {path.name for path in folders[0].parent.iterdir()} == {folder.name for folder in folders}


def test_a_machine_without_archives_is_told_so(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive.folder / "parts" / "own.list").write_text("# deb http://example.org stable main\n")
    with pytest.raises(SourceError, match="has no archives"):
        versions("demo", cache=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="apt-config, which is not installed"):
        versions("demo", cache=tmp_path)


def test_one_line_sources_become_deb_src_lines() -> None:
    text = (
        "# a comment\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://example.org/debian stable main contrib\n"
        "deb-src [arch=amd64 signed-by=/k.gpg] http://example.org/debian stable main contrib\n"
        "  deb\thttp://other.example stable main # noted\n"
        "#deb http://off.example stable main\n"
    )
    assert from_list(text).splitlines() == [
        "deb-src [arch=amd64 signed-by=/k.gpg] http://example.org/debian stable main contrib",
        "deb-src http://other.example stable main # noted",
    ]


def test_deb822_sources_become_deb_src_ones() -> None:
    text = """# made by hand
Types: deb
# a comment between fields
URIs: http://example.org/debian
Suites: stable stable-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example
Suites: ./

Types: deb deb-src
URIs: http://both.example
Suites: ./
"""
    stanzas = from_deb822(text).split("\n\n")
    assert len(stanzas) == 2
    assert stanzas[0].splitlines()[:3] == [
        "Types: deb-src",
        "URIs: http://example.org/debian",
        "Suites: stable stable-updates",
    ]
    assert " .\n abc\n" in stanzas[0]
    assert "both.example" in stanzas[1]
