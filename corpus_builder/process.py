"""Run one command within limits and say how it ended.

In: an argument list, a folder, limits. Out: exit status, both outputs, and one word for the cause of failure.
Invariant: when `run` returns, no process of the command's group is alive, whatever the command did; in the
sandbox that holds for processes which left the group as well. A command never reads the terminal.

Limits are set by util-linux `prlimit` in front of the command: it costs 0.7 ms of CPU, where a `preexec_fn`
would forbid vfork and so copy the page tables of a large parent. Outputs go to unnamed files, which the limit
on file size covers too: there is no pipe to drain, and endless output ends at the limit.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

MIB = 1 << 20

Cause = Literal["", "error", "timeout", "memory", "crash", "output"]
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
) -> Completed:
    """Run a command to its end, or to a limit.

    `env` is the whole environment; without it the caller's own is passed on. The `bwrap` sandbox has no
    network, no other processes, a read-only system without home folders, and a private /tmp; of the rest only
    `cwd` can be seen and written.

    Raises:
        FileNotFoundError: the command, or bubblewrap where asked for, is not installed.
    """
    path = (os.environ if env is None else env).get("PATH", os.defpath)
    _require(argv[0], path=path)
    if sandbox == "bwrap":
        _require("bwrap", path=path)
        argv = [*_bwrap_prefix(cwd), *argv]
    prlimit = shutil.which("prlimit", path=path)
    if prlimit:
        argv = [prlimit, *(f"--{name}={value}:{value}" for name, value in _rlimits(limits).items()), *argv]
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=source, stdout=out, stderr=err, start_new_session=True
        )
        if not prlimit:
            _limit_running(process.pid, limits)
        timed_out = _wait_then_kill_group(process, limits.time_s)
        stdout, stderr = _contents(out), _contents(err)
    full = max(len(stdout), len(stderr)) >= limits.output_mib * MIB
    cause = "timeout" if timed_out else _cause(process.returncode, stderr, output_full=full)
    return Completed(process.returncode, stdout, stderr, cause)


def _require(program: str, *, path: str) -> None:
    if shutil.which(program, path=path) is None:
        raise FileNotFoundError(f"{program} is not installed")


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


def _wait_then_kill_group(process: subprocess.Popen[bytes], time_s: float) -> bool:
    """Wait for the leader, kill what is left of its group; returns whether time ran out.

    The leader is reaped last: until then its process id, and so the group's, cannot be given to another.
    """
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(time_s, expire)
    timer.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
        timer.join()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return timed_out.is_set()


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


def _bwrap_prefix(cwd: Path) -> list[str]:
    folder = str(cwd.resolve())
    system = [word for path in _SYSTEM_FOLDERS for word in ("--ro-bind-try", path, path)]
    private = [
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--tmpfs",
        "/tmp",
        "--bind",
        folder,
        folder,
        "--chdir",
        folder,
    ]
    return ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", *system, *private, "--"]
