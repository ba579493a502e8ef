"""Slurm's notice: it sends USR2 some minutes ahead of its time limit, and the run saves itself and leaves.

In: the signal, to any rank. Out: `Warned`, on all ranks at the same `heed`, which they call together after
each step and between batches of tokenising and evaluation. Invariant: the signal itself interrupts nothing.
Cost: an all-reduce of one number a call.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asmtrain import dist

_received: list[int] = []


class Warned(Exception):
    """Every rank knows that the job is about to end."""


@contextmanager
def noted() -> Iterator[None]:
    """Note the signal while the block runs, instead of dying of it."""
    _received.clear()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: _received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # the command holds it back until now
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def heed(device: torch.device) -> None:
    """Raise Warned if any rank was warned: the signal may reach one rank a step before another."""
    if dist.all_reduce_sum(torch.tensor(len(_received), device=device)):
        raise Warned
