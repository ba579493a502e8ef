"""Run one command within limits and say how it ended.

In: an argument list, a folder, limits. Out: exit status, both outputs, and one word for the cause of failure.
Invariant: when `run` returns, no process of the command's group is alive, whatever the command did; where the
number of processes is limited that holds for its session, and in the sandbox for all that it ever started. A
command never reads the terminal.

Limits are set by util-linux `prlimit` in front of the command: it costs 0.7 ms of CPU, where a `preexec_fn`
would forbid vfork and so copy the page tables of a large parent. Outputs go to unnamed files, which the limit
on file size covers too: there is no pipe to drain, and endless output ends at the limit. Limits on the number
of processes and on disk are watched, since the kernel's own do not bind root: ten looks a second at a list of
process ids (20 us each), and one at the folders' sizes every two seconds or more.
"""

import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

MIB = 1 << 20

Cause = Literal["", "error", "timeout", "memory", "crash", "output", "processes", "disk"]
Sandbox = Literal["none", "bwrap"]

_COUNT_PERIOD_S = 0.1
_SIZE_PERIOD_S = 2.0
_ENDING_MS = 10_000
_MOST_SWEEPS = 100


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
class _Watch:
    """Limits that are looked at while a command runs."""

    time_s: float
    processes: int
    disk_bytes: int
    folders: tuple[Path, ...]


def _watch_list(cwd: Path, jail: Jail, limits: Limits) -> _Watch:
    folders = (cwd, *jail.writable.values()) if jail.disk_mib else ()
    return _Watch(limits.time_s, jail.processes, jail.disk_mib * MIB, folders)


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
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        _require(argv[0], path=path)
        if sandbox == "bwrap":
            _require("bwrap", path=path)
            reader, writer = os.pipe()
            argv = [*_bwrap_prefix(cwd, jail, info_fd=writer), *argv]
        else:
            reader = writer = -1
        process = _start(argv, cwd=cwd, env=env, limits=limits, files=(source, out, err), keep=writer)
        namespace = _namespace(reader, writer)
        stopped = _wait_then_kill(process, namespace, _watch_list(cwd, jail, limits))
        stdout, stderr = _contents(out), _contents(err)
    full = max(len(stdout), len(stderr)) >= limits.output_mib * MIB
    return Completed(
        process.returncode, stdout, stderr, stopped or _cause(process.returncode, stderr, output_full=full)
    )


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
    keep: int,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, under limits; `keep` is a descriptor it inherits, or -1."""
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
        pass_fds=(keep,) if keep >= 0 else (),
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


class _Namespace:
    """A sandbox's own process ids: its first process, with which all others of it end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def num_processes(self) -> int:
        """How many processes run in the sandbox, counted in its own /proc."""
        with suppress(OSError):
            return sum(name.isdigit() for name in os.listdir(f"/proc/{self.pid}/root/proc"))
        return 0

    def end(self) -> None:
        """Kill all of it, and return when the kernel has ended the last one."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        waiting.poll(_ENDING_MS)
        os.close(self._handle)


def _namespace(reader: int, writer: int) -> _Namespace | None:
    """The sandbox that bubblewrap reports through the pipe; none if it did not start."""
    if reader < 0:
        return None
    os.close(writer)
    with open(reader, "rb") as report, suppress(ValueError, KeyError, ProcessLookupError):
        return _Namespace(json.loads(report.read())["child-pid"])
    return None


def _wait_then_kill(process: subprocess.Popen[bytes], namespace: _Namespace | None, watch: _Watch) -> Cause:
    """Wait for the leader, end what is left of its session or sandbox; returns the limit that was met.

    The leader is reaped last: until then its process id, and so the session's, cannot be given to another.
    """
    met: list[Cause] = []
    ended = threading.Event()

    def kill() -> None:
        if namespace:
            with suppress(ProcessLookupError):
                os.kill(namespace.pid, signal.SIGKILL)
        _kill_group(process.pid, session=watch.processes > 0)

    def look() -> None:
        cause = _limit_met(watch, ended, lambda: _num_processes(process.pid, namespace))
        if cause:
            met.append(cause)
            kill()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        ended.set()
        watcher.join()
        _kill_group(process.pid, session=watch.processes > 0)
        if namespace:
            namespace.end()
        process.wait()
    return met[0] if met else ""


def _limit_met(watch: _Watch, ended: threading.Event, num_processes: Callable[[], int]) -> Cause:
    """Look until a limit is met, or the command has ended."""
    deadline = time.monotonic() + watch.time_s
    next_size = time.monotonic() + _SIZE_PERIOD_S
    while True:
        left_s = deadline - time.monotonic()
        if ended.wait(max(0.0, min(left_s, _COUNT_PERIOD_S) if watch.folders or watch.processes else left_s)):
            return ""
        if time.monotonic() >= deadline:
            return "timeout"
        if watch.processes and num_processes() > watch.processes:
            return "processes"
        if watch.folders and time.monotonic() >= next_size:
            started = time.monotonic()
            if size_bytes(watch.folders) > watch.disk_bytes:
                return "disk"
            # A large tree takes seconds to add up: spend a tenth of the time on it at most.
            next_size = time.monotonic() + max(_SIZE_PERIOD_S, 10 * (time.monotonic() - started))


def size_bytes(folders: Iterable[Path]) -> int:
    """What all files beneath some folders take on the disk; what vanishes meanwhile counts nothing."""
    total = 0
    left = [str(folder) for folder in folders]
    while left:
        with suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    with suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _num_processes(leader: int, namespace: _Namespace | None) -> int:
    return namespace.num_processes() if namespace else len(_session(leader))


def _session(leader: int) -> list[int]:
    """Processes of a session, the leader among them."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(ValueError, ProcessLookupError):
            if os.getsid(int(name)) == leader:
                found.append(int(name))
    return found


def _kill_group(leader: int, *, session: bool) -> None:
    """Kill a process group, or a whole session: also what starts while others are being killed.

    A sweep over all process ids takes 0.3 ms and more: too much for every call of a compiler.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for _ in range(_MOST_SWEEPS if session else 0):
        others = [pid for pid in _session(leader) if pid != leader and not _is_dead(pid)]
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not others:
            return


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")


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


def _bwrap_prefix(cwd: Path, jail: Jail, *, info_fd: int) -> list[str]:
    folder = str(cwd.resolve())
    at = jail.at or folder
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--info-fd", str(info_fd)]
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
    return [*words, "--bind", folder, at, "--remount-ro", "/", "--chdir", at, "--"]
