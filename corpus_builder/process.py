"""Run one command within limits and say how it ended.

In: an argument list, a folder, limits. Out: exit status, both outputs, and one word for the cause of failure.
Invariant: when `run` returns, no process of the command's group is alive, whatever the command did; where the
number of processes is limited that holds for its session, and in the sandbox for all that it ever started. A
command never reads the terminal.

Limits are set by util-linux `prlimit` in front of the command: it costs 0.7 ms of CPU, where a `preexec_fn`
would forbid vfork and so copy the page tables of a large parent. Outputs go to unnamed files, which the limit
on file size covers too: there is no pipe to drain, and endless output ends at the limit. Time, and a jail's
processes and disk, are watched (`watch`).
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from corpus_builder.watch import Gate, Watched, Watcher

MIB = 1 << 20

Cause = Literal["", "error", "timeout", "memory", "crash", "output", "processes", "disk"]
Sandbox = Literal["none", "bwrap"]


@dataclass(frozen=True)
class Limits:
    """What a command may use before it is killed."""

    time_s: float
    """Wall clock, from start to end."""
    memory_mib: int
    """Address space of each of its processes."""
    output_mib: int
    """Size of each file it writes, its standard output and error included."""


@dataclass(frozen=True)
class Jail:
    """What a whole build needs beyond a single command: fixed places, and limits on all it does together.

    Without the sandbox the places mean nothing, and the limits hold for the command's session.
    """

    at: str = ""
    """Where the working folder is seen; empty for its own path."""
    writable: Mapping[str, Path] = field(default_factory=dict)
    """Places inside to folders that are seen and written there, such as /tmp; they count as disk."""
    readable: Mapping[str, Path] = field(default_factory=dict)
    """Places inside to files or folders that are only seen there."""
    processes: int = 0
    """Most processes at a time; 0 for any number."""
    disk_mib: int = 0
    """Most that the working folder and those of `writable` may hold; 0 for any size."""


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    exit: int
    """Exit status; negative for the signal that ended it."""
    stdout: bytes
    stderr: bytes
    cause: Cause
    """Empty for success."""

    @property
    def ok(self) -> bool:
        """Whether it ended with exit status 0."""
        return not self.cause


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    limits: Limits,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    sandbox: Sandbox = "none",
    jail: Jail | None = None,
) -> Completed:
    """Run a command to its end, or to a limit.

    `env` is the whole environment; without it the caller's own is passed on. The `bwrap` sandbox has no
    network, no capabilities, no other processes, a read-only system without home folders, and a private /tmp;
    of the rest only `cwd` can be seen and written, and what `jail` adds.

    Raises:
        FileNotFoundError: the command, or bubblewrap where asked for, is not installed.
    """
    jail = jail or Jail()
    path = (os.environ if env is None else env).get("PATH", os.defpath)
    for program in (argv[0], *(["bwrap"] if sandbox == "bwrap" else [])):
        _require(program, path=path)
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        watcher = Watcher(_watched(cwd, jail, limits))
        try:
            gate = Gate(sandboxed=sandbox == "bwrap") if sandbox == "bwrap" or jail.processes else None
            guarded = [*_guards(cwd, jail, sandbox=sandbox, gate=gate), *argv]
            process = _start(guarded, cwd=cwd, env=env, limits=limits, files=(source, out, err), gate=gate)
            met = watcher.until_end(process, gate)
        finally:
            watcher.stop()
        stdout, stderr = _contents(out), _contents(err)
    full = max(len(stdout), len(stderr)) >= limits.output_mib * MIB
    cause = met or _cause(process.returncode, stderr, output_full=full)
    return Completed(process.returncode, stdout, stderr, cause)


def _watched(cwd: Path, jail: Jail, limits: Limits) -> Watched:
    folders = (cwd, *jail.writable.values()) if jail.disk_mib else ()
    return Watched(limits.time_s, jail.processes, jail.disk_mib * MIB, folders)


def _guards(cwd: Path, jail: Jail, *, sandbox: Sandbox, gate: Gate | None) -> list[str]:
    """The words before a command that hold it back and lock it in."""
    words = _bwrap_prefix(cwd, jail) if sandbox == "bwrap" else []
    words += gate.words() if gate else []
    # The kernel counts a sandbox's processes apart since 5.14, root's never. Its limit lies beyond the one
    # that is watched, which names the cause, and keeps a fork bomb small until it is noticed.
    version = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if sandbox == "bwrap" and jail.processes and os.geteuid() != 0 and version >= (5, 14):
        most = 2 * jail.processes + 16
        words += [prlimit, f"--nproc={most}:{most}"] if (prlimit := shutil.which("prlimit")) else []
    return words


def _require(program: str, *, path: str) -> None:
    if shutil.which(program, path=path) is None:
        raise FileNotFoundError(f"{program} is not installed")


def _start(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None,
    limits: Limits,
    files: tuple[IO[bytes], IO[bytes], IO[bytes]],
    gate: Gate | None,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, under its limits."""
    prlimit = shutil.which("prlimit", path=(os.environ if env is None else env).get("PATH", os.defpath))
    if prlimit:
        argv = [prlimit, *(f"--{name}={value}:{value}" for name, value in _rlimits(limits).items()), *argv]
    source, out, err = files
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=source,
        stdout=out,
        stderr=err,
        start_new_session=True,
        pass_fds=gate.inherited if gate else (),
    )
    if not prlimit:
        _limit_running(process.pid, limits)
    return process


