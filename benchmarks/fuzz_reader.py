"""Damaged files by the million: the reader must soon give functions or `BinaryError`, whatever the bytes.

Takes small real files (objects, linked and stripped ones, archives, assembler text, for three instruction
sets, compiled here), damages each copy in one of several ways, and reads it in the process itself, on all
cores. Counts what came of them: read, refused, crashed (any other exception, or the end of the process), slow
(more than two seconds of processor time), large (more than 1 GiB of memory). Writes each crash and hang to
`--keep`. Prints, as its last line, one JSON object; the exit code says whether all was read or refused.

    python benchmarks/fuzz_reader.py [--inputs 100000] [--seed 0] [--workers 2] [--keep FOLDER] [--save]
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from _saved import save

from asmtrain.binary import functions_of
from asmtrain.errors import BinaryError

SOURCE = """
int counter; extern int other(int); static int table[4];
int first(int x) { counter += x; return other(x) + table[x & 3]; }
int second(int k) { switch (k) { case 0: return 3; case 1: return other(9); case 2: return counter;
  case 3: return k * 77; case 4: return 12; default: return first(k); } }
"""
COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
}
SLOW_S = 2.0
MEMORY_BYTES = 1 << 30
INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def main() -> None:
    """Damage, read, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "asmtrain-fuzz")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/fuzz_reader.json")
    arguments = parser.parse_args()
    files = seeds()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    each = -(-arguments.inputs // arguments.workers)
    queue: multiprocessing.SimpleQueue[dict[str, int]] = multiprocessing.SimpleQueue()
    workers = [
        multiprocessing.Process(
            target=fuzz, args=(files, each, arguments.seed * 1000 + number, arguments.keep, queue)
        )
        for number in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    counts = collections.Counter({"died": sum(worker.exitcode != 0 for worker in workers)})
    while not queue.empty():
        counts.update(queue.get())
    seconds = time.monotonic() - began
    figures = {
        "inputs": each * arguments.workers,
        "seed": arguments.seed,
        "files": len(files),
        **{key: counts[key] for key in ("read", "refused", "crashed", "slow", "large", "died")},
        "inputs_per_s": round(each * arguments.workers / seconds),
        "inputs_per_cpu_s": round(1000 * each * arguments.workers / max(1, counts["cpu_ms"])),
        "workers": arguments.workers,
        "peak_mib": counts["peak_mib"] // arguments.workers,
    }
    if arguments.save:
        save("fuzz_reader", figures)
    print(json.dumps(figures))
    raise SystemExit(any(figures[key] for key in ("crashed", "slow", "large", "died")))


def seeds() -> list[bytes]:
    """Small real files of all kinds."""
    found = []
    with tempfile.TemporaryDirectory(prefix="asmtrain-fuzz-") as name:
        folder = Path(name)
        (folder / "unit.c").write_text(SOURCE)
        for compiler in filter(shutil.which, COMPILERS.values()):
            prefix = compiler.removesuffix("gcc")

            def run(*words: str) -> None:
                subprocess.run(words, cwd=folder, check=True)

            run(compiler, "-O1", "-w", "-fPIC", "-S", "unit.c", "-o", "unit.s")
            run(compiler, "-c", "unit.s", "-o", "unit.o")
            run(
                compiler,
                "-shared",
                "-nostdlib",
                "-Wl,--build-id=none,-z,max-page-size=64",
                "unit.s",
                "-o",
                "unit.so",
            )
            run(f"{prefix}strip", "-o", "stripped.so", "unit.so")
            (folder / "unit.a").unlink(missing_ok=True)
            run(f"{prefix}ar", "rc", "unit.a", "unit.o")
            found += [
                (folder / f).read_bytes() for f in ("unit.s", "unit.o", "unit.so", "stripped.so", "unit.a")
            ]
    return found


def fuzz(
    files: list[bytes],
    inputs: int,
    seed: int,
    keep: Path,
    queue: "multiprocessing.SimpleQueue[dict[str, int]]",
) -> None:
    """One worker: its own seed, its own counts."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY_BYTES, 4 * MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _too_slow)
    counts: collections.Counter[str] = collections.Counter()
    for content in damaged(files, inputs, seed):
        outcome = read(content)
        counts[outcome] += 1
        if outcome not in ("read", "refused"):
            name = hashlib.sha256(content).hexdigest()[:12]
            (keep / f"{outcome}-{name}").write_bytes(content)
    counts["cpu_ms"] = int(1000 * time.process_time())
    counts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    counts["large"] = int(counts["peak_mib"] > MEMORY_BYTES >> 20)
    queue.put(counts)


class Slow(Exception):
    """An input took too long."""


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise Slow


def read(content: bytes) -> str:
    """What comes of one input."""
    signal.setitimer(signal.ITIMER_PROF, SLOW_S)
    try:
        functions_of(content, Path("fuzzed"))
    except BinaryError:
        return "refused"
    except Slow:
        return "slow"
    except Exception:
        return "crashed"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read"


def damaged(files: list[bytes], inputs: int, seed: int) -> Iterator[bytes]:
    """So many damaged copies; the same for the same seed."""
    rng = random.Random(seed)
    ways = (flip_bits, set_bytes, truncate, set_header_field, set_section_field, splice, repeat, randomise)
    for _ in range(inputs):
        content = bytearray(rng.choice(files))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            rng.choice(ways)(content, rng)
        yield bytes(content)


def flip_bits(content: bytearray, rng: random.Random) -> None:
    """A few bits anywhere."""
    for _ in range(rng.randrange(1, 9)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def set_bytes(content: bytearray, rng: random.Random) -> None:
    """A word anywhere becomes one that programs trip over."""
    width = rng.choice((1, 2, 4, 8))
    if len(content) > width:
        at = rng.randrange(len(content) - width)
        content[at : at + width] = (rng.choice(INTERESTING) & (1 << 8 * width) - 1).to_bytes(width, "little")


def truncate(content: bytearray, rng: random.Random) -> None:
    """The file ends early."""
    del content[rng.randrange(len(content) + 1) :]


def set_header_field(content: bytearray, rng: random.Random) -> None:
    """A field of the ELF header, or of an archive member's."""
    at = rng.choice((16, 18, 24, 32, 40, 52, 54, 56, 58, 60, 62))
    if len(content) >= 64:
        width = 8 if 24 <= at < 48 else 2
        value = rng.choice((*INTERESTING, rng.randrange(1 << 16), len(content)))
        content[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def set_section_field(content: bytearray, rng: random.Random) -> None:
    """A field of a section header: type, flags, address, offset, size, link, info, entry size."""
    if len(content) < 64 or content[:4] != b"\x7fELF":
        return
    (start,) = struct.unpack_from("<Q", content, 40)
    (count,) = struct.unpack_from("<H", content, 60)
    at = start + 64 * rng.randrange(max(1, count))
    field, width = rng.choice(((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (56, 8)))
    if at + 64 <= len(content):
        value = rng.choice((*INTERESTING, rng.randrange(64), rng.randrange(len(content)), len(content)))
        content[at + field : at + field + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def splice(content: bytearray, rng: random.Random) -> None:
    """A stretch stands where another was."""
    if len(content) > 16:
        size = rng.randrange(1, min(256, len(content) // 2))
        source, place = (rng.randrange(len(content) - size) for _ in range(2))
        content[place : place + size] = content[source : source + size]


def repeat(content: bytearray, rng: random.Random) -> None:
    """A stretch stands there many times: long lines, long tables, deep nests."""
    if len(content) > 16:
        size = rng.randrange(1, 64)
        at = rng.randrange(len(content))
        content[at:at] = content[at : at + size] * rng.choice((2, 16, 256))


def randomise(content: bytearray, rng: random.Random) -> None:
    """Instructions that no compiler writes: a stretch of any bytes."""
    if len(content) > 16:
        size = rng.randrange(4, min(1024, len(content)))
        at = rng.randrange(len(content) - size)
        content[at : at + size] = rng.randbytes(size)


if __name__ == "__main__":
    main()
