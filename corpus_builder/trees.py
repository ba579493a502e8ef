"""Folders of fetched files: made whole or not at all, and closed to the outside.

In: a place in the cache and a block of code that fills a folder. Out: the filled folder at that place.
Invariant: a folder made by `new_folder` is whole, whenever the machine stops and whoever else makes it at the
same time. Cost: one rename.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus_builder.errors import OutputError


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A temporary folder that becomes `place` when the block ends without an error.

    Where another process made `place` meanwhile, its folder stays.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".unpack-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not place.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """What the system says of the cache, as an error that names it and the remedy.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename or cache} in the cache: {error.strerror or error}",
            remedy="free some space, or point `cache` in the config at another folder",
        ) from error


def remove_outward_links(folder: Path) -> None:
    """Remove links that lead out: each would show a file of this machine to whoever reads the corpus."""
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                path.unlink()


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
