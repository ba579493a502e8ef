"""Where ranks meet: the store through which they find each other, and the network that gloo then takes.

In: a launcher's variables. Out: a store that every rank has reached.
Gloo listens at the address that the host's own name stands for, which is 127.0.1.1 on a Debian host: ranks of
other hosts would not reach it. So each rank tells the address that its packets carry, and takes the interface
of that address, unless all ranks are on one host or GLOO_SOCKET_IFNAME says which. Cost: milliseconds.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from datetime import timedelta

import psutil
from torch.distributed import DistError, HashStore  # type: ignore[attr-defined]  # exported without a stub
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from asmtrain.errors import LaunchError

INTERFACE = "GLOO_SOCKET_IFNAME"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", INTERFACE)
"""What a process has in its environment while it is a rank."""
_ANY_PORT = 9
"""Nothing is sent there: an unbound datagram socket asks the kernel for a route by connecting."""


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that launchers set, for a task of srun; empty for anything else.

    A batch script and a shell under srun have Slurm's variables too, but are one process.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        # Several jobs, and steps of one job, may share a host.
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + (job + 101 * step) % 20000),
    }


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: `n[07-09,12],m1` begins with n07."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).partition(",")[0]


def meet(rank: int, size: int, *, timeout: timedelta) -> Store:
    """Reach the store together with all ranks.

    Raises:
        LaunchError: some rank did not come in time.
    """
    if size == 1:
        # One process needs no port: its store lives in memory.
        local: Store = HashStore()
        return local
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    store: Store
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    except DistError as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"rank {rank} of {size} on {socket.gethostname()}: not all ranks came to {place}"
            f" within {timeout.total_seconds():.0f} s: {reason}",
            remedy="check that every node started its ranks, resolves that host and reaches that port",
        ) from None
    store.set_timeout(timeout)
    return store


def choose_interface(store: Store, rank: int, size: int) -> str | None:
    """The interface over which this rank's host reaches the others; None where all ranks are on one host."""
    own = address_towards(os.environ["MASTER_ADDR"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store.set(f"address/{attempt}/{rank}", own)
    found = {store.get(f"address/{attempt}/{other}").decode() for other in range(size)}
    away = sorted(address for address in found if not _is_loopback(address))
    if not away:
        return None
    # A rank on the host where all meet sees that host by the loopback: the others know where it is from.
    if _is_loopback(own):
        own = address_towards(away[0])
    return interface_of(own)


def address_towards(host: str) -> str:
    """This host's address in packets to another one; 127.0.0.1 if there is no way there."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, _ANY_PORT))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None where none has it."""
    for name, found in psutil.net_if_addrs().items():
        if any(item.address == address for item in found):
            return name
    return None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
