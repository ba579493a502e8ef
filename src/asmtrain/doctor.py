"""What this machine has for asmtrain, what it lacks, what that is needed for, and the command to get it.

Nothing goes in; a table and an exit code come out: 0 when the main job can run, 2 when it cannot. Every
check looks at the thing itself: compilers compile, the sandbox starts, packages are those of the installed
distribution's own metadata. Cost: a few seconds, most of them torch's import.
"""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from asmtrain import terminal
from corpus_builder.errors import UserFacingError
from corpus_builder.probe import resolve
from corpus_builder.process import Limits
from corpus_builder.process import run as run_process

_DISK_GIB = 4
"""Corpus, checkpoints and exports of the demo take about one; the packages' caches as much again."""
_COMPILERS = tuple(
    f"{isa}.{family}" for isa in ("aarch64", "x86_64", "riscv64") for family in ("gcc", "clang")
)
_TOOLS = (
    ("qemu-aarch64", "runs AArch64 programs in evaluations", "qemu-user"),
    ("bwrap", "sandbox for builds and for programs that a model wrote", "bubblewrap"),
    ("zstd", "looking into shards by hand", "zstd"),
    ("make", "projects' own builds", "make"),
    ("cmake", "projects that build with CMake", "cmake"),
    ("meson", "projects that build with Meson", "meson ninja-build"),
    ("autoreconf", "projects without a ready configure", "autoconf automake libtool"),
    ("dpkg-source", "Debian source packages", "dpkg-dev"),
    ("chromium", "pictures of pages (docs/*.py) and the test of asmtrain serve", "chromium"),
    ("git", "sources in git; names the commit in provenance.json", "git"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    needed_for: str
    found: str
    """What there is; empty where it is missing."""
    remedy: str
    """Command that gets it."""
    is_essential: bool = False


def run() -> int:
    """Print what was found; returns 0 if all essentials are there, else 2."""
    findings = list(examine())
    screen = terminal.console()
    screen.print(_table(findings))
    missing = [item for item in findings if not item.found]
    for item in missing:
        kind = "missing" if item.is_essential else "optional"
        screen.print(f"{kind}: {item.name}: {item.remedy}", markup=False)
    if any(item.is_essential for item in missing):
        return 2
    screen.print("Everything that the main job needs is here.")
    return 0


def examine() -> Iterator[Finding]:
    """Look for everything, one finding each, essentials first in every group."""
    yield _python()
    yield _packages()
    yield from _compilers(toolchain_file())
    yield _launcher()
    yield from (_tool(*tool) for tool in _TOOLS)
    yield _sandbox()
    yield _accelerator()
    yield _slurm()
    yield _disk(Path.cwd())


def toolchain_file() -> Path:
    """The toolchain file of the working directory, else that of this package's checkout."""
    here = Path("configs/toolchains.yaml")
    return here if here.exists() else Path(__file__).parents[2] / here


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    found = version if sys.version_info >= (3, 11) else ""
    return Finding("Python 3.11+", "everything", found, "apt-get install python3", is_essential=True)


def _packages() -> Finding:
    """The distribution's own list of dependencies, all extras together."""
    names = {
        re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        for requirement in importlib.metadata.requires("asmtrain") or ()
    }
    missing = sorted(name for name in names if not _is_installed(name))
    return Finding(
        "Python packages",
        "corpus, training, evaluation",
        "" if missing else f"{len(names)} packages",
        f"pip install -e '.[corpus,train,eval,dev]'  # for {', '.join(missing)}",
        is_essential=True,
    )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _compilers(file: Path) -> Iterator[Finding]:
    """Each family of the toolchain file that works here; one of them is essential."""
    found = {name: _probed(name, file) for name in _COMPILERS}
    has_any = any(version for version, _ in found.values())
    for name, (version, remedy) in found.items():
        yield Finding(name, "variants of a corpus", version, remedy, is_essential=not has_any)


def _probed(name: str, file: Path) -> tuple[str, str]:
    try:
        toolchains, notes = resolve([name], file)
    except UserFacingError as error:
        return "", error.remedy
    return toolchains[0].version + "".join(f" ({note})" for note in notes), ""


def _launcher() -> Finding:
    beside = Path(sys.executable).with_name("deepspeed")
    found = str(beside) if beside.exists() else shutil.which("deepspeed") or ""
    return Finding(
        "deepspeed launcher",
        "training on several ranks",
        found,
        "pip install -e '.[train]'",
        is_essential=True,
    )


def _tool(command: str, needed_for: str, package: str) -> Finding:
    return Finding(command, needed_for, shutil.which(command) or "", f"apt-get install {package}")


def _sandbox() -> Finding:
    """Some containers have bwrap but do not let it make namespaces."""
    works = False
    if shutil.which("bwrap"):
        limits = Limits(time_s=10, memory_mib=1024, output_mib=1)
        works = run_process(["true"], cwd=Path.cwd(), limits=limits, sandbox="bwrap").ok
    return Finding(
        "sandbox starts",
        "running programs that a model wrote",
        "yes" if works else "",
        "install bubblewrap and allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)",
    )


def _accelerator() -> Finding:
    name = ""
    if _is_installed("torch"):
        import torch

        if torch.cuda.is_available():
            name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cpus = len(os.sched_getaffinity(0))
    needed_for = f"models larger than the demo's, which these {cpus} CPUs train"
    return Finding("GPU", needed_for, name, "use a machine with a CUDA device")


def _slurm() -> Finding:
    return Finding(
        "sbatch", "submitting to a cluster (slurm/)", shutil.which("sbatch") or "", "log in to a Slurm node"
    )


def _disk(folder: Path) -> Finding:
    free_gib = shutil.disk_usage(folder).free / 2**30
    return Finding(
        f"{_DISK_GIB} GiB of disk",
        "corpus, checkpoints and exports of the demo",
        f"{free_gib:.0f} GiB free" if free_gib >= _DISK_GIB else "",
        f"free some space under {folder}",
        is_essential=True,
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("what", "needed for", "found"):
        table.add_column(heading, overflow="fold")
    for item in findings:
        table.add_row(_mark(item), item.name, item.needed_for, item.found or "-")
    return table


def _mark(item: Finding) -> str:
    if item.found:
        return "[green]ok[/green]"
    return "[red]missing[/red]" if item.is_essential else "[yellow]absent[/yellow]"
