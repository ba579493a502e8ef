"""Writing and reading one corpus: by us, webdataset, Ray Data and HF datasets, and bare zstd decompression.

All hold every member of every sample in memory as bytes, one sample at a time, and touch nothing else.
Each contender runs in turn in every round, Ray Data in rounds of its own; the figures are medians. Reading
begins with files in the page cache. It wants two free cores, for we read with two threads. The shards are
those of the corpus given; where there is none, they are made up, and the first line says so. Prints a table,
and as its last line one JSON object: each ratio is their time over ours, so above 1 is ours;
`read_vs_bare_zstd` is the bare time over ours, so 1 is as fast as possible.

    python benchmarks/shards.py [CORPUS] [--megabytes 200] [--rounds 5] [--save]
"""

import argparse
import datetime
import itertools
import json
import logging
import os
import platform
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from rich.console import Console
from rich.table import Table

from corpus_builder.shards import read_samples, write_samples

RESULTS = Path(__file__).parent / "results" / "shards.json"
ZSTD_LEVEL = 9  # the corpus builder's own
Samples = list[tuple[str, dict[str, bytes]]]


def main() -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("runs/demo/corpus"))
    parser.add_argument("--megabytes", type=int, default=200, help="of text, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = parser.parse_args()
    if not shutil.which("zstd"):
        parser.error("zstd is missing: apt-get install zstd")
    shards, origin = load(arguments.corpus, arguments.megabytes * 1_000_000)
    print(f"corpus: {origin}")
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(shards, Path(folder), arguments.rounds)
    figures = {**setting(shards, origin, arguments.rounds), "seconds": seconds, **ratios(seconds)}
    show(seconds, figures["text_bytes"])
    if arguments.save:
        RESULTS.write_text(json.dumps({**machine(), **figures}, indent=1) + "\n")
    print(json.dumps(figures))


def load(corpus: Path, max_bytes: int) -> tuple[list[Samples], str]:
    """The samples of each shard, whole shards up to the limit but for the first; or made-up ones."""
    shards: list[Samples] = []
    left = max_bytes
    for path in sorted(corpus.glob("*-[0-9]*.tar*")):
        samples = list(read_samples(path))
        left -= num_bytes([samples])
        if shards and left < 0:
            break
        shards.append(samples)
    if shards:
        return shards, f"{len(shards)} shards of {corpus}"
    return [list(made_up(number)) for number in range(2)], f"made up, for {corpus} holds no shards"


def made_up(seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A thousand samples of sixteen variants that look and compress like assembly, about 30 MB."""
    chance = random.Random(seed)
    words = [
        f"\t{chance.choice(('mov', 'ldr', 'add', 'bl', 'cmp'))}\tx{i % 31}, [sp, {i}]\n" for i in range(900)
    ]
    variants = [
        f"{isa}.{compiler}.{level}.s"
        for isa in ("aarch64", "x86_64")
        for compiler in ("gcc12", "clang19")
        for level in ("o0", "o1", "o2", "o3")
    ]
    for _ in range(1000):
        length = min(3000, int(chance.lognormvariate(4, 0.8)))
        members = {name: "".join(chance.choices(words, k=length)).encode() for name in variants}
        yield f"{chance.getrandbits(96):024x}", {"json": b"{}", "c": b"int f(void) { return 0; }", **members}


def num_bytes(shards: list[Samples]) -> int:
    return sum(len(body) for samples in shards for _, members in samples for body in members.values())


def measure(shards: list[Samples], folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of each contender; writers first, whose files the readers then read."""
    for suffix in ("tar.zst", "tar"):
        for number, samples in enumerate(shards):
            write_ours(samples, folder / f"s-{number:05d}.{suffix}")
    compressed, plain = (sorted(folder.glob(f"s-*.{suffix}")) for suffix in ("tar.zst", "tar"))
    contenders: dict[str, Callable[[], int]] = {
        "write: ours": lambda: write_all(write_ours, shards, folder),
        "write: webdataset, zstd": lambda: write_all(write_webdataset, shards, folder),
        "write: webdataset, zstd -T0": lambda: write_all(write_webdataset_threads, shards, folder),
        "read: ours": lambda: count(sample for path in compressed for _, sample in read_samples(path)),
        "read: bare zstd": lambda: decompress(compressed),
        "read: webdataset": lambda: count(read_webdataset(compressed)),
        "read: ours, plain tar": lambda: count(s for path in plain for _, s in read_samples(path)),
        "read: HF datasets, plain tar": lambda: count(read_hugging_face(plain, extensions)),
    }
    extensions = {name for samples in shards for _, members in samples for name in members}
    expected = sum(map(len, shards))
    seconds = run_rounds(contenders, rounds, expected)
    # Last, for its processes stay: they would take time from the others.
    start_ray()
    return seconds | run_rounds({"read: Ray Data": lambda: count(read_ray(compressed))}, rounds, expected)


def run_rounds(contenders: dict[str, Callable[[], int]], rounds: int, expected: int) -> dict[str, float]:
    """Each contender once a round, in turn; median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            found = contender()
            taken[name].append(time.perf_counter() - started)
            assert found in (expected, -1), (name, found)
    return {name: round(statistics.median(seconds), 4) for name, seconds in taken.items()}


def write_all(writer: Callable[[Samples, Path], None], shards: list[Samples], folder: Path) -> int:
    for samples in shards:
        writer(samples, folder / "written.tar.zst")
    return sum(map(len, shards))


def write_ours(samples: Samples, path: Path) -> None:
    ready = ((key, members, len(members) - 2) for key, members in samples)
    write_samples(path, "train", ready, zstd_level=ZSTD_LEVEL)


def write_webdataset(samples: Samples, path: Path, *options: str) -> None:
    import webdataset

    with open(path, "wb") as target:
        command = ["zstd", "-q", f"-{ZSTD_LEVEL}", *options]
        zstd = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=target)
        with zstd.stdin, webdataset.TarWriter(zstd.stdin) as writer:
            for key, members in samples:
                writer.write({"__key__": key, **members})
        zstd.stdin.close()
        if zstd.wait():
            raise OSError("zstd failed")
        os.fsync(target.fileno())  # as we do


def write_webdataset_threads(samples: Samples, path: Path) -> None:
    write_webdataset(samples, path, "-T0")


def count(samples: Iterable[Any]) -> int:
    return sum(1 for _ in samples)


def decompress(paths: list[Path]) -> int:
    """Every byte once, into one buffer; counts nothing."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            while stream.readinto(buffer):
                pass
    return -1


def read_webdataset(paths: list[Path]) -> Iterator[Any]:
    import webdataset

    urls = [f"pipe:zstd -dcq {path}" for path in paths]
    return iter(webdataset.WebDataset(urls, shardshuffle=False))


def start_ray() -> None:
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(1).take_all()  # its first job starts workers


def read_ray(paths: list[Path]) -> Iterator[Any]:
    import ray.data

    return iter(ray.data.read_webdataset([str(path) for path in paths], decoder=None).iter_rows())


def read_hugging_face(paths: list[Path], extensions: Iterable[str]) -> Iterator[Any]:
    """Its columns are given: it would infer them from five samples, and refuse others."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    columns = {name: datasets.Value("binary") for name in sorted(extensions)}
    columns |= {"__key__": datasets.Value("string"), "json": datasets.Json()}
    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path) for path in paths]},
        features=datasets.Features(columns),
        split="train",
        streaming=True,
    )
    return iter(found)


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Their time over ours; HF datasets against our reading of the same plain tar."""
    ours = seconds["read: ours"]
    best_webdataset = min(seconds["write: webdataset, zstd"], seconds["write: webdataset, zstd -T0"])
    return {
        "read_vs_webdataset": round(seconds["read: webdataset"] / ours, 3),
        "read_vs_ray_data": round(seconds["read: Ray Data"] / ours, 3),
        "read_vs_hf_datasets": round(
            seconds["read: HF datasets, plain tar"] / seconds["read: ours, plain tar"], 3
        ),
        "read_vs_bare_zstd": round(seconds["read: bare zstd"] / ours, 3),
        "write_vs_webdataset": round(best_webdataset / seconds["write: ours"], 3),
    }


def setting(shards: list[Samples], origin: str, rounds: int) -> dict[str, Any]:
    samples = list(itertools.chain.from_iterable(shards))
    return {
        "corpus": origin,
        "samples": len(samples),
        "members": sum(len(members) for _, members in samples),
        "text_bytes": num_bytes(shards),
        "rounds": rounds,
    }


def machine() -> dict[str, str]:
    """Where and when this was run."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores of {model}, {memory} GiB, Python {platform.python_version()}",
        "commit": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def show(seconds: dict[str, float], text_bytes: int) -> None:
    """The table."""
    table = Table("contender", "seconds", "MB of text/s", title="shards, medians")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.3f}", f"{text_bytes / taken / 1e6:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the contenders' own
    main()
