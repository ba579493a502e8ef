"""Real ranks for tests: gloo processes on this machine, with the variables that a launcher would set."""

import gc
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing


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
        torch.multiprocessing.spawn(
            _rank, args=(size, free_port(), Path(folder), work, arguments), nprocs=size
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


def start_ranks(size: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start `asmtrain` with these arguments as `size` ranks, as a launcher would."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "asmtrain.cli", *arguments],
            env=os.environ | rank_environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def finish_ranks(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Wait for ranks; returns their exit codes and what they said."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], said
