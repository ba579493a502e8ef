"""One run of a project's own build: a source tree in; the built tree, and a log of its compiler calls, out.

The folder of a build holds tree/ (a copy of the source), log/ (build.log, calls.jsonl) and, written last,
capture.json. In the sandbox the tree lies at /build/<project>, whatever the machine, so that paths which a
build writes into its files are the same everywhere. Invariant: the source tree given is never written to.
Cost: that of the build and of copying the tree; objects and programs it made are deleted at the end.
"""

import functools
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from corpus_builder import buildsystem, ccwrapper
from corpus_builder.buildsystem import TRIPLES, BuildPlan, Target, plan_build
from corpus_builder.config import Build, BuildLimitsConfig, Project
from corpus_builder.errors import ToolchainError
from corpus_builder.process import Completed, Jail, Limits, Sandbox, run

Mode = Literal["cross", "native"]

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_COMPILER_NAME = re.compile(r"([a-z0-9_]+-linux-gnu-)?(gcc|cc|clang)(-\d+)?")
_TOOLS = ("ar", "ranlib", "nm", "ld", "strip", "objcopy", "objdump", "as", "readelf")
_TAIL_LINES = 12
_TAIL_BYTES = 1 << 16
_MAKE_MARK = '{"phase": "make"}'


@dataclass(frozen=True)
class Builder:
    """How and where captures are made: the same for all projects of a corpus."""

    cache: Path
    limits: BuildLimitsConfig
    sandbox: Sandbox = "bwrap"
    jobs: int = 1
    compilers: Mapping[str, str] = field(default_factory=dict)
    """ISA to the gcc for it; without one, that of the distribution."""


@dataclass(frozen=True)
class Site:
    """A folder in which one build runs, and where the build itself sees its parts."""

    folder: Path
    source: Path
    plan: BuildPlan | str
    target: Target
    mount: str
    seen: Mapping[str, str]
    """Name of a part to its place for the build."""

    def step_lines(self) -> list[str]:
        """The shell lines of the plan, in order."""
        return [*self.plan.configure, *self.plan.make] if isinstance(self.plan, BuildPlan) else []


def make(
    project: Project, tree: Path, isa: str, *, mode: Mode, compiler: str, folder: Path, builder: Builder
) -> None:
    """Run a project's build in a new folder, and leave there: tree/, log/, and last capture.json.

    Raises:
        ConfigError: the config's `build` cannot be used with this source.
    """
    site = _prepare(project, tree, isa, mode=mode, compiler=compiler, folder=folder, builder=builder)
    _finish(site, _build(site, builder))


def _prepare(
    project: Project, tree: Path, isa: str, *, mode: Mode, compiler: str, folder: Path, builder: Builder
) -> Site:
    _remove(folder)
    for part in ("tree", "log", "tmp", "home", "shm", "files"):
        (folder / part).mkdir(parents=True)
    jailed = builder.sandbox == "bwrap"
    places = {"log": "/asmtrain/log", "bin": "/asmtrain/bin", "files": "/asmtrain/files"}
    places |= {"tmp": "/tmp", "home": "/home/build", "shm": "/dev/shm"}
    seen = {part: place if jailed else str(folder / part) for part, place in places.items()}
    mount = f"/build/{project.name}" if jailed else str(folder / "tree")
    has_cxx = shutil.which(f"{TRIPLES[isa]}-g++", path=_SYSTEM_PATH) is not None
    triple = TRIPLES[machine_isa()]
    target = Target(
        isa, triple, cross=mode == "cross", has_cxx=has_cxx, jobs=builder.jobs, files=seen["files"]
    )
    plan = plan_build(tree, project.build or Build(), target)
    python = Path(os.path.realpath(sys.executable))
    if isinstance(plan, BuildPlan):
        _copy_tree(tree, folder / "tree")
        for name, text in plan.files.items():
            (folder / "files" / name).write_text(text)
        log = f"{seen['log']}/calls.jsonl"
        names = _wrapped_names(isa, compiler)
        ccwrapper.install(str(folder / "bin"), names, python=str(python), seen_at=seen["bin"], log=log)
        _link_tools(folder / "bin", TRIPLES[isa])
        plan = BuildPlan(**{**vars(plan), "folder": plan.folder.relative_to(tree)})
    return Site(folder, tree, plan, target, mount, seen)


