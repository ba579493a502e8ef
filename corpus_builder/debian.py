"""Debian source packages at exact versions: package and version in, a folder with the patches applied out.

Works without root, beside the machine's own package lists: apt gets a private state in the cache, whose
deb-src lines are made from the machine's own sources (deb822 files and one-line ones). apt checks the
archive's signature, the lists against it, and each file against the lists; what the cache holds is checked
against the .dsc again before it is unpacked. Links that lead out of the source are removed.

Invariant: `unpack` leaves the whole source or raises. Cost: the lists are fetched once a day at most (10 MB,
2 s), or when a version is asked for that the lists of an hour ago do not have; a package is fetched once.
"""

import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus_builder import patches
from corpus_builder.config import DebianSource
from corpus_builder.errors import SourceError, TamperedSource
from corpus_builder.process import Completed, Limits, run
from corpus_builder.trees import new_folder, remove_outward_links, sha256_of

_LIMITS = Limits(time_s=900, memory_mib=8192, output_mib=8192)
_FRESH_S = 24 * 3600
_RECENT_S = 3600


def unpack(source: DebianSource, folder: Path, *, cache: Path) -> None:
    """Fetch the package unless the cache holds it, and unpack it into an empty folder, patches applied.

    Of `without_patches`, those that later patches build on are applied as well.

    Raises:
        ConfigError: one of `without_patches` matches no patch.
        SourceError: apt is missing, or no archive has that version; the message says which ones there are.
        TamperedSource: a file is not what the package's own .dsc says.
    """
    kept = download(source, cache=cache)
    dsc = _checked_dsc(source, kept)
    folder.rmdir()  # dpkg-source makes it, and refuses one that is there
    skip = ["--skip-patches"] if source.without_patches else []
    done = _tool(["dpkg-source", "--no-copy", *skip, "-x", str(dsc), str(folder)], cwd=kept)
    if not done.ok:
        raise SourceError(
            f"debian package {_named(source)} cannot be unpacked: {_last_words(done)}",
            remedy=f"remove {kept} and try again; a newer dpkg-dev may be needed",
        )
    remove_outward_links(folder)
    if source.without_patches:
        patches.apply_others(folder, source.without_patches, package=_named(source))
        remove_outward_links(folder)


def download(source: DebianSource, *, cache: Path) -> Path:
    """The folder in the cache that holds the package's .dsc and the files it names.

    Raises:
        SourceError: apt is missing, or no archive has that version; the message says which ones there are.
        TamperedSource: the .dsc is not the pinned one.
    """
    kept = cache / "archives" / "debian" / f"{source.package}_{source.version.replace(':', '%3a')}"
    if not kept.is_dir():
        with new_folder(kept) as folder, _lists(cache, wanted=source) as options:
            _fetch(source, folder, options)
    found = sha256_of(_dsc(kept))
    if source.sha256 not in (None, found):
        raise TamperedSource(
            f"debian package {_named(source)}: its .dsc has sha256 {found},"
            f" but the config pins {source.sha256}",
            remedy=f"find out why it changed; remove {kept} to fetch it again",
        )
    return kept


def dsc_sha256(source: DebianSource, *, cache: Path) -> str:
    """The sha256 of the package's .dsc, which names the sha256 of everything else in it."""
    return sha256_of(_dsc(download(source, cache=cache)))


def versions(package: str, *, cache: Path) -> list[str]:
    """The versions of a source package that the machine's archives have, newest first."""
    with _lists(cache) as options:
        return _versions(package, options)


# apt's private state.


