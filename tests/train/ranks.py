"""Real ranks for tests: gloo processes on this machine, with the variables that a launcher would set.

They are forked from one process that has imported what takes each rank six seconds; tests with a launcher
start programs of their own.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["deepspeed", "asmtrain.train"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What the deepspeed launcher and torchrun set for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(world, *arguments)` on `size` processes; returns what rank 0 returned."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank,
            args=(size, free_port(), Path(folder), work, arguments),
            nprocs=size,
            start_method="forkserver",
        )
        return pickle.loads((Path(folder) / "result").read_bytes())


def _rank(
    rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(rank_environment(rank, size, port))
    torch.set_num_threads(1)
    from asmtrain import dist

    gc.freeze()  # DeepSpeed collects garbage at every start; what the imports left is none
    with dist.joined() as world:
        result = work(world, *arguments)
        if world.is_main:
            (folder / "result").write_bytes(pickle.dumps(result))


class Rank:
    """`asmtrain` as one rank, with what tests use of a `subprocess.Popen`."""

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], first: Callable[[], None] | None
    ) -> None:
        handle, name = tempfile.mkstemp(prefix="rank")
        os.close(handle)
        self._said = Path(name)
        work = (list(arguments), environment, self._said, first)
        self._process = _FORKED.Process(target=_asmtrain, args=work, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """What it said on both streams, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("asmtrain", timeout)
        said = self._said.read_text()
        self._said.unlink()
        return said, None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _asmtrain(
    arguments: list[str], environment: dict[str, str], said: Path, first: Callable[[], None] | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with open(said, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if first:
        first()
    from asmtrain import cli

    sys.argv = ["asmtrain", *arguments]
    cli.entry()


def start_ranks(
    size: int, arguments: Sequence[str], *, first: Callable[[], None] | None = None
) -> list[Rank]:
    """Start `asmtrain` with these arguments as `size` ranks, as a launcher would; each calls `first`."""
    port = free_port()
    environments = [{**os.environ, **rank_environment(rank, size, port)} for rank in range(size)]
    return [Rank(arguments, environment, first) for environment in environments]


def finish_ranks(processes: Sequence[Rank | subprocess.Popen[str]]) -> tuple[list[int | None], list[str]]:
    """Wait for ranks; returns their exit codes and what they said."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], said
