"""Read files that nobody vouches for: `binary.functions_in` in a child that can neither hang nor harm.

In go paths, out come the functions of each, or the `BinaryError` that says in one line what is wrong with it.
The child sees the files alone (bubblewrap, where it works), has no network, and is killed at its limits on
time and memory; what it was reading then is at fault, and the files behind it are read by another child.
Cost: a fifth of a second for a child, which reads any number of files; a process is the price of a crash or
a hang in the disassembler that costs one file.
"""

import json
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import asmtrain
import corpus_builder
from asmtrain.binary import BinaryFunction, Share, functions_in
from asmtrain.errors import BinaryError
from corpus_builder.process import Completed, Jail, Limits, run

SECONDS = 60.0
"""For one file: a library of 10,000 functions takes a quarter of that."""
MAX_BYTES = 256 << 20
_MEMORY_MIB = 4096
_OUTPUT_MIB = 2048
_PROGRAM = ["-m", "asmtrain.untrusted"]
"""What Python runs in the child."""
_REMEDY = "leave it out, or read it with asmtrain.binary.functions_in if you trust it"


class Job(NamedTuple):
    """A file to read."""

    path: Path
    isa: str = ""
    """Of assembler text; guessed without it."""
    share: int = 0
    num_shares: int = 1
    """Which part of the file's functions is asked for: one of so many, in their order."""


def read_untrusted(
    path: Path, *, isa: str = "", seconds: float = SECONDS, max_bytes: int = MAX_BYTES
) -> list[BinaryFunction]:
    """The functions of one file, as `functions_in` gives them.

    Args:
        path: the file.
        isa: of assembler text; guessed without it.
        seconds: processor time that reading may take.
        max_bytes: size of the largest file that is read.

    Raises:
        BinaryError: what `functions_in` raises; the file is larger, or reading it met a limit or crashed.
    """
    ((_, result),) = read_all([Job(path, isa)], seconds=seconds, max_bytes=max_bytes)
    if isinstance(result, BinaryError):
        raise result
    return result


def read_all(
    jobs: Sequence[Job], *, seconds: float = SECONDS, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Job, list[BinaryFunction] | BinaryError]]:
    """Each job with its functions or its error, in their order, read by as few children as possible."""
    left = list(jobs)
    while left:
        if refused := _refusal(left[0].path, max_bytes):
            yield left.pop(0), refused
            continue
        batch = _readable(left, max_bytes)
        completed = _child(batch, seconds)
        lines = completed.stdout.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")][: len(batch)]
        for line in whole:
            yield left.pop(0), _result(line)
        if len(whole) < len(batch):
            job = left.pop(0)
            yield job, _blamed(job.path, completed, seconds)


def _readable(jobs: Sequence[Job], max_bytes: int) -> list[Job]:
    """The first jobs, up to one that need not be tried."""
    found = []
    for job in jobs:
        if _refusal(job.path, max_bytes):
            break
        found.append(job)
    return found


def _refusal(path: Path, max_bytes: int) -> BinaryError | None:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return BinaryError(f"cannot read {path}: {reason}", remedy="check the path")
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        return BinaryError(f"cannot read {path}: it is {kind}", remedy="name the files in it")
    if found.st_size > max_bytes:
        return BinaryError(
            f"{path} has {found.st_size:,} bytes, more than the {max_bytes:,} that are read",
            remedy="split it, or strip its debug information",
        )
    return None


def _child(jobs: Sequence[Job], seconds: float) -> Completed:
    """A process that prints a line of JSON for each job."""
    places = {f"/input/{number}/{job.path.name}": job.path.resolve() for number, job in enumerate(jobs)}
    jailed = _has_sandbox()
    seen = list(places) if jailed else [str(path) for path in places.values()]
    request = {
        "seconds": seconds,
        "jobs": [(at, str(path), *rest) for at, (path, *rest) in zip(seen, jobs, strict=True)],
    }
    with tempfile.TemporaryDirectory() as folder:
        return run(
            [sys.executable, *_PROGRAM],
            cwd=Path(folder),
            limits=Limits(30 + seconds * len(jobs) * 2, _MEMORY_MIB, _OUTPUT_MIB),
            env={"PYTHONPATH": os.pathsep.join(_search_path()), "PATH": os.defpath},
            stdin=json.dumps(request).encode(),
            sandbox="bwrap" if jailed else "none",
            jail=Jail(readable=places | _installation()) if jailed else None,
        )


@cache
def _has_sandbox() -> bool:
    """Some containers have bubblewrap but do not let it make namespaces."""
    limits = Limits(time_s=10, memory_mib=1024, output_mib=1)
    return (
        shutil.which("bwrap") is not None and run(["true"], cwd=Path.cwd(), limits=limits, sandbox="bwrap").ok
    )


def _search_path() -> list[str]:
    """`sys.path`, with the folders of our packages: an installation for development finds them without it."""
    own = [str(Path(package.__path__[0]).parent) for package in (asmtrain, corpus_builder)]
    return [*own, *filter(None, sys.path)]


def _installation() -> dict[str, Path]:
    """Python, this package and its libraries, where they lie; the sandbox has /usr anyway."""
    folders = {Path(entry).absolute() for entry in (sys.prefix, sys.base_prefix, *sys.path) if entry}
    folders |= {Path(package.__path__[0]) for package in (asmtrain, corpus_builder)}
    outside = [folder for folder in folders if folder.is_dir() and not folder.is_relative_to("/usr")]
    return {str(folder): folder for folder in sorted(outside)}


def _result(line: bytes) -> list[BinaryFunction] | BinaryError:
    answer = json.loads(line)
    if "error" in answer:
        return BinaryError(answer["error"], remedy=answer["remedy"])
    return [BinaryFunction(**function) for function in answer["functions"]]


def _blamed(path: Path, completed: Completed, seconds: float) -> BinaryError:
    """What to say of the file that a child was reading when it ended."""
    if completed.exit in (-signal.SIGXCPU, 128 + signal.SIGXCPU) or completed.cause == "timeout":
        reason = f"takes longer than {seconds:g} s to read"
    elif completed.cause == "memory":
        reason = f"takes more than {_MEMORY_MIB} MiB to read"
    elif completed.cause == "output":
        reason = f"holds more than {_OUTPUT_MIB} MiB of functions"
    else:
        last = completed.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        reason = f"cannot be read, its reader ended with {completed.exit}: {last}"
    return BinaryError(f"{path} {reason}", remedy=_REMEDY)


def _answers(jobs: Iterable[tuple[str, str, str, int, int]], seconds: float) -> Iterator[str]:
    """In the child: a line for each job, the next job's time limit set before it is read."""
    import resource

    for place, name, isa, *share in jobs:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            functions = functions_in(Path(place), isa=isa, share=Share(*share))
        except BinaryError as error:
            yield json.dumps({"error": error.message.replace(place, name), "remedy": error.remedy})
        else:
            yield json.dumps({"functions": [asdict(function) for function in functions]})


def _main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    for line in _answers(request["jobs"], request["seconds"]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
