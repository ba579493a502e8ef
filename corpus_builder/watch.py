"""Watch a running command: limits that the kernel does not hold for root, and an end that nothing outlives.

In: a process that leads a session, or bubblewrap with the sandbox it makes; limits. Out: the limit it met.
Invariant: when `until_end` returns, no process of the sandbox is alive; without one, none of the process
group, and none of the session where the number of processes is limited.
Cost: one thread; where processes are limited, fifty looks a second at a list of process ids (20 us each);
where disk is, a walk over the folders every two seconds, or ten times as long as it takes.
"""

import itertools
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Met = Literal["", "timeout", "processes", "disk"]

_COUNT_PERIOD_S = 0.02
_SIZE_PERIOD_S = 2.0
_ENDING_MS = 30_000
_MOST_SWEEPS = 100


@dataclass(frozen=True)
class Watched:
    """What to look at."""

    time_s: float
    processes: int = 0
    """Most at a time; 0 for any number."""
    disk_bytes: int = 0
    folders: tuple[Path, ...] = ()
    """Those that may hold `disk_bytes` together; empty for any size."""


class Namespace:
    """A sandbox's own process ids: its first process, with which all others of it end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def processes(self) -> Iterator[int]:
        """Process ids in the sandbox, from its own /proc."""
        proc = f"/proc/{self.pid}/root/proc"
        with suppress(OSError):
            os.readlink(f"{proc}/self")
            return  # ours, in which we have a number: bubblewrap has not mounted the sandbox's yet
        yield from _numbers(proc)

    def kill(self) -> None:
        """Kill the first process; the kernel kills the others."""
        _come_first(self.pid)  # until it runs, and so dies, the others can go on to multiply
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def end(self) -> None:
        """Kill all of it, and return when the kernel has ended the last one."""
        self.kill()
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        waiting.poll(_ENDING_MS)
        os.close(self._handle)


class Gate:
    """Holds a command back until it is watched: a fork bomb is fastest in its first milliseconds."""

    def __init__(self, *, sandboxed: bool) -> None:
        self._start_out, self._start = os.pipe()
        self._report, self._report_in = os.pipe() if sandboxed else (-1, -1)

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors that the command must be given."""
        return tuple(number for number in (self._start_out, self._report_in) if number >= 0)

    def words(self) -> list[str]:
        """What comes before the command: options of bubblewrap, or a shell that waits."""
        if self._report >= 0:
            return ["--info-fd", str(self._report_in), "--block-fd", str(self._start_out), "--"]
        return ["sh", "-c", f'read -r go </proc/self/fd/{self._start_out}; exec "$@"', "sh"]

    def namespace(self) -> Namespace | None:
        """The sandbox, once bubblewrap has made it; none without one, or if it did not start."""
        for descriptor in self.inherited:
            os.close(descriptor)
        if self._report < 0:
            return None
        with open(self._report, "rb") as report, suppress(ValueError, KeyError, ProcessLookupError):
            return Namespace(json.loads(report.read())["child-pid"])
        return None

    def open(self) -> None:
        """Let the command start."""
        with suppress(BrokenPipeError):
            os.write(self._start, b"\n")
        os.close(self._start)


class Watcher:
    """A thread that looks at one command; made before the command, when a thread can still be had."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._met: Met = ""
        self._leader = 0
        self._namespace: Namespace | None = None
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def until_end(self, process: subprocess.Popen[bytes], gate: Gate | None) -> Met:
        """Wait for a process, end all that is left of its session or sandbox; returns the limit it met.

        It is reaped last: until then its process id, and so the session's, cannot be given to another.
        """
        self._leader = process.pid
        try:
            self._namespace = gate.namespace() if gate else None
            self._begun.set()
            if gate:
                gate.open()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            self.stop()
            self._kill()
            if self._namespace:
                self._namespace.end()
            process.wait()
        return self._met

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._begun.set()
        self._thread.join()

    def _kill(self) -> None:
        if self._namespace:
            self._namespace.kill()
        kill_group(self._leader, session=self._watched.processes > 0)

    def _look(self) -> None:
        if self._watched.processes:
            _come_first(0)
        self._begun.wait()
        self._met = self._until_met()
        if self._met:
            self._kill()

    def _until_met(self) -> Met:
        """Look until a limit is met, or the command has ended."""
        watched = self._watched
        deadline = time.monotonic() + watched.time_s
        next_size = time.monotonic() + _SIZE_PERIOD_S
        period_s = (
            _COUNT_PERIOD_S if watched.processes else _SIZE_PERIOD_S if watched.folders else watched.time_s
        )
        while True:
            if self._ended.wait(max(0.0, min(period_s, deadline - time.monotonic()))):
                return ""
            if time.monotonic() >= deadline:
                return "timeout"
            if watched.processes and _exceeds(self._processes(), watched.processes):
                return "processes"
            if watched.folders and (started := time.monotonic()) >= next_size:
                if size_bytes(watched.folders) > watched.disk_bytes:
                    return "disk"
                next_size = time.monotonic() + max(_SIZE_PERIOD_S, 10 * (time.monotonic() - started))

    def _processes(self) -> Iterator[int]:
        return self._namespace.processes() if self._namespace else _session(self._leader)


def _come_first(pid: int) -> None:
    """Let a process, or this thread (0), run before all others: a fork bomb would keep it waiting."""
    with suppress(OSError):  # not root, or it is gone
        os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


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


def kill_group(leader: int, *, session: bool) -> None:
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


def _exceeds(processes: Iterator[int], limit: int) -> bool:
    """Whether there are more than a number; not counted further, as a fork bomb may outrun the count."""
    return next(itertools.islice(processes, limit, None), None) is not None


def _numbers(proc: str) -> Iterator[int]:
    with suppress(OSError), os.scandir(proc) as entries:
        yield from (int(entry.name) for entry in entries if entry.name.isdigit())


def _session(leader: int) -> Iterator[int]:
    """Processes of a session, the leader among them."""
    for pid in _numbers("/proc"):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                yield pid


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[0] in (b"Z", b"X")
