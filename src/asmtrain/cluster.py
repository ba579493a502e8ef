"""What a run over several nodes needs of them, looked at from every rank: `asmtrain doctor --cluster`.

In: the ranks of srun, torchrun or the deepspeed launcher, and a run's config if one is named. Out: a table on
rank 0, and an exit code that all ranks share: 0, or 1 when something is wrong somewhere. Invariant: what a
rank finds wrong it reports, and never raises: the others would wait for it. Cost: seconds; shards are looked
at, not read through.
"""

import hashlib
import os
import platform
import secrets
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from rich import box
from rich.table import Table

from asmtrain import dist, provenance, rendezvous, terminal
from asmtrain.config import load_train_config
from asmtrain.dist import World
from corpus_builder.errors import UserFacingError
from corpus_builder.shards import load_index

_MEETING_TIMEOUT = timedelta(seconds=60)
_SEEN_WITHIN_S = 5.0
"""Network file systems show a new file of another host a little later."""
_CLOCKS_WITHIN_S = 1.0
_ROUNDS = 10
_MIB = 1 << 20
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Check:
    """One thing that all ranks looked at."""

    name: str
    found: str
    wrong: tuple[str, ...]
    """Where it is wrong, and how; empty where all is well."""
    remedy: str


@dataclass(frozen=True)
class Needs:
    """What a run reads and writes, as rank 0 has it from the config."""

    run: Path
    corpora: tuple[Path, ...]


def run(config: Path | None) -> int:
    """Look at everything from every rank and print it on rank 0; returns the exit code.

    Raises:
        LaunchError: not all ranks came within a minute.
        ConfigError: rank 0 cannot use the config.
    """
    with dist.joined(_MEETING_TIMEOUT) as world:
        checks = list(examine(world, config))
        if world.is_main:
            _report(checks)
    return 1 if any(check.wrong for check in checks) else 0


def examine(world: World, config: Path | None = None) -> Iterator[Check]:
    """Every check, the same on all ranks; all ranks call it together."""
    hosts = dist.all_gather_objects(platform.node())
    needs = dist.on_main(lambda: _needs(config))
    yield _ranks(world, hosts)
    yield _all_reduce(world, hosts)
    yield _clocks(world, hosts)
    yield _versions(hosts)
    if config is not None:
        yield _config(config, hosts)
    yield _run_folder(world, hosts, needs.run)
    for corpus in needs.corpora:
        yield _shards(world, hosts, corpus)


def _needs(config: Path | None) -> Needs:
    if config is None:
        return Needs(Path.cwd(), ())
    settings = load_train_config(config, [])
    corpora = {part.corpus: None for stage in settings.stages for part in stage.data}
    return Needs(settings.run, tuple(corpora))


def _ranks(world: World, hosts: Sequence[str]) -> Check:
    """That they met is found already: nothing comes here before."""
    per_host = Counter(hosts)
    interface = os.environ.get(rendezvous.INTERFACE)
    network = "nccl" if world.device.type == "cuda" else "gloo" + (f" over {interface}" if interface else "")
    where = ", ".join(f"{count} on {host}" for host, count in per_host.items())
    uneven = len(set(per_host.values())) > 1
    return Check(
        "ranks",
        f"{world.size}: {where}; {network}",
        (f"hosts have different numbers of ranks: {where}",) if uneven else (),
        "give every node the same number of tasks (--ntasks-per-node)",
    )


