"""Parts and what becomes of them: synthetic units in, a corpus out, without compilers."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_builder.config import CorpusConfig, PathSource, Project, Recipe
from corpus_builder.dedup import signatures
from corpus_builder.errors import EmptyCorpus, ShardError
from corpus_builder.parts import encode_part, read_header, read_samples
from corpus_builder.plan import Plan, PlannedUnit, Progress, silent
from corpus_builder.publish import publish_corpus
from corpus_builder.record import (
    Command,
    Failure,
    FunctionMeta,
    FunctionRecord,
    SourceMeta,
    Unit,
    UnitResult,
    VariantMeta,
    function_key,
    record_from_members,
)
from corpus_builder.shards import CorpusIndex, load_index, read_split, verify_shards
from samples import sha256

NUM_PERM = 16
VARIANTS = ("aarch64.gcc12.o2", "x86_64.clang19.o0")


def a_function(project: str, file: str, line: int, tokens: Sequence[str]) -> FunctionRecord:
    """Its comment holds what a careless replacement would take for empty fields; it has an extra member."""
    name = f"f{line}"
    source = " ".join(tokens)
    texts = {variant: f"{name}:\n\tcall {source[:40]}\n\tret # \u00e9\n" for variant in VARIANTS}
    variants = {
        variant: VariantMeta(
            compiler="gcc 12",
            flags=("-O2",),
            sha256=sha256(text),
            body_sha256=sha256(f"{variant} {source}"),
            num_instructions=2,
            code_bytes=8,
            symbol=name,
        )
        for variant, text in texts.items()
    }
    meta = FunctionMeta(
        project=project,
        version="1",
        source=SourceMeta(kind="path", location=project, sha256=None),
        license="MIT",
        file_license="",
        split="",
        unit=file,
        file=file,
        name=name,
        signature=f"int {name}(void)",
        lines=(line, line),
        comment='// "split": "",\n "split": "",\n "cluster": ""',
        source_sha256=sha256(source),
        cluster="",
        variants=variants,
    )
    extras = {f"{VARIANTS[0]}.clones.s": b"\x00raw\xff"}
    return FunctionRecord(function_key(project, file, line, name), meta, source, texts, extras)


def a_unit(project: Project, file: str) -> PlannedUnit:
    command = Command(root=Path("/src"), cwd=".", input=file, flags=())
    unit = Unit(project.name, file, {"aarch64": command, "x86_64": command}, size_bytes=1)
    return PlannedUnit(unit, project, f"{project.name}/{file}.part")


def a_failure(unit: str, variant: str = "aarch64.gcc12.o2") -> Failure:
    return Failure(
        unit=unit, variant=variant, stage="compile", cause="error", exit=1, command="cc", tail="no"
    )


class Build:
    """Three projects of units with unlike functions, as a build leaves them."""

    def __init__(self, folder: Path, *, num_units: int = 4, num_functions: int = 5, samples: int = 7) -> None:
        self.work = folder / "corpus" / "work"
        self.target = folder / "corpus"
        self.splits = {"alpha": "train", "beta": "valid", "gamma": "test"}
        roots = {name: folder / name for name in self.splits}
        self.projects = tuple(a_project(name, root) for name, root in roots.items())
        self.config = CorpusConfig.model_validate(
            {
                "name": "c",
                "output": self.target,
                "toolchains": ["aarch64.gcc"],
                "projects": self.projects,
                "dedup": {"num_perm": NUM_PERM},
                "shards": {"samples": samples},
            }
        )
        self.units: list[PlannedUnit] = []
        self.failures: tuple[Failure, ...] = ()
        self.crashes: dict[str, Failure] = {}
        for project, root in zip(self.projects, roots.values(), strict=True):
            root.mkdir()
            (root / "COPYING").write_text(f"licence of {project.name}")
            for number in range(num_units):
                self.add(project, f"{number}.c", list(unlike_functions(project.name, number, num_functions)))

    def add(
        self, project: Project, file: str, records: Sequence[FunctionRecord], *failures: Failure
    ) -> PlannedUnit:
        planned = a_unit(project, file)
        self.units = sorted([*self.units, planned], key=lambda item: item.unit.id)
        ordered = tuple(sorted(records, key=lambda record: record.key))
        rows = signatures([r.source.split() for r in ordered], num_perm=NUM_PERM, shingle=5)
        path = self.work / "parts" / planned.part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_part(UnitResult(planned.unit.id, ordered, failures), rows))
        return planned

    def publish(self, progress: Any = silent) -> CorpusIndex:
        plan = Plan(
            units=tuple(self.units),
            toolchains=(),
            notes=(),
            projects=self.projects,
            splits=self.splits,
            lineages=dict.fromkeys(self.splits, "line"),
            builds={name: {"aarch64": {"system": "make"}} for name in self.splits},
            roots={project.name: project.source.path for project in self.projects},  # type: ignore[union-attr]
            failures=self.failures,
        )
        return publish_corpus(
            self.config, plan, work=self.work, target=self.target, crashes=self.crashes, progress=progress
        )


def a_project(name: str, root: Path) -> Project:
    source = PathSource(kind="path", path=root)
    return Project(name=name, version="1", license="MIT", source=source, recipe=Recipe(sources=("*.c",)))


def unlike_functions(project: str, number: int, count: int) -> Iterator[FunctionRecord]:
    for line in range(1, count + 1):
        chance = random.Random(f"{project} {number} {line}")
        tokens = [f"t{chance.randrange(10**9)}" for _ in range(40)]
        yield a_function(project, f"{number}.c", line, tokens)


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "work" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_part_gives_back_what_went_in(tmp_path: Path) -> None:
    build = Build(tmp_path, num_units=0)
    records = sorted(unlike_functions("alpha", 0, 5), key=lambda record: record.key)
    failure = a_failure("alpha/0.c")
    planned = build.add(build.projects[0], "0.c", records, failure)
    path = build.work / "parts" / planned.part
    header = read_header(path)
    assert (header.unit, header.failures) == ("alpha/0.c", (failure,))
    assert header.functions.keys == [record.key for record in records]
    assert header.functions.sources == [record.meta.source_sha256 for record in records]
    rows = signatures([record.source.split() for record in records], num_perm=NUM_PERM, shingle=5)
    assert np.array_equal(header.functions.signatures, rows)
    bodies = [
        (int(o), int(b)) for o, b in zip(header.functions.body_owners, header.functions.bodies, strict=True)
    ]
    expected = {
        (number, int(variant.body_sha256[:16], 16))
        for number, record in enumerate(records)
        for variant in record.meta.variants.values()
    }
    assert len(bodies) == len(expected)
    assert set(bodies) == expected
    samples = list(read_samples(path))
    assert [record_from_members(sample.key, sample.members) for sample in samples] == records
    assert [sample.num_variants for sample in samples] == [2] * 5
    assert samples[0].assembly_bytes == sum(len(text.encode()) for text in records[0].assembly.values())
    wanted = {records[1].key, records[3].key}
    assert [sample.key for sample in read_samples(path, wanted.__contains__)] == sorted(wanted)


def test_a_part_without_functions(tmp_path: Path) -> None:
    build = Build(tmp_path, num_units=0)
    planned = build.add(build.projects[0], "0.c", [], a_failure("alpha/0.c"))
    path = build.work / "parts" / planned.part
    assert len(read_header(path).functions) == 0
    assert list(read_samples(path)) == []


def test_a_damaged_part_is_never_read_as_another(tmp_path: Path) -> None:
    build = Build(tmp_path, num_units=0)
    records = list(unlike_functions("alpha", 0, 3))
    path = build.work / "parts" / build.add(build.projects[0], "0.c", records).part
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.part"
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            damaged.write_bytes(data)
            with pytest.raises(ShardError, match="damaged"):
                print(read_header(damaged).unit, len(list(read_samples(damaged))))


def test_every_function_comes_through_with_split_and_cluster(tmp_path: Path) -> None:
    build = Build(tmp_path)
    index = build.publish()
    assert index == load_index(build.target)
    assert verify_shards(build.target) == []
    for split, project in (("train", "alpha"), ("valid", "beta"), ("test", "gamma")):
        found = {record.key: record for record in read_split(build.target, split)}
        expected = [record for n in range(4) for record in unlike_functions(project, n, 5)]
        assert found.keys() == {record.key for record in expected}
        for record in expected:
            placed = record.meta.model_copy(update={"split": split, "cluster": record.key})
            assert found[record.key] == FunctionRecord(
                record.key, placed, record.source, record.assembly, record.extras
            )
    names = [f"{split}-{n:05d}.tar.zst" for split in ("train", "valid", "test") for n in range(3)]
    assert [(shard.name, shard.num_functions) for shard in index.shards] == list(
        zip(names, [7, 7, 6] * 3, strict=True)
    )
    assert index.totals["functions"] == 60
    assert index.totals["variants"] == 120
    assert index.totals["assembly_bytes"] == sum(
        len(text.encode())
        for s in build.splits.values()
        for r in read_split(build.target, s)
        for text in r.assembly.values()
    )
    assert index.projects["beta"]["functions"] == 20
    assert index.projects["beta"]["lineage"] == "line"
    assert index.projects["beta"]["builds"] == {"aarch64": {"system": "make"}}
    assert Project.model_validate(index.projects["beta"]["config"]) == build.projects[1]
    assert (build.target / "licenses" / "beta" / "COPYING").read_text() == "licence of beta"
    assert not (build.work / "dedup").exists()
    assert not (build.work / "shards").exists()


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(tmp_path)
    build.publish()
    first = files_of(build.target)
    monkeypatch.setattr("corpus_builder.publish._MAX_THREADS", 1)
    build.publish()
    assert files_of(build.target) == first


def test_a_header_function_belongs_to_its_first_unit_and_duplicates_go(tmp_path: Path) -> None:
    build = Build(tmp_path)
    alpha, _, gamma = build.projects
    tokens = [f"s{i}" for i in range(40)]
    shared = a_function("alpha", "shared.h", 1, tokens)
    for unit in ("y.c", "x.c"):
        meta = shared.meta.model_copy(update={"unit": unit})
        build.add(alpha, unit, [replace(shared, meta=meta)])
    build.add(gamma, "x.c", [a_function("gamma", "x.c", 9, tokens)])
    index = build.publish()
    (kept,) = [record for record in read_split(build.target, "train") if record.key == shared.key]
    assert kept.meta.unit == "x.c"
    assert index.totals["dropped_exact"] == 1
    assert {index.totals["dropped_near"], index.totals["dropped_body"]} == {0}
    assert index.totals["functions"] == 61


def test_failures_stand_in_the_order_of_units(tmp_path: Path) -> None:
    build = Build(tmp_path)
    alpha, beta, _ = build.projects
    build.add(beta, "7.c", [], a_failure("beta/7.c", "x86_64.clang19.o2"), a_failure("beta/7.c"))
    build.add(alpha, "9.c", [], a_failure("alpha/9.c"), a_failure("alpha/9.c", "aarch64.gcc12.o3"))
    build.units = sorted([*build.units, a_unit(alpha, "95.c")], key=lambda item: item.unit.id)
    build.crashes = {"alpha/95.c": a_failure("alpha/95.c", "")}
    build.failures = (a_failure("zeta", ""), a_failure("aaa", ""), a_failure("beta", ""))
    index = build.publish()
    rows = [json.loads(line) for line in (build.target / "failures.jsonl").read_text().splitlines()]
    assert [(row["unit"], row["variant"]) for row in rows] == [
        ("aaa", ""),
        ("alpha/9.c", "aarch64.gcc12.o2"),
        ("alpha/9.c", "aarch64.gcc12.o3"),
        ("alpha/95.c", ""),
        ("beta", ""),
        ("beta/7.c", "aarch64.gcc12.o2"),
        ("beta/7.c", "x86_64.clang19.o2"),
        ("zeta", ""),
    ]
    assert index.failures == {
        "aarch64.gcc12/compile/error": 2,
        "all/compile/error": 4,
        "x86_64.clang19/compile/error": 1,
    }


def test_an_empty_corpus_says_why_and_leaves_the_failures(tmp_path: Path) -> None:
    build = Build(tmp_path, num_units=0)
    build.add(build.projects[0], "0.c", [], a_failure("alpha/0.c"))
    with pytest.raises(EmptyCorpus, match=r"out of 1 units; .*compile/error in 1") as caught:
        build.publish()
    assert "failures.jsonl" in caught.value.remedy
    assert "alpha/0.c" in (build.target / "failures.jsonl").read_text()


def test_a_second_corpus_replaces_the_first_and_progress_ends(tmp_path: Path) -> None:
    build = Build(tmp_path)
    build.publish()
    build.units = build.units[:4]
    seen: list[Progress] = []
    index = build.publish(seen.append)
    assert [shard.split for shard in index.shards] == ["train"] * 3
    assert {path.name for path in build.target.glob("*.tar.zst")} == {shard.name for shard in index.shards}
    last = seen[-1]
    assert (last.stage, last.done, last.total) == ("shards", 20, 20)
