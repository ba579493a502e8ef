"""Compiler output against linked, stripped binaries: how much of a function's view and vector survives.

Compiles Lua 5.4 (as the demo's corpus config pins it, from the cache) to assembler text, links
that text into a shared library, a position-independent and a static program, strips them, and reads them as
anybody's binaries. Beside each instruction set and kind of file: functions found of those that the unstripped
file names, functions found that are none, views equal to the compiler's, and the cosine of the vectors.
`bare` libraries have no unwind tables: what is found there is found by the code alone. Prints, as its last
line, one JSON object.

    python benchmarks/linked.py [--model runs/demo/export/embedding] [--levels O0 O2] [--units 33] [--save]
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _report import markdown, report
from _saved import save
from rich.console import Console
from rich.table import Table

from asmtrain.binary import functions_in
from asmtrain.encoder import Encoder, default_model, embed_texts, load_encoder
from asmtrain.machine.elf import FUNC, read_elf
from corpus_builder.config import CorpusConfig, load_config
from corpus_builder.sources import fetch, units_of

TRIPLES = {name: f"{name}-linux-gnu" for name in ("aarch64", "x86_64", "riscv64")}
KINDS = {
    "shared": (("-fPIC",), ("-shared", "-Wl,--unresolved-symbols=ignore-all")),
    "program": (("-fPIE",), ("-pie",)),
    "static": (("-fno-pie",), ("-static", "-no-pie")),
    "bare": (
        ("-fPIC", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"),
        ("-shared", "-Wl,--unresolved-symbols=ignore-all"),
    ),
}
"""Options of compiling and of linking."""
TABLES = ("lctype.c", "lopcodes.c")
"""Units of Lua without a function."""


def main() -> None:
    """Build, read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model(), help="default: the shipped one")
    parser.add_argument("--levels", nargs="+", default=["O0", "O2"])
    parser.add_argument("--isas", nargs="+", default=list(TRIPLES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--compilers", nargs="+", default=["gcc", "clang"])
    parser.add_argument("--units", type=int, default=33)
    parser.add_argument("--keep", type=Path, help="folder for what is built; reused if it is there")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/linked.json and the page's table"
    )
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model) if arguments.model.is_dir() else None
    units = lua_units()[: arguments.units]
    rows = []
    for isa in arguments.isas:
        for compiler in arguments.compilers:
            for kind in arguments.kinds:
                for level in arguments.levels:
                    row = {"isa": isa, "compiler": compiler, "kind": kind, "level": level}
                    rows.append(row | measure(units, row, encoder, arguments.keep))
                    print(json.dumps(rows[-1]), flush=True)
    show(rows)
    figures = {"units": len(units), "model": arguments.model.name if encoder else "", "rows": rows}
    if arguments.save:
        save("linked", figures)
        report(Path("docs/embedding.md"), {"linked": page_table(rows)})
    print(json.dumps(figures))


def lua_units() -> list[tuple[Path, list[str]]]:
    """The C files of Lua with their options."""
    config = load_config(CorpusConfig, Path("configs/corpus/demo.yaml"))
    project = next(project for project in config.projects if project.name == "lua")
    root = fetch(project, config.cache)
    commands = [unit.commands["x86_64"] for unit in units_of(project, root, ["x86_64"])]
    units = [(command.root / command.cwd / command.input, [*command.flags]) for command in commands]
    tables = [(units[0][0].with_name(name), units[0][1]) for name in TABLES]
    return tables + units


