"""Pinned sources: a project's configuration in, a folder of verified C files and its units out.

Archives are kept in the cache under their sha256 and checked against it before anything is unpacked; a commit
is its own checksum; Debian packages are checked by apt (`debian.py`). Nothing of a project is executed.
Invariant: a folder that `fetch` returns is whole and is exactly what the config pins, because trees are
unpacked under a temporary name and renamed. A folder given as `path` is used in place and never written to.
Everything costs network or disk once; a second call reads one folder entry.
"""

import hashlib
import json
import os
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from corpus_builder import debian, git
from corpus_builder.config import (
    ArchiveSource,
    DebianSource,
    GitSource,
    PathSource,
    Project,
    PypiSource,
    Recipe,
)
from corpus_builder.errors import ConfigError, SourceError, TamperedSource
from corpus_builder.package_index import open_url, sdist_url, without_credentials
from corpus_builder.record import Command, Unit
from corpus_builder.trees import cache_errors, new_folder, sha256_of

_ATTEMPTS = 3
_PAUSE_S = 1.0
_CHUNK_BYTES = 1 << 20


def fetch(project: Project, cache: Path) -> Path:
    """The folder that holds the project's unpacked source, with the recipe's own files written into it.

    Raises:
        SourceError: unreachable, missing or not an archive.
        TamperedSource: its sha256 is not the pinned one.
        ConfigError: the recipe names paths outside the source.
        OutputError: the cache cannot be written.
    """
    if isinstance(project.source, PathSource):
        return _folder_in_place(project, project.source)
    cache = cache.expanduser()
    tree = cache / "sources" / f"{project.name}-{_tree_id(project)}"
    if not tree.is_dir():
        with cache_errors(cache), new_folder(tree) as folder:
            _fill(project, folder, cache)
            _write_files(project, folder)
    return tree.resolve()


def content_sha256(project: Project, root: Path) -> str:
    """Identity of all that a compiler may read from the source: it decides whether old results hold."""
    if not isinstance(project.source, PathSource):
        return _tree_id(project)
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if ".git" not in path.parts and path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode("utf-8", "surrogateescape"))
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def units_of(project: Project, root: Path, isas: Sequence[str]) -> list[Unit]:
    """The C files of the recipe, compiled alike for each instruction set, sorted by path.

    Raises:
        ConfigError: a glob matches nothing, an include folder is missing, or a flag sets the -O level.
    """
    recipe = _recipe(project)
    base = recipe_root(project, root)
    files: set[Path] = set()
    for pattern in recipe.sources:
        matched = {path for path in _matches(project, base, pattern) if path.is_file()}
        if not matched:
            raise ConfigError(
                f"project {project.name}: `sources` glob {pattern!r} matches no file in {base}",
                remedy="check the glob, and `recipe.root`",
            )
        files |= matched
    for pattern in recipe.exclude:
        excluded = _matches(project, base, pattern)
        files = {path for path in files if path not in excluded and not excluded.intersection(path.parents)}
    flags = _unit_flags(project, base)
    sizes = {path.relative_to(base).as_posix(): path.stat().st_size for path in files}
    return [
        Unit(project.name, name, dict.fromkeys(isas, Command(base, ".", name, flags)), sizes[name])
        for name in sorted(sizes)
    ]


def recipe_root(project: Project, root: Path) -> Path:
    """The one folder that `recipe.root` names inside the source; raises ConfigError unless there is one."""
    pattern = _recipe(project).root
    folders = [root] if pattern == "." else [p for p in _matches(project, root, pattern) if p.is_dir()]
    if len(folders) != 1:
        found = ", ".join(sorted(path.relative_to(root).as_posix() for path in folders)) or "none"
        raise ConfigError(
            f"project {project.name}: recipe.root {pattern!r} must match one folder of {root}: {found}",
            remedy="give the folder's path inside the archive, or a glob that matches only it",
        )
    return folders[0]


def _recipe(project: Project) -> Recipe:
    assert project.recipe is not None, "only a project with a recipe has units of its own"
    return project.recipe


def _matches(project: Project, base: Path, pattern: str) -> set[Path]:
    try:
        return set(base.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"project {project.name}: {pattern!r} is not a usable glob: {error}",
            remedy="write it relative to recipe.root",
        ) from None


def _unit_flags(project: Project, base: Path) -> tuple[str, ...]:
    recipe = _recipe(project)
    for folder in recipe.include:
        if not (base / folder).is_dir():
            raise ConfigError(
                f"project {project.name}: include folder {folder!r} does not exist in {base}",
                remedy="write it relative to recipe.root",
            )
    for flag in recipe.flags:
        if flag.startswith("-O"):
            raise ConfigError(
                f"project {project.name}: recipe.flags sets {flag}",
                remedy="leave it out: the levels come from the corpus's `levels`",
            )
    defines = tuple(f"-D{define}" for define in recipe.defines)
    return (*recipe.flags, *defines, *(f"-I{folder}" for folder in recipe.include))


