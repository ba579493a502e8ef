"""Functions a second from ELF files to vectors, on one core and on two, and where the time goes.

Links Lua 5.4 for three instruction sets (see benchmarks/linked.py), strips it, and embeds the libraries as
`asmtrain embed` does, on one core and on two: reading in children, then the model. Then does each step alone
on one core: ELF tables and function bounds, disassembly, symbols and labels, the view, tokens, the model.
Disassembles the same files with objdump as well. Prints, as its last line, one JSON object.

    python benchmarks/embed_speed.py [--model src/asmtrain/shipped] [--repeat 3] [--save]
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _saved import save
from linked import TRIPLES, build, lua_units
from rich.console import Console
from rich.table import Table

from asmtrain.binary import context_of, functions_in
from asmtrain.embed import FileFunctions, read_files
from asmtrain.encoder import Encoder, default_model, embed_texts, load_encoder
from asmtrain.machine.bounds import Function, functions
from asmtrain.machine.capstones import disassemble
from asmtrain.machine.disassembly import function_text
from asmtrain.machine.elf import Elf, read_elf
from asmtrain.tokens import as_read
from corpus_builder import asm


def main() -> None:
    """Build, embed, take apart, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an embedding/ folder; default: the shipped one")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the quickest counts")
    parser.add_argument("--units", type=int, default=33)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/embed_speed.json")
    arguments = parser.parse_args()
    model = arguments.model or default_model()
    encoder = load_encoder(model)
    with tempfile.TemporaryDirectory(prefix="asmtrain-speed-") as name:
        files = libraries(Path(name), arguments.units)
        cores = sorted(os.sched_getaffinity(0))
        figures: dict[str, Any] = {"model": model.name, "libraries": len(files)}
        for key, number in (("functions_per_s", 1), ("functions_per_s_2_threads", 2)):
            if len(cores) < number:
                continue
            os.sched_setaffinity(0, cores[:number])
            runs = [embed(files, encoder) for _ in range(arguments.repeat)]
            figures["functions"], seconds, reading = min(runs, key=lambda run: run[1])
            figures[key] = figures["functions"] / seconds
            figures[f"{key}_read"] = figures["functions"] / reading
        os.sched_setaffinity(0, cores[:1])
        figures["steps_s"] = steps(files, encoder)
        figures["disassembly_s"] = {
            "capstone": figures["steps_s"]["disassemble"],
            "objdump": min(objdump(files) for _ in range(arguments.repeat)),
        }
    show(figures)
    if arguments.save:
        save("embed_speed", figures)
    print(json.dumps(figures))


def libraries(folder: Path, units: int) -> list[Path]:
    """A stripped library for each instruction set."""
    found = []
    for isa, triple in TRIPLES.items():
        _, whole = build(lua_units()[:units], folder / isa, isa, "gcc", "shared", "O2")
        found.append(folder / f"{isa}.so")
        subprocess.run([f"{triple}-strip", "-o", found[-1], whole], check=True)
    return found


def embed(files: list[Path], encoder: Encoder) -> tuple[int, float, float]:
    """Number of functions, seconds to their vectors, and of those seconds the ones for reading."""
    began = time.perf_counter()
    texts = [
        function.view
        for result in read_files(files)
        if isinstance(result, FileFunctions)
        for function in result.functions
    ]
    read = time.perf_counter()
    embed_texts(encoder, list(dict.fromkeys(texts)))
    return len(texts), time.perf_counter() - began, read - began


def steps(files: list[Path], encoder: Encoder) -> dict[str, float]:
    """Processor seconds of each step alone, one after the other, on one core."""
    torch.set_num_threads(1)
    spent: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        spent[step] = time.process_time() - began
        return result

    def parse() -> list[tuple[Elf, Function, bytes]]:
        found = []
        for file in files:
            elf = read_elf(file.read_bytes())
            for function in functions(elf):
                start = function.address - function.section.address + function.section.offset
                found.append((elf, function, elf.content[start : start + function.size]))
        return found

    def write() -> list[str]:
        contexts = {id(elf): context_of(elf) for elf, _, _ in parsed}
        return [
            function_text(code, function.address, elf.isa, contexts[id(elf)])
            for elf, function, code in parsed
        ]

    parsed = timed("parse", parse)
    timed(
        "disassemble",
        lambda: [len(list(disassemble(code, at.address, elf.isa))) for elf, at, code in parsed],
    )
    texts = timed("write", write)
    spent["write"] -= spent["disassemble"]  # writing disassembles once more
    views = timed(
        "view", lambda: [asm.view(text, elf.isa) for text, (elf, _, _) in zip(texts, parsed, strict=True)]
    )
    assert sorted(views) == sorted(function.view for file in files for function in functions_in(file))
    bodies = list(dict.fromkeys(views))
    timed("tokenise", lambda: tokens(bodies, encoder))
    timed("model", lambda: embed_texts(encoder, bodies))
    spent["model"] -= spent["tokenise"]  # which embed_texts does again
    return spent


def tokens(views: list[str], encoder: Encoder) -> Any:
    """What the model reads of views: their events, if it reads those, as ids."""
    texts = [as_read(view, encoder.reads) for view in views]
    return encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens)


def objdump(files: list[Path]) -> float:
    """Processor seconds of objdump over the same files."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    for file in files:
        command = [f"{TRIPLES[file.stem]}-objdump", "-d", "--no-show-raw-insn", file]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def show(figures: dict[str, Any]) -> None:
    """The table of steps, and functions a second."""
    table = Table("step", "us a function", "share")
    total = sum(figures["steps_s"].values())
    for step, seconds in figures["steps_s"].items():
        table.add_row(step, f"{seconds / figures['functions'] * 1e6:.0f}", f"{seconds / total:.0%}")
    console = Console(width=110)
    console.print(table)
    for key in ("functions_per_s", "functions_per_s_2_threads"):
        if key in figures:
            console.print(f"{key}: {figures[key]:,.0f} (reading alone {figures[f'{key}_read']:,.0f})")


if __name__ == "__main__":
    main()
