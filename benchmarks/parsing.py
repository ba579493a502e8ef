"""What reading assembly and C costs, beside the compilers that made them.

Compiles the C files of a folder with the compilers that are installed, at several levels, and then reads the
texts as a worker does: split into functions, hash and count each body, clean each text, find each function's
source. Prints microseconds a function and the share of the compilers' CPU, and as its last line one JSON
object of figures. Files that do not compile on their own are left out.

    python benchmarks/parsing.py [FOLDER] [--files 40] [--levels O0 O2 O3]
"""

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from corpus_builder import asm, csource

TINY = Path(__file__).parents[1] / "tests" / "corpus" / "tiny"
COMMANDS = {
    isa: [[f"{isa}-linux-gnu-gcc"], ["clang-19", f"--target={isa}-linux-gnu", "-fno-addrsig"]]
    for isa in asm.ISAS
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=TINY)
    parser.add_argument("--files", type=int, default=40, help="take so many files at most, evenly spread")
    parser.add_argument("--levels", nargs="+", default=["O0", "O2", "O3"])
    arguments = parser.parse_args()
    files = sorted(arguments.folder.rglob("*.c"))
    files = files[:: max(1, len(files) // arguments.files)][: arguments.files]
    texts, preprocessed, compile_s = compile_all(files, arguments.folder, arguments.levels)
    figures = measure(texts, preprocessed, arguments.folder)
    num_functions = figures.pop("num_functions")
    show(figures, num_functions, compile_s)
    shares = {name: round(seconds / compile_s, 4) for name, seconds in figures.items()}
    per_function = {
        f"{name}_us": round(seconds / num_functions * 1e6, 1) for name, seconds in figures.items()
    }
    print(
        json.dumps(
            {
                "num_files": len(files),
                "num_function_variants": num_functions,
                "compile_us": round(compile_s / num_functions * 1e6, 1),
                **per_function,
                "worker_share": round(shares["split"] + shares["body"], 4),
            }
        )
    )


def compile_all(
    files: Iterable[Path], folder: Path, levels: list[str]
) -> tuple[list[tuple[str, bytes]], list[bytes], float]:
    """Assembler texts with their ISA, one preprocessed text a file, and the compilers' CPU seconds."""
    texts: list[tuple[str, bytes]] = []
    preprocessed: list[bytes] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "unit.s"
        for file in files:
            flags = ["-w", "-D_GNU_SOURCE", f"-I{file.parent}", f"-I{folder}", f"-I{folder / 'include'}"]
            for isa, level in product(COMMANDS, levels):
                for command in COMMANDS[isa]:
                    argv = [*command, *flags, f"-{level}", "-S", str(file), "-o", str(output)]
                    if shutil.which(command[0]) and not run(argv).returncode:
                        texts.append((isa, output.read_bytes()))
            if shutil.which("gcc") and not (result := run(["gcc", "-E", *flags, str(file)])).returncode:
                preprocessed.append(result.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return texts, preprocessed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(argv: list[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a compiler."""
    return subprocess.run(argv, capture_output=True, timeout=300)


def measure(texts: list[tuple[str, bytes]], preprocessed: list[bytes], root: Path) -> dict[str, Any]:
    """CPU seconds of each step over all texts, and the number of functions."""
    functions: list[tuple[str, str]] = []

    def split() -> None:
        for isa, text in texts:
            joined = asm.join_clones(asm.split_symbols(text))
            functions.extend((isa, function.text) for function in joined.values())

    split_s = seconds(split)
    return {
        "split": split_s,
        "body": seconds(lambda: [asm.body(text, isa) for isa, text in functions]),
        "clean": seconds(lambda: [asm.clean(text, isa) for isa, text in functions]),
        "source": seconds(lambda: [csource.functions_of(text, root) for text in preprocessed]),
        "num_functions": len(functions),
    }


def seconds(step: Callable[[], object]) -> float:
    """CPU time of one call: the lines remembered by earlier ones are part of what is measured."""
    started = time.process_time()
    step()
    return time.process_time() - started


def show(figures: dict[str, float], num_functions: int, compile_s: float) -> None:
    """Print a table."""
    table = Table("step", "us a function-variant", "of the compilers' CPU")
    for name, value in {**figures, "compile": compile_s}.items():
        table.add_row(name, f"{value / num_functions * 1e6:,.1f}", f"{value / compile_s:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