@contextmanager
def _lists(cache: Path, *, wanted: DebianSource | None = None) -> Iterator[list[str]]:
    """apt's options for a private state with fresh lists, which stay as they are inside the block."""
    state = cache / "apt"
    for name in ("lists/partial", "archives/partial", "sources"):
        (state / name).mkdir(parents=True, exist_ok=True)
    options = _options(state)
    with open(state / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write_sources(state)
        if _age_s(state) > _FRESH_S or (wanted and _is_worth_an_update(wanted, state, options)):
            _update(state, options)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield options


def _options(state: Path) -> list[str]:
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        # No index on disk: parallel calls would write it at once, and source packages are not in it.
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": state / "sources",
        # apt would change to a user of its own, who cannot write into a home folder.
        "APT::Sandbox::User": "",
        "Acquire::Retries": 3,
        # Lists of packages and translations are not needed.
        "Acquire::Languages": "none",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def _age_s(state: Path) -> float:
    """Since the lists were fetched for the sources that are configured now."""
    stamp = state / "updated"
    try:
        fetched_for = stamp.read_text()
        return time.time() - stamp.stat().st_mtime if fetched_for == _sources_text(state) else float("inf")
    except OSError:
        return float("inf")


def _sources_text(state: Path) -> str:
    return "".join(path.read_text() for path in sorted((state / "sources").iterdir()))


def _is_worth_an_update(source: DebianSource, state: Path, options: list[str]) -> bool:
    return _age_s(state) > _RECENT_S and source.version not in _versions(source.package, options)


def _update(state: Path, options: list[str]) -> None:
    done = _tool(["apt-get", *options, "-qq", "update"], cwd=state)
    # One archive of several may fail; what matters is whether the package is found.
    if not any((state / "lists").glob("*Sources*")):
        raise SourceError(
            f"apt fetched no list of source packages: {_last_words(done)}",
            remedy="check the network, and that /etc/apt names a Debian or Ubuntu archive",
        )
    (state / "updated").write_text(_sources_text(state))


def _write_sources(state: Path) -> None:
    """deb-src lines for every archive that the machine takes packages from."""
    texts = dict(_source_files())
    if not texts:
        raise SourceError(
            "the machine's apt has no archives to take source packages from",
            remedy="name a Debian or Ubuntu archive in /etc/apt/sources.list.d",
        )
    for path in (state / "sources").iterdir():
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = state / "sources" / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def _source_files() -> Iterator[tuple[str, str]]:
    """Name and text of the machine's apt sources, turned into those of source packages."""
    done = _tool(["apt-config", "shell", "A", "Dir::Etc::sourcelist/f", "B", "Dir::Etc::sourceparts/d"])
    places = dict(word.split("=", 1) for word in shlex.split(done.stdout.decode()))
    main, folder = Path(places.get("A", "")), Path(places.get("B", ""))
    parts = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in [main, *parts]:
        converters: dict[str, Callable[[str], str]] = {".list": from_list, ".sources": from_deb822}
        convert = converters.get(path.suffix)
        if convert and path.is_file() and (text := convert(path.read_text(encoding="utf-8"))):
            yield path.name, text


def from_list(text: str) -> str:
    """One-line apt sources as their deb-src lines, each once."""
    lines = []
    for line in text.splitlines():
        kind, *rest = line.split(maxsplit=1)[:2] or [""]
        if kind in ("deb", "deb-src") and rest:
            lines.append(f"deb-src {rest[0].strip()}\n")
    return "".join(dict.fromkeys(lines))


def from_deb822(text: str) -> str:
    """deb822 apt sources with `Types: deb-src`; stanzas that are switched off are left out."""
    from debian.deb822 import Deb822

    stanzas = []
    for stanza in Deb822.iter_paragraphs(text, use_apt_pkg=False):
        if stanza.get("Enabled", "yes").strip().lower() in ("no", "false", "0", "off"):
            continue
        if set(stanza.get("Types", "").split()) & {"deb", "deb-src"}:
            stanza["Types"] = "deb-src"
            stanzas.append(stanza.dump() or "")
    return "\n".join(dict.fromkeys(stanzas))


# Packages.


def _versions(package: str, options: list[str]) -> list[str]:
    from debian.debian_support import Version

    shown = _tool(["apt-cache", *options, "-q", "showsrc", "--only-source", package]).stdout.decode()
    found = {line.split()[1] for line in shown.splitlines() if line.startswith("Version: ")}
    return sorted(found, key=Version, reverse=True)


def _fetch(source: DebianSource, folder: Path, options: list[str]) -> None:
    """Download into a folder; every suite that has the version is tried, for one may have lost its files."""
    found = _versions(source.package, options)
    if source.version not in found:
        raise _not_found(source.package, source.version, found)
    get = ["apt-get", *options, "-qq", "source", "--download-only", "--only-source"]
    answers = []
    for asked in (f"{source.package}={source.version}", *_other_suites(source, get, options)):
        done = _tool([*get, asked], cwd=folder)
        if done.ok:
            return
        answers.append(_last_words(done))
    raise SourceError(
        f"debian package {_named(source)} cannot be fetched: {'; '.join(dict.fromkeys(answers))}",
        remedy="check the network and the archive; fetched packages are kept in the cache",
    )


def _other_suites(source: DebianSource, get: list[str], options: list[str]) -> Iterator[str]:
    shown = _tool(["apt-get", *options, "indextargets", "--format", "$(RELEASE)"]).stdout.decode()
    dsc = f" {source.package}_{source.version.partition(':')[2] or source.version}.dsc "
    for suite in dict.fromkeys(shown.split()):
        asked = f"{source.package}/{suite}"
        if dsc in _tool([*get, "--print-uris", asked]).stdout.decode():
            yield asked


def _not_found(package: str, version: str, found: list[str]) -> SourceError:
    if not found:
        return SourceError(
            f"no archive of this machine has a source package {package!r}",
            remedy="check the name (`apt-cache showsrc`), and the archives named in /etc/apt",
        )
    return SourceError(
        f"no archive of this machine has {package} {version}; there is {', '.join(found)}",
        remedy="pin one of those, or add the old archive (snapshot.debian.org) to apt's sources",
    )


def _checked_dsc(source: DebianSource, folder: Path) -> Path:
    """The .dsc, once each file it names was compared with its sha256."""
    from debian.deb822 import Dsc

    path = _dsc(folder)
    for entry in Dsc(path.read_bytes()).get("Checksums-Sha256", []):
        file = folder / entry["name"]
        found = "none" if not file.is_file() else sha256_of(file)
        if found != entry["sha256"]:
            raise TamperedSource(
                f"debian package {_named(source)}: {file.name} has sha256 {found}, "
                f"but its .dsc says {entry['sha256']}",
                remedy=f"remove {folder}, so that it is fetched again",
            )
    return path


def _dsc(folder: Path) -> Path:
    return next(folder.glob("*.dsc"))


def _named(source: DebianSource) -> str:
    return f"{source.package} {source.version}"


# Tools.


def _tool(argv: list[str], *, cwd: Path = Path("/")) -> Completed:
    try:
        return run(argv, cwd=cwd, limits=_LIMITS, env={**os.environ, "LC_ALL": "C.UTF-8"})
    except FileNotFoundError:
        raise SourceError(
            f"debian sources need {argv[0]}, which is not installed",
            remedy="on Debian and Ubuntu: apt-get install apt dpkg-dev; elsewhere use `archive` or `git`",
        ) from None


def _last_words(done: Completed) -> str:
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("E: ") for line in lines if not line.startswith(("W:", "N:"))]
    telling = [line for line in errors if "Failed to fetch some archives" not in line]
    return "; ".join((telling or lines)[-3:]) or f"exit {done.exit}"
