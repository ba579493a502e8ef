"""A Debian source without some of its patches: what a fix changed shows by building with it and without.

In: an unpacked source with no patch applied yet, and globs over the names in its `debian/patches/series`.
Out: the same source with all other patches applied in their order, and a series that marks those left out.
Invariant: a patch goes on exactly (no fuzz), or the source is refused. A patch that a later one builds on
stays applied, however its name is. Nothing is taken off by a reverse patch, which fails where two patches of
one file follow each other, or where one patch file holds several commits.
Cost: each try applies the series to copies of the files that it touches, 5 ms a patch.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from corpus_builder.errors import ConfigError, SourceError
from corpus_builder.process import Limits, run

_SERIES = Path("debian/patches/series")
_LEFT_OUT = "#without "
_TOUCHED = re.compile(r"^(?:(?:---|\+\+\+) [^/\s]+/|rename (?:from|to) )(\S+)", re.MULTILINE)
# What dpkg-source passes: exact context, no questions, files that become empty are removed.
_PATCH = ("patch", "-p1", "-F0", "-N", "-t", "-u", "-E", "-s", "--no-backup-if-mismatch", "--reject-file=-")
_LIMITS = Limits(time_s=60, memory_mib=2048, output_mib=256)


def apply_others(root: Path, globs: Sequence[str], *, package: str) -> None:
    """Apply the series but for the patches that match one of the globs; those it cannot do without stay in.

    `package` is its name in messages.

    Raises:
        ConfigError: a glob matches no patch.
        SourceError: the package has no series, or it does not apply.
    """
    names = applied(root)
    out = {name for name in names if _matches(name, globs)}
    for glob in globs:
        if not any(_matches(name, [glob]) for name in names):
            raise ConfigError(
                f"without_patches: {glob!r} matches no patch of {package}",
                remedy=f"its series has {', '.join(names) or 'none'}",
            )
    touched = {name: _touched(root, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="asmtrain-patches-") as folder:
        scratch = Path(folder)

        def failing(without: set[str]) -> str:
            return _try(root, scratch, [name for name in names if name not in without], touched)

        stays = []
        while failed := failing(out):
            below = names[: names.index(failed)]
            needed = [name for name in below if name in out and touched[name] & touched[failed]]
            if not needed:
                raise SourceError(
                    f"patch {failed} of {package} does not apply", remedy="leave `without_patches` out"
                )
            out.remove(needed[-1])
            stays.append(needed[-1])
        for name in stays:  # in the same file, but perhaps not what was missing
            out |= set() if failing(out | {name}) else {name}
        failing(out)
        _put_back(scratch, root, set().union(*touched.values()))
    lines = (f"{_LEFT_OUT}{name}\n" if name in out else f"{name}\n" for name in names)
    (root / _SERIES).write_text("".join(lines))


def applied(root: Path) -> list[str]:
    """The names in the series, in their order; empty for a source without any."""
    if not (root / _SERIES).is_file():
        return []
    lines = (root / _SERIES).read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def left_out(root: Path) -> list[str]:
    """The patches that `apply_others` left out."""
    lines = (root / _SERIES).read_text().splitlines() if (root / _SERIES).is_file() else []
    return [line.removeprefix(_LEFT_OUT) for line in lines if line.startswith(_LEFT_OUT)]


def kept(root: Path, globs: Sequence[str]) -> list[str]:
    """The patches that match and are applied nevertheless, for later ones build on them."""
    return [name for name in applied(root) if _matches(name, globs)]


def text(root: Path, name: str) -> bytes:
    """A patch as it lies in the package."""
    return (root / _SERIES.parent / name).read_bytes()


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _touched(root: Path, name: str) -> set[str]:
    """Files that a patch may change, inside the source."""
    found = set(_TOUCHED.findall(text(root, name).decode(errors="replace")))
    return {path for path in found if not {"..", "/"} & set(PurePosixPath(path).parts)}


def _try(root: Path, scratch: Path, names: Sequence[str], touched: dict[str, set[str]]) -> str:
    """Apply patches to copies of the files they touch; the first that fails, or nothing."""
    shutil.rmtree(scratch)
    scratch.mkdir()
    for path in set().union(*touched.values()):
        if (root / path).is_file():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, scratch / path, follow_symlinks=False)
    for name in names:
        argv = [*_PATCH, "-i", str((root / _SERIES.parent / name).resolve())]
        if not run(argv, cwd=scratch, limits=_LIMITS, env={**os.environ, "LC_ALL": "C.UTF-8"}).ok:
            return name
    return ""


def _put_back(scratch: Path, root: Path, paths: set[str]) -> None:
    """Replace the files; all of one age, as dpkg-source leaves them, lest make thinks one out of date."""
    now = None
    for path in sorted(paths):
        (root / path).unlink(missing_ok=True)
        if (scratch / path).is_symlink() or (scratch / path).is_file():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(scratch / path, root / path, follow_symlinks=False)
            now = now or (root / path).lstat().st_mtime
            os.utime(root / path, (now, now), follow_symlinks=False)
