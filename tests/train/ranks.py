"""Real ranks for tests: gloo processes on this machine, with the variables that a launcher would set."""

import os
import pickle
import socket
import tempfile
from collections.abc import Callable
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

    with dist.joined() as world:
        result = work(world, *arguments)
        if world.is_main:
            (folder / "result").write_bytes(pickle.dumps(result))
