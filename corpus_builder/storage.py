"""Where a corpus lies: a folder, or any URL that fsspec knows (s3://, gs://, az://, ...).

In: a path or URL as text, and a folder of finished files. Out: a location with pathlib's manners, and those
files under it.
Invariant: a corpus exists once its `index.json` does, so the index goes first and comes back last: whoever
reads meanwhile finds no corpus, never half of one.
Cost: publishing into a folder of the same file system moves names; anything else copies every byte once.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, TypeAlias

from corpus_builder.errors import ConfigError, OutputError, ShardError

if TYPE_CHECKING:
    from upath import UPath

Location: TypeAlias = "Path | UPath"
INDEX_FILE = "index.json"
STALE = ("*-[0-9]*.tar", "*-[0-9]*.tar.zst", "licenses/*/*", "patches/*/*/*", "failures.jsonl")
"""What an earlier corpus may have left, as patterns relative to its location."""
_COPY_BYTES = 1 << 22
_RESUME = "what was finished before is intact, the same command goes on from there"
_REMOTE_REMEDY = (
    "check the URL, that its bucket exists, the endpoint (AWS_ENDPOINT_URL for s3://) and the credentials in "
    "the environment"
)


def location(text: str | Path) -> Location:
    """A path, or a URL as a path of its file system; `file://` is a path.

    Raises:
        ConfigError: nothing is installed for this kind of URL.
    """
    scheme, mark, rest = str(text).partition("://")
    if not mark:
        return Path(text)
    if scheme in ("file", "local"):
        return Path(rest)
    from upath import UPath  # 40 ms that a folder need not wait for

    try:
        found = UPath(str(text))
        _ = found.fs  # loads the library that speaks this protocol
        return found
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"cannot use {text}: {error}",
            remedy="give a folder, or install the fsspec library for this URL, e.g. s3fs for s3://",
        ) from None
    except Exception as error:  # each protocol's library has its own errors for settings it cannot use
        raise ConfigError(f"cannot use {text}: {_reason(error)}", remedy=_REMOTE_REMEDY) from None


@contextmanager
def atomic_output(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` whole and synced, or not at all.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the path and its permissions"
        raise OutputError(f"cannot write {path}: {error.strerror}", remedy=f"{remedy}; {_RESUME}") from error
    finally:
        with suppress(OSError):  # what went wrong above is what counts
            temporary.unlink()


@contextmanager
def reading(place: Location) -> Iterator[None]:
    """Failures of a remote file system, under whatever name its library gives them, become a ShardError.

    FileNotFoundError passes: what a missing file means is the caller's to say.

    Raises:
        ShardError: the location cannot be reached or read.
    """
    try:
        yield
    except (FileNotFoundError, ShardError):
        raise
    except Exception as error:
        if isinstance(place, Path) and not isinstance(error, OSError):
            raise  # a local file raises OSError alone
        remedy = "check the path and its permissions" if isinstance(place, Path) else _REMOTE_REMEDY
        raise ShardError(f"cannot read {place}: {_reason(error)}", remedy=remedy) from error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def publish(staging: Path, target: Location, *, stale: Sequence[str] = STALE) -> None:
    """Put a finished corpus, all files below `staging`, in the place of the one at `target`.

    `staging` is gone afterwards. What matches `stale` at the target and is not of the new corpus is removed.

    Raises:
        OutputError: the target cannot be reached or written; `staging` still holds what was not yet moved.
    """
    files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    names = [file.as_posix() for file in files if file.as_posix() != INDEX_FILE]
    try:
        (target / INDEX_FILE).unlink(missing_ok=True)
        _remove_stale(target, stale, set(names))
        for batch in (names, [INDEX_FILE]):
            if isinstance(target, Path):
                _move(staging, target, batch)
            else:
                _upload(staging, target, batch)
        shutil.rmtree(staging)
    except Exception as error:
        if isinstance(target, Path) and not isinstance(error, OSError):
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        remedy = "check the folder's permissions" if isinstance(target, Path) else _REMOTE_REMEDY
        raise OutputError(
            f"cannot put the corpus into {target}: {_reason(error)}",
            remedy=f"{'free some space' if full else remedy}; {_RESUME}",
        ) from error


def _remove_stale(target: Location, patterns: Iterable[str], keep: set[str]) -> None:
    for pattern in patterns:
        for name in _matching(target, pattern):
            if name not in keep:
                (target / name).unlink()


def _matching(target: Location, pattern: str) -> list[str]:
    """The files that match, as names relative to the target."""
    if isinstance(target, Path):
        return [path.relative_to(target).as_posix() for path in target.glob(pattern) if path.is_file()]
    target.fs.invalidate_cache()  # a listing may be remembered from before another program wrote there
    return [
        PurePosixPath(path).relative_to(target.path).as_posix()
        for path in target.fs.glob(str((target / pattern).path))
    ]


def _move(staging: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(staging / name, target / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with open(staging / name, "rb") as source, atomic_output(target / name) as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)


def _upload(staging: Path, target: "UPath", names: Iterable[str]) -> None:
    """All at once: the library sends several at a time. An object appears when all of it has arrived."""
    pairs = [(str(staging / name), str((target / name).path)) for name in names]
    if pairs:
        sources, destinations = map(list, zip(*pairs, strict=True))
        target.fs.put(sources, destinations)
