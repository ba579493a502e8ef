"""One commit of a git repository: URL and full hash in, its files out, without the history.

Invariant: the files are those of exactly that commit, because git checks each object against its hash.
Nothing of the repository is run, neither hooks nor filters. Submodules stay empty, links that lead out go.
Cost: the objects of one commit, where the server gives a commit by its hash; else the whole history.
"""

import os
import shutil
from pathlib import Path

from corpus_builder.config import GitSource
from corpus_builder.errors import SourceError
from corpus_builder.package_index import without_credentials
from corpus_builder.process import Completed, Limits, run
from corpus_builder.trees import remove_outward_links

_LIMITS = Limits(time_s=3600, memory_mib=32768, output_mib=32768)
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    # Rather fail than ask for a password.
    "GIT_TERMINAL_PROMPT": "0",
}
# Fetching needs the user's proxies and credentials; what is checked out must not depend on any setting.
_NO_SETTINGS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
# A hook that starts a build has these; they would point git at the caller's repository.
_CALLERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


def checkout(source: GitSource, folder: Path) -> None:
    """Put the commit's files into an empty folder.

    Raises:
        SourceError: git is missing, the repository cannot be reached, or it lacks the commit.
    """
    _git(source, folder, "init", "--quiet")
    shallow = _try(folder, "fetch", "--quiet", "--no-tags", "--depth=1", "--", source.url, source.commit)
    if not shallow.ok:
        # Many servers give out branches and tags only.
        _git(source, folder, "fetch", "--quiet", "--no-tags", "--", source.url, "+refs/*:refs/fetched/*")
    _git(source, folder, "checkout", "--quiet", "--detach", source.commit)
    head = _git(source, folder, "rev-parse", "HEAD").stdout.decode().strip()
    assert head == source.commit, f"git checked out {head} for {source.commit}"
    shutil.rmtree(folder / ".git")
    remove_outward_links(folder)


def _git(source: GitSource, folder: Path, *arguments: str) -> Completed:
    done = _try(folder, *arguments)
    if not done.ok:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit {done.exit}"
        url = without_credentials(source.url)
        raise SourceError(
            f"cannot fetch commit {source.commit} of {url}: {said.replace(source.url, url)}",
            remedy="check url, commit and network; a private repository needs a credential helper or key",
        )
    return done


def _try(folder: Path, *arguments: str) -> Completed:
    settings = {} if arguments[0] == "fetch" else _NO_SETTINGS
    own = {name: value for name, value in os.environ.items() if name not in _CALLERS}
    try:
        return run(["git", *arguments], cwd=folder, limits=_LIMITS, env={**own, **_ENVIRONMENT, **settings})
    except FileNotFoundError:
        raise SourceError(
            "git sources need git, which is not installed", remedy="install git, or use `archive`"
        ) from None