def _build(site: Site, builder: Builder) -> Completed:
    """Run the plan's lines, their output in the site's log."""
    if isinstance(site.plan, str):
        return Completed(1, b"", site.plan.encode(), "error")
    limits = builder.limits
    path = f"{site.seen['bin']}:{_SYSTEM_PATH}"
    environment = {
        "PATH": path if builder.sandbox == "bwrap" else f"{path}:{os.environ.get('PATH', '')}",
        "HOME": site.seen["home"],
        "TMPDIR": site.seen["tmp"],
        "LC_ALL": "C",
        "TERM": "dumb",
        "SOURCE_DATE_EPOCH": "0",
        "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
        "KBUILD_BUILD_USER": "asmtrain",
        "KBUILD_BUILD_HOST": "asmtrain",
        **buildsystem.environment(site.target),
    }
    writable = {site.seen[part]: site.folder / part for part in ("log", "tmp", "home", "shm")}
    readable = {site.seen[part]: site.folder / part for part in ("bin", "files")}
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        readable[str(prefix)] = prefix
    jail = Jail(site.mount, writable, readable, processes=limits.processes, disk_mib=limits.disk_mib)
    return run(
        ["sh", "-c", _script(site)],
        cwd=site.folder / "tree",
        limits=Limits(limits.time_s, limits.memory_mib, limits.disk_mib),
        env=environment,
        sandbox=builder.sandbox,
        jail=jail,
    )


def _script(site: Site) -> str:
    """All lines in one shell: the number of each is noted before it runs; the first that fails ends it."""
    assert isinstance(site.plan, BuildPlan)
    log = shlex.quote(site.seen["log"])
    lines = [f"exec >{log}/build.log 2>&1", f"cd {shlex.quote(str(site.plan.folder))} || exit 125"]
    for number, line in enumerate(site.step_lines()):
        if number == len(site.plan.configure):
            lines.append(f"echo '{_MAKE_MARK}' >>{log}/calls.jsonl")
        lines.append(f"echo {number} >{log}/step")
        lines.append(f"( {line}\n) || exit $?")
    return "\n".join(lines)


def _finish(site: Site, outcome: Completed) -> None:
    """Bring the built tree into a shape that can be kept, and write capture.json last."""
    tree = site.folder / "tree"
    _relink(tree, site.mount)
    _drop_objects(tree, site.source)
    lines = site.step_lines()
    step = _text(site.folder / "log" / "step").strip()
    said = _tail(site.folder / "log" / "build.log") or outcome.stderr.decode(errors="replace")
    data = {
        "project": site.folder.name,
        "isa": site.target.isa,
        "mode": "cross" if site.target.cross else "native",
        "system": site.plan.system if isinstance(site.plan, BuildPlan) else "",
        "mount": site.mount,
        "host": sorted(_host_names(site.folder / "bin", site.target.triple)),
        "exit": outcome.exit,
        "cause": outcome.cause,
        "command": lines[int(step)] if step.isdecimal() and int(step) < len(lines) else "",
        "tail": said,
    }
    for part in ("tmp", "home", "shm", "bin", "files"):
        _remove(site.folder / part)
    temporary = site.folder / "capture.json.part"
    with temporary.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(site.folder / "capture.json")


def machine_isa() -> str:
    """The instruction set of this machine."""
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)


