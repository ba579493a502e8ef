"""The driver's memory from parts to a finished corpus, at one size and at ten times that size.

Makes parts as a build leaves them: functions of their own source and assembly, some of them near duplicates
or met in two units; then finds duplicates and writes the corpus in a process of its own, whose peak counts.
Prints a table, and as its last line one JSON object; `driver_memory_growth` is the larger peak over the
smaller.

    python benchmarks/memory.py [--functions 2500]
"""

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from corpus_builder.config import CorpusConfig, Project
from corpus_builder.dedup import signatures
from corpus_builder.parts import encode_part
from corpus_builder.plan import Plan, PlannedUnit, silent
from corpus_builder.publish import publish_corpus
from corpus_builder.record import (
    Command,
    FunctionMeta,
    FunctionRecord,
    SourceMeta,
    Unit,
    UnitResult,
    VariantMeta,
    function_key,
)

SPLITS = ["train"] * 8 + ["valid", "test"]
VARIANTS = [
    f"{isa}.gcc12.{level}"
    for isa in ("aarch64", "x86_64", "riscv64")
    for level in ("o0", "o1", "o2", "o3", "os")
]
FUNCTIONS_PER_UNIT = 20
NUM_PERM, SHINGLE = 128, 5


def main() -> None:
    """Measure both sizes and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=2500, help="of the smaller corpus")
    parser.add_argument("--publish", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        print(json.dumps(publish(arguments.publish)))
        return
    rows = [measure(arguments.functions * scale) for scale in (1, 10)]
    table = Table("functions", "assembly MB", "peak MB", "functions/s")
    for row in rows:
        table.add_row(
            *(f"{row[name]:,}" for name in ("functions", "assembly_mb", "peak_mb", "functions_per_s"))
        )
    Console().print(table)
    growth = rows[1]["peak_mb"] / rows[0]["peak_mb"]
    print(json.dumps({"small": rows[0], "large": rows[1], "driver_memory_growth": round(growth, 3)}))


def measure(num_functions: int) -> dict[str, Any]:
    """Make the parts here, publish them in another process."""
    with tempfile.TemporaryDirectory() as folder:
        make_parts(Path(folder), num_functions)
        child = [sys.executable, __file__, "--publish", folder]
        result: dict[str, Any] = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
        return result


def publish(folder: Path) -> dict[str, Any]:
    """Publish the parts in a folder; what that took of this process."""
    plan, config = plan_of(folder)
    started = time.perf_counter()
    index = publish_corpus(
        config, plan, work=folder / "work", target=folder / "corpus", crashes={}, progress=silent
    )
    seconds = time.perf_counter() - started
    return {
        "functions": index.totals["functions"],
        "assembly_mb": index.totals["assembly_bytes"] // 10**6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "functions_per_s": round(index.totals["functions"] / seconds),
    }


def plan_of(folder: Path) -> tuple[Plan, CorpusConfig]:
    """The plan of a build whose parts lie in the folder."""
    projects = tuple(a_project(f"p{number}") for number in range(len(SPLITS)))
    settings = {
        "name": "memory",
        "output": folder / "corpus",
        "toolchains": ["aarch64.gcc"],
        "projects": projects,
    }
    units = [
        a_unit(project, int(path.stem), size=path.stat().st_size)
        for project in projects
        for path in (folder / "work" / "parts" / project.name).glob("*.part")
    ]
    names = [project.name for project in projects]
    plan = Plan(
        units=tuple(sorted(units, key=lambda planned: planned.unit.id)),
        toolchains=(),
        notes=(),
        projects=projects,
        splits=dict(zip(names, SPLITS, strict=True)),
        lineages={name: name for name in names},
        builds={name: {} for name in names},
        roots={},
        failures=(),
    )
    return plan, CorpusConfig.model_validate(settings)


def a_project(name: str) -> Project:
    source = {"kind": "path", "path": f"/src/{name}"}
    return Project.model_validate({"name": name, "version": "1", "license": "MIT", "source": source})


def a_unit(project: Project, number: int, *, size: int) -> PlannedUnit:
    flags = tuple(f"-I{{root}}/include/{part}" for part in range(10))
    command = Command(root=Path("/src"), cwd=".", input=f"{number}.c", flags=flags)
    unit = Unit(project.name, f"{number}.c", {isa: command for isa in ("aarch64", "x86_64", "riscv64")}, size)
    return PlannedUnit(unit, project, f"{project.name}/{number}.part")


def make_parts(folder: Path, num_functions: int) -> None:
    """One part after the other, spread over the projects."""
    chance = random.Random(0)
    blocks = [a_block(chance) for _ in range(500)]
    for number in range(num_functions // FUNCTIONS_PER_UNIT):
        project = f"p{number % len(SPLITS)}"
        records, tokens = unit_records(chance, blocks, project, number)
        rows = signatures(tokens, num_perm=NUM_PERM, shingle=SHINGLE)
        path = folder / "work" / "parts" / project / f"{number}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_part(UnitResult(f"{project}/{number}.c", tuple(records)), rows))


def unit_records(
    chance: random.Random, blocks: Sequence[str], project: str, number: int
) -> tuple[list[FunctionRecord], list[list[str]]]:
    """A unit's records by key, with their source tokens.

    Every third is a near duplicate of the one before; the last stands in a header that other units share.
    """
    found = []
    tokens: list[str] = []
    for line in range(FUNCTIONS_PER_UNIT):
        if line % 3 or not tokens:
            tokens = [f"t{chance.randrange(10**6)}" for _ in range(chance.randrange(40, 200))]
        else:
            tokens = [*tokens[:-1], f"t{line}"]
        file = f"{number}.c" if line < FUNCTIONS_PER_UNIT - 1 else f"{number // 20}.h"
        found.append((a_record(chance, blocks, project, file, line, tokens), tokens))
    found.sort(key=lambda item: item[0].key)
    return [record for record, _ in found], [own for _, own in found]


def a_record(
    chance: random.Random, blocks: Sequence[str], project: str, file: str, line: int, tokens: Sequence[str]
) -> FunctionRecord:
    source = " ".join(tokens)
    texts = {name: "".join(chance.choices(blocks, k=chance.randrange(2, 9))) for name in VARIANTS}
    meta = FunctionMeta(
        project=project,
        version="1",
        source=SourceMeta(kind="path", location=project, sha256=None),
        license="MIT",
        file_license="",
        split="",
        unit=file,
        file=file,
        name=f"f{line}",
        signature=f"int f{line}(void)",
        lines=(line, line + 9),
        comment="",
        source_sha256=digest(source),
        cluster="",
        variants={name: a_variant(text, f"{file} {line} {name}") for name, text in texts.items()},
    )
    return FunctionRecord(function_key(project, file, line, f"f{line}"), meta, source, texts)


def a_variant(text: str, identity: str) -> VariantMeta:
    return VariantMeta(
        compiler="gcc 12.2.0",
        flags=("-O2", "-Iinclude", "-DHAVE_CONFIG_H"),
        sha256=digest(text),
        body_sha256=digest(identity),
        num_instructions=text.count("\n"),
        code_bytes=4 * text.count("\n"),
        symbol="f",
    )


def a_block(chance: random.Random) -> str:
    """Ten lines that compress about as assembly does."""
    lines = (
        f"\t{chance.choice(['mov', 'add', 'ldr', 'str', 'cmp', 'bl'])}\tx{chance.randrange(31)}, "
        f"[sp, {8 * chance.randrange(40)}]\n"
        for _ in range(10)
    )
    return "".join(lines)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