def _all_reduce(world: World, hosts: Sequence[str]) -> Check:
    """Its result, and its speed as the bytes that each rank's link carries (2 (n - 1) / n of the buffer)."""
    size_bytes = 256 * _MIB if world.device.type == "cuda" else 16 * _MIB
    values = torch.full((size_bytes // 4,), world.rank + 1.0, device=world.device)
    large_s = _best_time(world, lambda: dist.all_reduce_sum(values))
    small_s = _best_time(world, lambda: dist.all_reduce_sum(values[:1]))
    is_right = bool((dist.all_reduce_sum(values) == world.size * (world.size + 1) / 2).all())
    slowest_s = max(dist.all_gather_objects(large_s))
    carried_bytes = 2 * (world.size - 1) / world.size * size_bytes
    found = f"{carried_bytes / slowest_s / 1e9:.2f} GB/s a rank ({size_bytes // _MIB} MiB), "
    return Check(
        "all-reduce",
        f"{found}{small_s * 1e6:.0f} us for one number" if world.size > 1 else "one rank: nothing to reduce",
        _everywhere(hosts, "" if is_right else "got a wrong sum"),
        "test the network between these hosts",
    )


def _best_time(world: World, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some rounds."""
    times = []
    for _ in range(_ROUNDS // 2):
        dist.barrier()
        started = time.perf_counter()
        work()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _clocks(world: World, hosts: Sequence[str]) -> Check:
    """Every rank reads its clock right after the same barrier; the median of some such rounds."""
    read = []
    for _ in range(_ROUNDS):
        dist.all_reduce_sum(torch.zeros(1, device=world.device)).item()
        read.append(time.time())
    clocks = dist.all_gather_objects(read)
    ahead_s = [statistics.median(b - a for a, b in zip(clocks[0], own, strict=True)) for own in clocks]
    wrong = [f"{s:+.1f} s from rank 0's clock" if abs(s) > _CLOCKS_WITHIN_S else "" for s in ahead_s]
    return Check(
        "clocks",
        f"within {max(ahead_s) - min(ahead_s):.3f} s",
        _named(hosts, wrong),
        "run an NTP client (chrony) on every node",
    )


def _versions(hosts: Sequence[str]) -> Check:
    of_rank = dist.all_gather_objects(versions())
    ours = of_rank[0]
    wrong = [
        ", ".join(
            f"{name} {theirs.get(name, 'absent')} instead of {ours.get(name, 'none')}"
            for name in {**ours, **theirs}
            if theirs.get(name) != ours.get(name)
        )
        for theirs in of_rank
    ]
    return Check(
        "versions",
        ", ".join(f"{name} {version}" for name, version in ours.items()),
        _named(hosts, wrong),
        "use one environment on all nodes: a shared folder, or the same image",
    )


def versions() -> dict[str, str]:
    """What has to be equal on all ranks, this package's own source among it."""
    found = {"python": platform.python_version(), **provenance.tool_versions()}
    found["source"] = _source_sha256()[:12]
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _source_sha256() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def _config(path: Path, hosts: Sequence[str]) -> Check:
    def read() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    found = dist.all_gather_objects(_attempt(read))
    wrong = [
        problem or ("" if sha256 == found[0][0] else "is another file there") for sha256, problem in found
    ]
    return Check("config", str(path), _named(hosts, wrong), "give a path that all nodes share")


def _run_folder(world: World, hosts: Sequence[str], folder: Path) -> Check:
    """Each rank sees a file that rank 0 wrote, and rank 0 one of each rank."""
    token = dist.on_main(lambda: secrets.token_hex(8))
    meeting = folder / f".doctor-{token}"
    is_new = dist.on_main(lambda: not folder.exists())
    wrote = _attempt(lambda: _write(meeting / "0", token))[1] if world.is_main else ""
    dist.barrier()
    if not world.is_main:
        wrote = "" if _is_seen(meeting / "0", token) else "does not see what rank 0 wrote"
        wrote = wrote or _attempt(lambda: _write(meeting / str(world.rank), token))[1]
    wrong = dist.all_gather_objects(wrote)
    if world.is_main:
        for rank in range(1, world.size):
            if not wrong[rank] and not _is_seen(meeting / str(rank), token):
                wrong[rank] = "writes what rank 0 does not see"
        shutil.rmtree(folder if is_new else meeting, ignore_errors=True)
    wrong = dist.on_main(lambda: wrong)
    return Check(
        "run folder",
        f"{folder} is one and the same",
        _named(hosts, wrong),
        "put `run` on a file system that all nodes share and may write to",
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _is_seen(path: Path, text: str) -> bool:
    end = time.monotonic() + _SEEN_WITHIN_S
    while time.monotonic() < end:
        if _attempt(path.read_text)[0] == text:
            return True
        time.sleep(0.1)
    return False


def _shards(world: World, hosts: Sequence[str], corpus: Path) -> Check:
    """One rank of each host looks at the index and opens every shard."""
    looked, problem = _attempt(lambda: _look_at(corpus)) if world.local_rank == 0 else (None, "")
    found = dist.all_gather_objects((looked, problem))
    ours = found[0][0]
    wrong = [
        problem or ("its index is another one" if looked and ours and looked[0] != ours[0] else "")
        for looked, problem in found
    ]
    size = f": {ours[1]} shards, {ours[2] / 1e6:,.1f} MB" if ours else ""
    return Check(
        "shards",
        f"{corpus}{size}",
        _named(hosts, wrong),
        "put the corpus where all nodes see it; corpus-builder verify tells if it is whole",
    )


def _look_at(corpus: Path) -> tuple[str, int, int]:
    """Hash of the index, shards and their bytes; raises if one is not there in its full size."""
    index = load_index(corpus)
    for entry in index.shards:
        path = corpus / entry.name
        with open(path, "rb") as stream:
            stream.read(1)
            size_bytes = stream.seek(0, os.SEEK_END)
        if size_bytes != entry.size_bytes:
            raise OSError(f"{path} has {size_bytes} bytes instead of {entry.size_bytes}")
    return index.sha256(), len(index.shards), sum(entry.size_bytes for entry in index.shards)


def _attempt(work: Callable[[], ResultT]) -> tuple[ResultT | None, str]:
    """The result of `work`, or what went wrong."""
    try:
        return work(), ""
    except (OSError, UserFacingError) as error:
        return None, str(error)


def _everywhere(hosts: Sequence[str], problem: str) -> tuple[str, ...]:
    return _named(hosts, dist.all_gather_objects(problem))


def _named(hosts: Sequence[str], wrong: Sequence[str]) -> tuple[str, ...]:
    """The ranks that have a problem, each with its host."""
    return tuple(
        f"rank {rank} ({host}): {problem}"
        for rank, (host, problem) in enumerate(zip(hosts, wrong, strict=True))
        if problem
    )


def _report(checks: Sequence[Check]) -> None:
    screen = terminal.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("what", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        table.add_row("[red]wrong[/red]" if check.wrong else "[green]ok[/green]", check.name, check.found)
    screen.print(table)
    for check in checks:
        for problem in check.wrong:
            screen.print(f"wrong: {check.name}: {problem}; {check.remedy}", markup=False)
    if not any(check.wrong for check in checks):
        screen.print("A run over these ranks has what it needs.")