def compiler_for(isa: str, name: str | None = None) -> str:
    """Path of the gcc that builds for an instruction set: the one named, or the distribution's.

    Raises:
        ToolchainError: it is not installed.
    """
    names = [name] if name else [f"{TRIPLES[isa]}-gcc", *(["gcc"] if isa == machine_isa() else [])]
    for candidate in names:
        found = shutil.which(candidate)
        if found:
            return found
    package = "gcc" if isa == machine_isa() else f"gcc-{TRIPLES[isa].replace('_', '-')}"
    raise ToolchainError(
        f"no compiler to build for {isa}: {' or '.join(names)} is not installed",
        remedy=f"apt-get install {package}",
    )


@functools.cache
def version_of(compiler: str) -> str:
    """First line of --version."""
    said = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    return said.decode(errors="replace").partition("\n")[0]


def calls_of_make(folder: Path) -> str:
    """The part of a build's log that was written after it was configured; empty if it did not get there."""
    _, mark, after = _text(folder / "log" / "calls.jsonl").partition(_MAKE_MARK)
    return after if mark else ""


def _wrapped_names(isa: str, compiler: str) -> dict[str, str]:
    """Names of compilers to their programs: all that are installed, and the target's usual ones."""
    names: dict[str, str] = {}
    for folder in _SYSTEM_PATH.split(":"):
        for path in sorted(Path(folder).glob("*")) if Path(folder).is_dir() else ():
            if _COMPILER_NAME.fullmatch(path.name):
                names.setdefault(path.name, str(path))
    triple = TRIPLES[isa]
    major = re.search(r"-\d+$", compiler)
    own = [f"{triple}-gcc", f"{triple}-cc", *([f"{triple}-gcc{major[0]}"] if major else [])]
    return {**names, **dict.fromkeys(own, compiler)}


def _host_names(folder: Path, triple: str) -> Iterator[str]:
    """Wrapped compilers other than the target's."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _COMPILER_NAME.fullmatch(path.name) and not path.name.startswith(f"{triple}-"):
                yield path.name


def _link_tools(folder: Path, triple: str) -> None:
    """Where this machine's own tools have no prefix, give them one: builds ask for $CROSS_COMPILE + ar."""
    for tool in _TOOLS if triple == TRIPLES[machine_isa()] else ():
        plain = shutil.which(tool, path=_SYSTEM_PATH)
        if plain and shutil.which(f"{triple}-{tool}", path=_SYSTEM_PATH) is None:
            (folder / f"{triple}-{tool}").symlink_to(plain)


def _copy_tree(tree: Path, target: Path) -> None:
    """Copy with times, on which make decides, but not owners: root has no power over them in the sandbox."""
    names = [str(path) for path in sorted(tree.iterdir()) if path.name != ".git"]
    options = ["-R", "-P", "--preserve=mode,timestamps,links", "--reflink=auto", "-t", str(target)]
    done = subprocess.run(["cp", *options, "--", *names], stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise OSError(None, done.stderr.decode(errors="replace").strip(), str(target))
    subprocess.run(["chmod", "-R", "u+rwX", str(target)], check=True)


def _relink(tree: Path, mount: str) -> None:
    """Make absolute links into the tree relative: the tree lies elsewhere than the build saw it."""
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path) and (link := os.readlink(path)).startswith(f"{mount}/"):
                os.unlink(path)
                os.symlink(os.path.relpath(os.path.join(tree, link[len(mount) + 1 :]), folder), path)


def _drop_objects(tree: Path, source: Path) -> None:
    """Delete what was compiled: objects, libraries and programs that the source did not bring."""
    for folder, _, files in os.walk(tree):
        for name in files:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or (source / path.relative_to(tree)).exists():
                continue
            with path.open("rb") as file:
                if file.read(8).startswith((b"\x7fELF", b"!<arch>\n", b"!<thin>\n")):
                    path.unlink()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _tail(path: Path) -> str:
    """The last lines of a log, however long it is."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(line[:500] for line in lines[-_TAIL_LINES:])


def _remove(folder: Path) -> None:
    """Delete a folder that a build may have made unreadable."""

    def allow(function: Callable[..., Any], path: str, error: object) -> None:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, stat.S_IRWXU)
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)

    if folder.is_dir():
        shutil.rmtree(folder, onerror=allow)