def _folder_in_place(project: Project, source: PathSource) -> Path:
    folder = source.path.expanduser()
    if not folder.is_dir():
        raise SourceError(f"project {project.name}: folder {folder} does not exist", remedy="check the path")
    if project.recipe and project.recipe.files:
        raise ConfigError(
            f"project {project.name}: recipe.files cannot be written into {folder}, which is used in place",
            remedy="put the files there yourself, or give the source as an archive",
        )
    return folder.resolve()


def _tree_id(project: Project) -> str:
    source, recipe = project.source, project.recipe
    assert not isinstance(source, PathSource)
    parts: list[object]
    if isinstance(source, GitSource):
        parts = [source.commit]
    elif isinstance(source, DebianSource):
        parts = [
            source.package,
            source.version,
            *([source.without_patches] if source.without_patches else []),
        ]
    else:
        parts = [source.sha256]
    parts += [recipe.root, sorted(recipe.files.items())] if recipe else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _verified_archive(project: Project, source: PypiSource | ArchiveSource, folder: Path) -> Path:
    """A local file whose sha256 is the pinned one, downloaded unless the cache holds it undamaged."""
    if isinstance(source, ArchiveSource) and not urlsplit(source.location).scheme:
        local = Path(source.location).expanduser()
        if not local.is_file():
            raise SourceError(f"project {project.name}: {local} does not exist", remedy="check `location`")
        _check_sha256(project, str(local), source.sha256, sha256_of(local))
        return local
    cached = folder / source.sha256
    if cached.is_file() and sha256_of(cached) == source.sha256:
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    url = source.location if isinstance(source, ArchiveSource) else sdist_url(source.package, source.version)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".download-", delete=False) as stream:
        temporary = Path(stream.name)
    try:
        _check_sha256(project, without_credentials(url), source.sha256, _download(project, url, temporary))
        os.replace(temporary, cached)
    finally:
        temporary.unlink(missing_ok=True)
    return cached


def _check_sha256(project: Project, origin: str, pinned: str, found: str) -> None:
    if found != pinned:
        raise TamperedSource(
            f"project {project.name}: {origin} has sha256 {found}, but the config pins {pinned}",
            remedy="find out why it changed; only if the new content is right, pin the new sha256",
        )


def _download(project: Project, url: str, target: Path) -> str:
    """Copy a URL into a file and return its sha256; a failing server gets three chances."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _copy(url, target)
        except (urllib.error.URLError, TimeoutError, ConnectionError, EOFError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == _ATTEMPTS:
                raise SourceError(
                    f"project {project.name}: cannot fetch {without_credentials(url)}: {error}",
                    remedy="check the location and the network; fetched projects are kept in the cache",
                ) from None
            time.sleep(attempt * _PAUSE_S)
    raise AssertionError("unreachable")


def _copy(url: str, target: Path) -> str:
    digest = hashlib.sha256()
    with open_url(url) as response, open(target, "wb") as stream:
        expected = response.headers.get("Content-Length")
        while chunk := response.read(_CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
        if expected is not None and stream.tell() != int(expected):
            raise EOFError(f"connection closed after {stream.tell()} of {expected} bytes")
    return digest.hexdigest()


def _fill(project: Project, folder: Path, cache: Path) -> None:
    """Put the pinned source into an empty folder."""
    source = project.source
    if isinstance(source, GitSource):
        git.checkout(source, folder)
    elif isinstance(source, DebianSource):
        debian.unpack(source, folder, cache=cache)
    else:
        assert not isinstance(source, PathSource)
        _extract(_verified_archive(project, source, cache / "archives"), folder, project)


def _write_files(project: Project, folder: Path) -> None:
    if project.recipe is None:
        return
    base = recipe_root(project, folder)
    for name, text in project.recipe.files.items():
        _inside(base, name, project).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text, encoding="utf-8")


def _extract(archive: Path, folder: Path, project: Project) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    _inside(folder, name, project)
                members.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise SourceError(
            f"project {project.name}: {archive} cannot be unpacked: {error}",
            remedy="it must be a whole tar or zip archive whose members stay inside it",
        ) from None


def _inside(base: Path, name: str, project: Project) -> Path:
    """`base/name`, refused when it would lie outside `base`."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise SourceError(
            f"project {project.name}: path {name!r} leads out of the source",
            remedy="use a relative path without '..'",
        )
    return base / parts