def measure(
    units: list[tuple[Path, list[str]]], row: dict[str, str], encoder: Encoder | None, keep: Path | None
) -> dict[str, Any]:
    """Build one kind of file and compare its stripped copy with the text it was linked from."""
    isa = row["isa"]
    with tempfile.TemporaryDirectory(prefix="asmtrain-linked-") as name:
        folder = keep / "-".join(row.values()) if keep else Path(name)
        texts, whole = build(units, folder, **row)
        stripped = folder / "stripped"
        subprocess.run([f"{TRIPLES[isa]}-strip", "-o", stripped, whole], check=True)
        named = {symbol.value for symbol in read_elf(whole.read_bytes()).symbols if symbol.kind == FUNC}
        truth = {function.address: function.name for function in functions_in(whole)}
        found = {function.address: function.view for function in functions_in(stripped)}
        expected: dict[str, set[str]] = {}
        for text in texts:
            for function in functions_in(text, isa=isa):
                expected.setdefault(function.name, set()).add(function.view)
    num_named = Counter(truth.values())
    pairs = []
    for address, function_name in truth.items():
        views = expected.get(function_name, set())
        # Static functions may share a name, among themselves and with the C library's.
        if len(views) == 1 and num_named[function_name] == 1 and address in found:
            pairs.append((found[address], *views))
    result = {
        "functions": len(truth),
        "found": len(truth.keys() & found.keys()) / len(truth),
        "false": len(found.keys() - named) / len(found),
        "compared": len(pairs),
        "same_view": sum(one == other for one, other in pairs) / max(1, len(pairs)),
    }
    return result | (cosines(pairs, encoder) if encoder and pairs else {})


def build(
    units: list[tuple[Path, list[str]]], folder: Path, isa: str, compiler: str, kind: str, level: str
) -> tuple[list[Path], Path]:
    """Assembler texts, and the file linked from them."""
    compiling, linking = KINDS[kind]
    driver = [f"{TRIPLES[isa]}-gcc"]
    front = driver if compiler == "gcc" else ["clang-19", f"--target={TRIPLES[isa]}", "-fno-addrsig"]

    def compiled(number: int) -> Path:
        source, flags = units[number]
        text = folder / f"{number:02}-{source.stem}.s"
        command = [*front, *flags, *compiling, f"-{level}", "-w", "-S", source, "-o", text]
        subprocess.run(command, check=True, cwd=source.parent)
        return text

    whole = folder / "whole"
    if whole.is_file():
        return sorted(folder.glob("*.s"))[len(TABLES) :], whole
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(compiled, range(len(units))))
    subprocess.run([*driver, *linking, *texts, "-o", whole, "-lm", "-ldl"], check=True)
    return texts[len(TABLES) :], whole


def cosines(pairs: list[tuple[str, str]], encoder: Encoder) -> dict[str, float]:
    """Median and 5th percentile of the cosines of pairs of views, and of those that differ."""
    left = embed_texts(encoder, [one for one, _ in pairs])
    right = embed_texts(encoder, [other for _, other in pairs])
    found = (left * right).sum(axis=1)
    differing = found[[one != other for one, other in pairs]]
    return {
        "cosine_median": float(np.median(found)),
        "cosine_5th_percentile": float(np.percentile(found, 5)),
        "cosine_median_of_differing": float(np.median(differing)) if len(differing) else 1.0,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "ISA", "compiler", "file", "level", "functions", "found", "false", "same view", "cosine", "5 %"
    )
    for row in rows:
        table.add_row(
            *(row[key] for key in ("isa", "compiler", "kind", "level")),
            str(row["functions"]),
            *(f"{row[key]:.3f}" for key in ("found", "false", "same_view")),
            *(f"{row.get(key, float('nan')):.3f}" for key in ("cosine_median", "cosine_5th_percentile")),
        )
    Console(width=110).print(table)


def page_table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/embedding.md."""
    columns = ["ISA, compiler, level", "file", "functions", "found", "that are none", "same text"]
    cells = [
        [
            f"{row['isa']} {row['compiler']} {row['level']}",
            row["kind"],
            row["functions"],
            *(f"{row[key]:.1%}" for key in ("found", "false", "same_view")),
            *(f"{row.get(key, float('nan')):.3f}" for key in ("cosine_median", "cosine_5th_percentile")),
        ]
        for row in rows
    ]
    return markdown([*columns, "cosine, median", "5th percentile"], cells)


if __name__ == "__main__":
    if missing := [tool for tool in ("clang-19", "riscv64-linux-gnu-gcc") if not shutil.which(tool)]:
        raise SystemExit(f"needs {', '.join(missing)}")
    main()