def _rlimits(limits: Limits) -> dict[str, int]:
    """Names as prlimit spells its options; `resource` has the same ones as RLIMIT_<NAME>."""
    return {"as": limits.memory_mib * MIB, "fsize": limits.output_mib * MIB, "core": 0}


def _limit_running(pid: int, limits: Limits) -> None:
    """Where prlimit is not installed: limit the child once it runs, before it can have done much."""
    for name, value in _rlimits(limits).items():
        try:
            resource.prlimit(pid, getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
        except ProcessLookupError:
            return  # it has ended already


def _contents(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read()


# Said by gcc, glibc, LLVM, C++, Python and the shell. Source lines quoted in a diagnostic are indented.
_OUT_OF_MEMORY = re.compile(
    rb"^\S.*(out of memory|memory exhausted|cannot allocate|bad_alloc|failed to map segment)|^MemoryError",
    re.IGNORECASE | re.MULTILINE,
)
_FILE_TOO_LARGE = re.compile(rb"^\S.*(File size limit exceeded|File too large)", re.MULTILINE)


def _cause(status: int, stderr: bytes, *, output_full: bool) -> Cause:
    if status == 0:
        return ""
    # A shell or driver reports a child that died of signal N as 128 + N.
    by_signal = -status if status < 0 else status - 128
    if output_full or by_signal == signal.SIGXFSZ or _FILE_TOO_LARGE.search(stderr):
        return "output"
    # SIGKILL that is not ours is the kernel's, out of memory.
    if by_signal == signal.SIGKILL or _OUT_OF_MEMORY.search(stderr):
        return "memory"
    return "crash" if by_signal > 0 else "error"


_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")


def _bwrap_prefix(cwd: Path, jail: Jail) -> list[str]:
    folder = str(cwd.resolve())
    at = jail.at or folder
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    # Started by root, bubblewrap would leave it all capabilities, and so the power to mount / writable again.
    words += ["--cap-drop", "ALL"]
    for path in _SYSTEM_FOLDERS:
        words += ["--ro-bind-try", path, path]
    words += ["--dev", "/dev", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    words += ["--proc", "/proc", "--tmpfs", "/tmp", "--hostname", "sandbox"]
    for place, source in jail.readable.items():
        words += ["--ro-bind", str(source), place]
    for place, source in jail.writable.items():
        words += ["--bind", str(source), place]
    return [*words, "--bind", folder, at, "--remount-ro", "/", "--chdir", at]
