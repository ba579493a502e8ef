"""Sources through a real HTTP server and real git: pinned, tampered, cut off, unreachable, hostile."""

import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_builder.config import Project
from corpus_builder.errors import ConfigError, OutputError, SourceError, TamperedSource
from corpus_builder.package_index import configured_indexes, sdist_url, without_credentials
from corpus_builder.record import Command
from corpus_builder.sources import content_sha256, fetch, units_of
from samples import TINY, a_project

ISAS = ["x86_64"]
MEMBERS = {"demo-1.0/src/a.c": "int a;", "demo-1.0/src/sub/b.c": "int b;", "demo-1.0/include/a.h": ""}


def a_tar(members: dict[str, str] = MEMBERS) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(text)
            tar.addfile(header, io.BytesIO(text.encode()))
    return gzip.compress(stream.getvalue(), mtime=0)


def a_zip(members: dict[str, str] = MEMBERS) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """Serves a folder; keeps what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        handler = functools.partial(_Handler, self, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, path: str, data: bytes) -> str:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return f"{self.url}/{path}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, owner: Server, *arguments: Any, **options: Any) -> None:
        self.owner = owner
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.owner.requests.append((self.path, self.headers["Authorization"]))
        if self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"too little")
        else:
            super().do_GET()

    def guess_type(self, path: Any) -> str:
        json_page = Path(path).name == "index.html" and Path(path).read_bytes().startswith(b"{")
        return "application/vnd.pypi.simple.v1+json" if json_page else super().guess_type(path)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "served")
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def _no_waiting_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corpus_builder.sources._PAUSE_S", 0.0)


@pytest.mark.parametrize("archive", [a_tar(), a_zip()], ids=["tar", "zip"])
def test_an_archive_is_fetched_once_and_unpacked(server: Server, tmp_path: Path, archive: bytes) -> None:
    location = server.put("demo.archive", archive)
    project = a_project(
        {"kind": "archive", "location": location, "sha256": sha256(archive)},
        root="demo-*",
        sources=["src/**/*.c"],
        include=["include"],
        defines=["X=1"],
        flags=["-std=gnu11"],
    )
    root = fetch(project, tmp_path / "cache")
    assert fetch(project, tmp_path / "cache") == root
    assert len(server.requests) == 1
    units = units_of(project, root, ["aarch64", "x86_64"])
    assert [unit.id for unit in units] == ["demo/src/a.c", "demo/src/sub/b.c"]
    command = Command(root / "demo-1.0", ".", "src/a.c", ("-std=gnu11", "-DX=1", "-Iinclude"))
    assert units[0].commands == {"aarch64": command, "x86_64": command}
    assert units[0].size_bytes == len("int a;")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"archives", "sources"}


def test_a_tampered_archive_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    location = server.put("demo.tar.gz", a_tar({"demo-1.0/src/a.c": "evil"}))
    project = a_project({"kind": "archive", "location": location, "sha256": sha256(a_tar())})
    with pytest.raises(TamperedSource) as caught:
        fetch(project, tmp_path / "cache")
    found = sha256((server.folder / "demo.tar.gz").read_bytes())
    assert f"{location} has sha256 {found}, but the config pins {sha256(a_tar())}" in caught.value.message
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    archive = a_tar()
    location = server.put("demo.tar.gz", archive)
    project = a_project({"kind": "archive", "location": location, "sha256": sha256(archive)})
    cached = tmp_path / "cache" / "archives" / sha256(archive)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(archive[:-1])
    assert (fetch(project, tmp_path / "cache") / "demo-1.0").is_dir()
    assert cached.read_bytes() == archive


def test_a_cached_archive_needs_no_network(server: Server, tmp_path: Path) -> None:
    archive = a_tar()
    pinned = {"kind": "archive", "sha256": sha256(archive)}
    fetch(a_project({**pinned, "location": server.put("demo.tar.gz", archive)}), tmp_path)
    elsewhere = a_project({**pinned, "location": "http://127.0.0.1:1/gone.tar.gz"}, files={"config.h": ""})
    assert (fetch(elsewhere, tmp_path) / "config.h").exists()


@pytest.mark.parametrize("path", ["cut/demo.tar.gz", "missing.tar.gz"])
def test_what_cannot_be_fetched_is_one_line(server: Server, tmp_path: Path, path: str) -> None:
    project = a_project({"kind": "archive", "location": f"{server.url}/{path}", "sha256": "0" * 64})
    with pytest.raises(SourceError, match=f"project demo: cannot fetch {server.url}/{path}: "):
        fetch(project, tmp_path / "cache")
    # A page that is not there is not asked for again, a broken connection is.
    assert len(server.requests) == (3 if path.startswith("cut") else 1)
    assert [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()] == []


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    project = a_project({"kind": "archive", "location": "http://127.0.0.1:1/x.tar.gz", "sha256": "0" * 64})
    with pytest.raises(SourceError, match=r"cannot fetch .*Connection refused"):
        fetch(project, tmp_path)


def test_local_archives_are_verified_too(tmp_path: Path) -> None:
    archive = tmp_path / "demo.tar.gz"
    archive.write_bytes(a_tar())
    source = {"kind": "archive", "location": str(archive), "sha256": sha256(a_tar())}
    assert (fetch(a_project(source), tmp_path / "cache") / "demo-1.0").is_dir()
    assert (fetch(a_project({**source, "location": archive.as_uri()}), tmp_path / "cache2")).is_dir()
    with pytest.raises(TamperedSource):
        fetch(a_project({**source, "sha256": "0" * 64}), tmp_path / "cache")
    with pytest.raises(SourceError, match="does not exist"):
        fetch(a_project({**source, "location": str(tmp_path / "none")}, files={"x": ""}), tmp_path / "cache")


@pytest.mark.parametrize(
    "archive",
    [
        a_tar({"../evil.c": "x"}),
        a_zip({"../evil.c": "x"}),
        a_zip({"/evil.c": "x"}),
        b"not an archive",
        a_tar()[:-40],
    ],
    ids=["tar-up", "zip-up", "zip-absolute", "no-archive", "truncated"],
)
def test_hostile_and_broken_archives_leave_nothing(tmp_path: Path, archive: bytes) -> None:
    file = tmp_path / "in" / "demo"
    file.parent.mkdir()
    file.write_bytes(archive)
    project = a_project({"kind": "archive", "location": str(file), "sha256": sha256(archive)})
    with pytest.raises(SourceError, match=r"cannot be unpacked|leads out"):
        fetch(project, tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["demo"]


def test_a_link_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "demo.tar"
    with tarfile.open(file, "w") as tar:
        link = tarfile.TarInfo("escape")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    project = a_project({"kind": "archive", "location": str(file), "sha256": sha256(file.read_bytes())})
    with pytest.raises(SourceError, match="cannot be unpacked"):
        fetch(project, tmp_path / "cache")


def test_recipe_files_are_written_beside_the_source(tmp_path: Path) -> None:
    file = tmp_path / "demo.tar.gz"
    file.write_bytes(a_tar())
    source = {"kind": "archive", "location": str(file), "sha256": sha256(a_tar())}
    files = {"include/config.h": "#define HAVE_X 1\n"}
    first = a_project(source, root="demo-*", files=files)
    root = fetch(first, tmp_path / "cache")
    assert (root / "demo-1.0" / "include" / "config.h").read_text() == files["include/config.h"]
    second = a_project(source, root="demo-*", files={"include/config.h": ""})
    other = fetch(second, tmp_path / "cache")
    assert other != root
    assert (other / "demo-1.0" / "include" / "config.h").read_text() == ""
    assert content_sha256(first, root) != content_sha256(second, other)
    with pytest.raises(SourceError, match="leads out of the source"):
        fetch(a_project(source, files={"../x": ""}), tmp_path / "cache")


def test_a_folder_is_used_in_place_and_watched(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.c").write_text("int a;")
    project = a_project({"kind": "path", "path": str(folder)})
    assert fetch(project, tmp_path / "cache") == folder
    before = content_sha256(project, folder)
    assert content_sha256(project, folder) == before
    (folder / "a.h").write_text("")
    assert content_sha256(project, folder) != before
    with pytest.raises(ConfigError, match="used in place"):
        fetch(a_project({"kind": "path", "path": str(folder)}, files={"x": ""}), tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        fetch(a_project({"kind": "path", "path": str(tmp_path / "none")}), tmp_path)


def test_excluded_folders_and_files_are_left_out() -> None:
    project = a_project({"kind": "path", "path": str(TINY)}, exclude=["queue.c", "check*"])
    assert [unit.file for unit in units_of(project, TINY, ISAS)] == ["ring.c"]


def test_an_excluded_folder_takes_its_files_along(tmp_path: Path) -> None:
    for name in ("a.c", "tests/unit/b.c", "tests/c.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for pattern in ("tests", "tests/**", "**/tests"):
        project = a_project({"kind": "path", "path": str(tmp_path)}, sources=["**/*.c"], exclude=[pattern])
        assert [unit.file for unit in units_of(project, tmp_path, ISAS)] == ["a.c"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"sources": ["*.cc"]}, r"`sources` glob '\*\.cc' matches no file"),
        ({"sources": ["/etc/*.c"]}, "not a usable glob"),
        ({"include": ["nowhere"]}, "include folder 'nowhere' does not exist"),
        ({"flags": ["-O3"]}, "recipe.flags sets -O3"),
        ({"root": "src-*"}, r"recipe.root 'src-\*' must match one folder"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe: dict[str, Any], message: str) -> None:
    project = a_project({"kind": "path", "path": str(TINY)}, **recipe)
    with pytest.raises(ConfigError, match=message):
        units_of(project, TINY, ISAS)


def test_a_project_with_its_own_build_needs_no_recipe(tmp_path: Path) -> None:
    archive = tmp_path / "demo.tar.gz"
    archive.write_bytes(a_tar())
    source = {"kind": "archive", "location": str(archive), "sha256": sha256(a_tar())}
    described = {"name": "demo", "version": "1", "license": "MIT"}
    own = Project.model_validate({**described, "source": source, "build": {}})
    root = fetch(own, tmp_path / "cache")
    assert (root / "demo-1.0" / "src" / "a.c").is_file()
    assert len(content_sha256(own, root)) >= 16
    in_place = Project.model_validate({**described, "source": {"kind": "path", "path": str(root)}})
    assert fetch(in_place, tmp_path / "cache") == root


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Repository":
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "A")
        monkeypatch.setenv(f"{name}_EMAIL", "a@example.org")
    return Repository(tmp_path / "repository")


class Repository:
    """A git repository with three commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet")
        self.commits = [self.commit({"a.c": f"int a = {number};\n"}) for number in range(3)]

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str]) -> str:
        for name, text in files.items():
            (self.folder / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self.git("rev-parse", "HEAD")

    def project(self, commit: str) -> Project:
        return a_project({"kind": "git", "url": str(self.folder), "commit": commit})


def test_a_commit_is_fetched_once_without_its_history(repository: Repository, tmp_path: Path) -> None:
    first, second, _ = (repository.project(commit) for commit in repository.commits)
    roots = [fetch(project, tmp_path / "cache") for project in (first, second)]
    assert [(root / "a.c").read_text() for root in roots] == ["int a = 0;\n", "int a = 1;\n"]
    assert not (roots[0] / ".git").exists()
    assert content_sha256(first, roots[0]) != content_sha256(second, roots[1])
    repository.folder.rename(tmp_path / "gone")
    assert fetch(first, tmp_path / "cache") == roots[0]


def test_a_server_that_refuses_commits_gives_its_history(repository: Repository, tmp_path: Path) -> None:
    # Protocol 0 gives out branches and tags only, as servers do that were told to.
    repository.git("config", "--global", "protocol.version", "0")
    fetched = fetch(repository.project(repository.commits[0]), tmp_path / "cache")
    assert (fetched / "a.c").read_text() == "int a = 0;\n"


def test_a_commit_that_is_not_there_is_one_line(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"cannot fetch commit {'0' * 40} of {repository.folder}: "):
        fetch(repository.project("0" * 40), tmp_path / "cache")
    secret = a_project({"kind": "git", "url": "http://me:word@127.0.0.1:1/x", "commit": "0" * 40})
    with pytest.raises(SourceError, match=r"of http://127\.0\.0\.1:1/x: ") as caught:
        fetch(secret, tmp_path / "cache")
    assert "word" not in str(caught.value)
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_a_repository_runs_nothing_and_leads_nowhere(repository: Repository, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    repository.git("config", "--global", "filter.evil.smudge", f"touch {ran}; cat")
    repository.git("config", "--global", "core.autocrlf", "true")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (hooks / "post-checkout").chmod(0o755)
    repository.git("config", "--global", "core.hooksPath", str(hooks))
    (repository.folder / ".gitattributes").write_text("*.c filter=evil\n")
    (repository.folder / "leak.c").symlink_to("/etc/hostname")
    (repository.folder / "same.c").symlink_to("a.c")
    root = fetch(repository.project(repository.commit({})), tmp_path / "cache")
    assert not ran.exists()
    assert (root / "a.c").read_bytes() == b"int a = 2;\n"
    assert not (root / "leak.c").is_symlink()
    assert (root / "same.c").read_text() == "int a = 2;\n"


def test_a_build_started_by_a_git_hook_is_not_misled(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = repository.project(repository.commits[1])
    monkeypatch.setenv("GIT_DIR", str(repository.folder / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(repository.folder / ".git" / "index"))
    assert (fetch(project, tmp_path / "cache") / "a.c").read_text() == "int a = 1;\n"
    assert (repository.folder / "a.c").read_text() == "int a = 2;\n"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "demo.tar.gz"
    file.write_bytes(a_tar())
    project = a_project({"kind": "archive", "location": str(file), "sha256": sha256(a_tar())})
    with pytest.raises(OutputError, match=r"cannot write .* in the cache"):
        fetch(project, file)


HTML = '<html><a href="../../files/{name}#sha256={sha256}" data-requires-python="&gt;=3">x</a></html>'


def an_index(server: Server, folder: str, *, page: str) -> str:
    server.put(f"{folder}/simple/demo-c/index.html", page.encode())
    return f"{server.url}/{folder}/simple"


def use_indexes(monkeypatch: pytest.MonkeyPatch, *urls: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", urls[0])
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", " ".join(urls[1:]))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.mark.parametrize("style", ["html", "json"])
def test_a_source_distribution_comes_from_pips_index(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    name = "Demo_C-1.0.tar.gz"
    server.put(f"mirror/files/{name}", a_tar())
    others = ["demo_c-1.0.1.tar.gz", "demo_c-1.0-py3-none-any.whl", "demo-c-extra-1.0.tar.gz"]
    if style == "html":
        page = "".join(HTML.format(name=other, sha256="") for other in [*others, name])
    else:
        page = json.dumps({"files": [{"filename": n, "url": f"../../files/{n}"} for n in [*others, name]]})
    index = an_index(server, "mirror", page=page)
    use_indexes(monkeypatch, f"{server.url}/empty/simple/", index)
    assert configured_indexes() == [f"{server.url}/empty/simple/", index]
    assert sdist_url("demo.c", "1.0") == f"{server.url}/mirror/files/{name}"
    pinned = {"kind": "pypi", "package": "demo.c", "version": "1.0", "sha256": sha256(a_tar())}
    assert (fetch(a_project(pinned), tmp_path / "cache") / "demo-1.0").is_dir()


def test_an_index_may_be_a_folder(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    an_index(server, "mirror", page=HTML.format(name="demo-c-1.0.zip", sha256=""))
    use_indexes(monkeypatch, (server.folder / "mirror" / "simple").as_uri())
    assert sdist_url("demo-c", "1.0") == (server.folder / "mirror" / "files" / "demo-c-1.0.zip").as_uri()


def test_credentials_are_used_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    index = an_index(server, "mirror", page="")
    secret = index.replace("http://", "http://me:pass%40word@")
    use_indexes(monkeypatch, secret)
    with pytest.raises(SourceError) as caught:
        sdist_url("demo-c", "2.0")
    assert server.requests == [
        ("/mirror/simple/demo-c/", "Basic " + base64.b64encode(b"me:pass@word").decode())
    ]
    assert "pass" not in str(caught.value)
    assert f"{index}: has no such source distribution" in caught.value.message
    assert without_credentials(secret) == index


def test_each_index_says_why_it_did_not_help(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_indexes(monkeypatch, "http://127.0.0.1:1/simple", f"{server.url}/simple")
    with pytest.raises(SourceError, match=r"of demo-c==1\.0: .*refused.*; .*404") as caught:
        sdist_url("demo-c", "1.0")
    assert "network" in caught.value.remedy


def test_pips_configuration_file_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url =\n  https://a.example\n  https://b.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    indexes = configured_indexes()
    assert indexes[0] == "https://mirror.example/simple"
    assert {"https://a.example", "https://b.example"} <= set(indexes)
