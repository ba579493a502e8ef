"""Who this process is among its ranks, and the few collectives the trainer calls itself.

In: the environment of the deepspeed launcher, torchrun or srun; or none of them, for a single process.
Out: a `World`, and a process group (nccl on GPUs, gloo on CPU) that DeepSpeed finds ready. The group exists
in a single process too, so that the trainer has one path. Ranks of one host differ in `local_rank`.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as c10d

from asmtrain import rendezvous
from asmtrain.errors import LaunchError, UserFacingError

ResultT = TypeVar("ResultT")

# One rank may prepare a corpus while the others wait; a rank that died is noticed by its closed connection.
_TIMEOUT = timedelta(hours=4)
_MEETING_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process among all ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and the console."""
        return self.rank == 0


@contextmanager
def joined(meeting_timeout: timedelta = _MEETING_TIMEOUT) -> Iterator[World]:
    """Join the process group, and leave it at the end.

    Raises:
        LaunchError: the environment is incomplete, this host has fewer GPUs than ranks, or a rank is absent.
    """
    # DeepSpeed reads these; srun and a single process do not set them.
    before = dict(os.environ)
    os.environ.update(rendezvous.from_slurm(os.environ))
    rank, size, local_rank = placement(os.environ)
    device = _device(local_rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = rendezvous.meet(rank, size, timeout=meeting_timeout)
    if backend == "gloo" and size > 1 and rendezvous.INTERFACE not in os.environ:
        interface = rendezvous.choose_interface(store, rank, size)
        os.environ.update({rendezvous.INTERFACE: interface} if interface else {})
    store.set_timeout(_TIMEOUT)
    c10d.init_process_group(backend, rank=rank, world_size=size, store=store, timeout=_TIMEOUT)
    try:
        yield World(rank, size, local_rank, device)
    finally:
        c10d.destroy_process_group()
        for name in rendezvous.VARIABLES:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def placement(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, number of ranks and local rank from a launcher's variables; (0, 1, 0) without a launcher.

    Those of srun are given their names by `rendezvous.from_slurm`.

    Raises:
        LaunchError: some of the variables are missing, or not numbers.
    """
    names, meeting = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT")
    if not any(name in environment for name in names):
        return 0, 1, 0
    try:
        rank, size, local_rank = (int(environment[name]) for name in names)
        missing = [name for name in meeting if size > 1 and name not in environment]
        if missing:
            raise KeyError(missing[0])
    except (KeyError, ValueError) as error:
        raise LaunchError(
            f"the launcher's variables {', '.join((*names, *meeting))} are incomplete or wrong: {error}",
            remedy="start with launch/train.sh, torchrun or srun; unset them for a single process",
        ) from None
    return rank, size, local_rank


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: this host shows {torch.cuda.device_count()}",
            remedy="start one rank per GPU",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all ranks; the argument is left alone."""
    total = values.clone()
    c10d.all_reduce(total)
    return total


def broadcast(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's values, on all ranks; the argument is left alone."""
    copy = values.clone()
    c10d.broadcast(copy, 0)
    return copy


def all_gather_rows(rows_ND: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in the order of ranks; every rank gives the same number of rows."""
    gathered = [torch.empty_like(rows_ND) for _ in range(c10d.get_world_size())]
    c10d.all_gather(gathered, rows_ND.contiguous())
    return torch.cat(gathered)


def all_gather_objects(value: ResultT) -> list[ResultT]:
    """The (picklable) values of all ranks, in the order of ranks."""
    gathered: list[ResultT] = [value] * c10d.get_world_size()
    c10d.all_gather_object(gathered, value)
    return gathered


def subgroup(size: int) -> c10d.ProcessGroup:
    """The group of `size` neighbouring ranks that this one is in; all ranks call it together."""
    group: c10d.ProcessGroup = c10d.new_subgroups(size, timeout=_TIMEOUT)[0]  # type: ignore[no-untyped-call]
    return group


def barrier() -> None:
    """Wait until every rank is here."""
    c10d.barrier()


def main_first(work: Callable[[], ResultT]) -> ResultT:
    """Run `work` on rank 0, then on the others: it downloads once, and a mistake it meets is told once."""
    done: list[ResultT] = []
    on_main(lambda: done.append(work()))
    return done[0] if done else work()


def on_main(work: Callable[[], ResultT]) -> ResultT:
    """Run `work` on rank 0 while the others wait; all ranks return its (picklable) result.

    A user's mistake that rank 0 meets ends the others quietly, so that it is reported once.
    """
    outcome: list[ResultT | None] = [None]
    failed = False
    if c10d.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserFacingError:
            failed = True
            c10d.broadcast_object_list([failed, None])
            raise
        c10d.broadcast_object_list([failed, outcome[0]])
        return outcome[0]  # type: ignore[return-value]  # None only where ResultT is
    received: list[object] = [None, None]
    c10d.broadcast_object_list(received)
    if received[0]:
        sys.exit(2)
    return received[1]  # type: ignore[return-value]


def random_state() -> dict[str, torch.Tensor]:
    """This rank's random generators."""
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
