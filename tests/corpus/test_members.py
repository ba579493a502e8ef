"""What a corpus holds beside texts, against other tools; what its licence filter and its failures leave."""

import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from compilers import LIMITS
from corpus_builder import asm
from corpus_builder.cli import main
from corpus_builder.pipeline import build
from corpus_builder.plan import plan_build
from corpus_builder.probe import resolve
from corpus_builder.process import run
from corpus_builder.record import Command, FunctionRecord, Variant
from corpus_builder.shards import CorpusIndex, load_index, read_split
from corpus_builder.toolchain import Toolchain
from corpus_builder.verify import verify_corpus
from samples import NATIVE_GCC, ROOT, TINY, TINY_FUNCTIONS, a_config, load_corpus_config, write_config

NATIVE_CLANG = NATIVE_GCC.replace("gcc", "clang")
MEMBERS = ["inlined", "ll", "object", "lines"]
LEVELS = ["O0", "O2", "O2-no-inline"]
UNITS = ("tiny/checksum.c", "tiny/queue.c", "tiny/ring.c", "partial/partial.c")
# gcc inlines its test into both callers and leaves the rest as total.part.0.
PARTIAL = """\
#include <stdlib.h>
struct node { struct node *next; int value; };
int total(struct node *list)
{
    if (!list)
        return 0;
    int sum = 0;
    for (struct node *item = list; item; item = item->next) {
        if (item->value < 0)
            abort();
        sum = sum * 31 + item->value;
        item->value ^= sum >> 3;
        list->value += sum;
    }
    free(list->next);
    list->next = malloc(sizeof *list);
    return sum + list->value;
}
int twice(struct node *a, struct node *b) { return total(a) + total(b); }
int thrice(struct node *a, struct node *b) { return total(a) * total(b); }
"""


class Built(NamedTuple):
    corpus: Path
    index: CorpusIndex
    records: dict[str, FunctionRecord]
    """By name."""
    gcc: str
    clang: str
    """Prefixes of their variants."""


def built(folder: Path, ray_address: str, **shards: Any) -> Built:
    partial = folder / "partial"
    partial.mkdir()
    (partial / "partial.c").write_text(PARTIAL)
    config = a_config(
        folder,
        projects={"tiny": TINY, "partial": partial},
        toolchains=[NATIVE_GCC, NATIVE_CLANG],
        levels=LEVELS,
        shards=shards,
    )
    index = build(config, address=ray_address)
    clang, gcc = sorted(index.toolchains)
    if ".clang" not in clang:
        pytest.skip("needs clang")
    corpus = Path(str(config.output))
    return Built(
        corpus, index, {record.meta.name: record for record in read_split(corpus, "train")}, gcc, clang
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Built:
    return built(tmp_path_factory.mktemp("raw"), ray_address, text="raw", members=MEMBERS)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Built:
    return built(tmp_path_factory.mktemp("clean"), ray_address, text="clean", members=MEMBERS)


def test_every_variant_has_its_members_and_no_others(raw: Built) -> None:
    assert raw.index.failures == {}
    assert raw.records.keys() == {*TINY_FUNCTIONS, "total", "twice", "thrice"}
    for record in raw.records.values():
        expected = {
            f"{variant}.{kind}" for variant in record.assembly for kind in ("object.json", "lines.json")
        }
        # What clang's front end gives is the same for all levels that predefine the same macros.
        expected |= {f"{raw.clang}.o2.ll"}
        expected |= {f"{variant}.clones.s" for variant, meta in record.meta.variants.items() if meta.clones}
        assert set(record.extras) == expected, record.meta.name


def test_verify_finds_both_forms_sound(raw: Built, clean: Built) -> None:
    assert verify_corpus(raw.corpus) == []
    assert verify_corpus(clean.corpus) == []
    assert (raw.index.text, clean.index.text) == ("raw", "clean")
    assert raw.index.members == clean.index.members == tuple(MEMBERS)


def test_clean_text_is_the_raw_text_cleaned_and_all_else_is_equal(raw: Built, clean: Built) -> None:
    assert raw.records.keys() == clean.records.keys()
    for name, record in raw.records.items():
        other = clean.records[name]
        isa = Variant.parse(raw.gcc + ".o0").isa
        assert other.assembly == {variant: asm.clean(text, isa) for variant, text in record.assembly.items()}
        assert other.assembly != record.assembly
        for variant, meta in record.meta.variants.items():
            assert other.meta.variants[variant] == meta.model_copy(
                update={"sha256": other.meta.variants[variant].sha256}
            )
        same = {extension for extension in record.extras if extension.endswith((".ll", ".object.json"))}
        assert {key: record.extras[key] for key in same} == {key: other.extras[key] for key in same}


def toolchains() -> dict[str, Toolchain]:
    found, _ = resolve([NATIVE_GCC, NATIVE_CLANG], ROOT / "configs" / "toolchains.yaml")
    return {toolchain.id: toolchain for toolchain in found}


def code_by_binutils(unit: Path, toolchain: Toolchain, level: str, folder: Path) -> dict[str, bytes]:
    """Function to machine code, as binutils reads it from the object that the direct command gives."""
    flags = ("-Iinclude",) if (unit.parent / "include").is_dir() else ()
    command = Command(unit.parent, ".", unit.name, flags)
    argv = [*toolchain.direct_argv(command, level), "-S", "-o", str(folder / "unit.s"), unit.name]
    assert run(argv, cwd=unit.parent, limits=LIMITS).ok
    assemble = toolchain.assemble_argvs(command, "unit.s", "unit.o")[0]
    assert run(assemble, cwd=folder, limits=LIMITS).ok

    done = subprocess.run(["objdump", "-t", "unit.o"], cwd=folder, capture_output=True, text=True, check=True)
    row = r"^([0-9a-f]{16}) .{6}F (\S+)\t([0-9a-f]{16}) (?:\.\w+ )?(\S+)$"
    found = {}
    for start, section, size, name in re.findall(row, done.stdout, re.MULTILINE):
        only = [f"--only-section={section}", "unit.o", "section.bin"]
        subprocess.run(["objcopy", "-O", "binary", *only], cwd=folder, check=True)
        found[name] = (folder / "section.bin").read_bytes()[int(start, 16) :][: int(size, 16)]
    return found


def test_code_bytes_are_those_that_binutils_reads(
    raw: Built, tmp_path: Path, need: Callable[..., None]
) -> None:
    """Compiled without -g1, whose line table must not move any code."""
    need("objdump", "objcopy")
    compared = 0
    for toolchain, level, unit in itertools.product(toolchains().values(), LEVELS, UNITS):
        project, file = unit.split("/")
        place = (TINY if project == "tiny" else raw.corpus.parent / "partial") / file
        oracle = code_by_binutils(place, toolchain, level, tmp_path)
        variant = f"{toolchain.id}.{level.lower()}"
        for record in raw.records.values():
            if variant in record.assembly and (record.meta.project, record.meta.unit) == (project, file):
                meta = record.meta.variants[variant]
                code = bytes.fromhex(json.loads(record.extras[f"{variant}.object.json"])["code"])
                assert code == oracle[meta.symbol], (variant, record.meta.name)
                assert len(code) == meta.code_bytes
                compared += 1
    assert compared == raw.index.totals["variants"] > 40


def test_calls_are_relocations(raw: Built) -> None:
    record = raw.records["twice"]
    member = json.loads(record.extras[f"{raw.gcc}.o0.object.json"])
    calls = [symbol for _, _, symbol, _ in member["relocations"]]
    assert calls == ["total", "total"]
    assert all(0 < offset < len(member["code"]) / 2 for offset, *_ in member["relocations"])


def test_there_is_a_line_for_every_instruction(raw: Built) -> None:
    isa = raw.gcc.partition(".")[0]
    for record in raw.records.values():
        for variant, meta in record.meta.variants.items():
            member = json.loads(record.extras[f"{variant}.lines.json"])
            lines = [(member["files"][place], line) for place, line in member["lines"]]
            text = asm.clean(record.assembly[variant], isa)
            assert len(lines) == meta.num_instructions == asm.num_instructions(text), (variant, record.key)
            first, last = record.meta.lines
            if not meta.inlined:
                assert {line for _, line in lines if line} <= set(range(first, last + 1)), record.meta.name


def test_members_name_files_of_the_project_and_no_folder_of_this_machine(raw: Built, clean: Built) -> None:
    for name, record in raw.records.items():
        files = {"include/ring.h", record.meta.unit, ""}
        for variant, text in record.assembly.items():
            member = record.extras[f"{variant}.lines.json"]
            assert set(json.loads(member)["files"]) <= files
            assert member == clean.records[name].extras[f"{variant}.lines.json"]
            assert "asmtrain-" not in text


def test_the_ir_is_the_functions_definition_in_the_whole_module(raw: Built, tmp_path: Path) -> None:
    for toolchain in toolchains().values():
        if toolchain.family != "clang":
            continue
        command = Command(TINY, ".", "ring.c", ("-Iinclude",))
        argv = [*toolchain.direct_argv(command, "O2"), "-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes"]
        assert run([*argv, "-o", str(tmp_path / "unit.ll"), "ring.c"], cwd=TINY, limits=LIMITS).ok
        module = (tmp_path / "unit.ll").read_text()
        for name in ("ring_push", "ring_pop", "ring_sum"):
            text = raw.records[name].extras[f"{toolchain.id}.o2.ll"].decode()
            assert re.match(rf"define [^\n]*@{name}\(", text)
            assert text.endswith("\n}\n")
            assert text in module
            assert "alloca" in text  # before any optimisation
    for record in raw.records.values():
        assert record.extras[f"{raw.clang}.o2.ll"].startswith(b"define ")


def test_inlined_functions_are_listed_where_inlining_is_allowed(raw: Built) -> None:
    def inlined(name: str, variant: str) -> tuple[str, ...]:
        return raw.records[name].meta.variants[variant].inlined

    for prefix in (raw.gcc, raw.clang):
        assert inlined("crc32", f"{prefix}.o2") == ("step",)
        assert "step" not in inlined("crc32", f"{prefix}.o0")
        assert "ring_room" in inlined("ring_push", f"{prefix}.o2")
        assert f"{prefix}.o2" not in raw.records["step"].assembly
        assert f"{prefix}.o2-no-inline" in raw.records["step"].assembly
        for record in raw.records.values():
            assert record.meta.variants[f"{prefix}.o2-no-inline"].inlined == ()


def test_clones_stand_beside_their_origin(raw: Built, clean: Built) -> None:
    variant = f"{raw.gcc}.o2"
    meta = raw.records["total"].meta.variants[variant]
    assert (meta.symbol, meta.clones) == ("total", ("total.part.0",))
    text = raw.records["total"].extras[f"{variant}.clones.s"].decode()
    assert list(asm.split_symbols(text)) == ["total.part.0"]
    assert "total.part.0" in raw.records["twice"].assembly[variant]
    cleaned = clean.records["total"].extras[f"{variant}.clones.s"].decode()
    assert cleaned == asm.clean(text, raw.gcc.partition(".")[0])


def test_without_members_there_are_texts_alone(tmp_path: Path, ray_address: str) -> None:
    config = a_config(tmp_path, shards={"members": []})
    index = build(config, address=ray_address)
    records = list(read_split(config.output, "train"))
    assert index.members == ()
    assert all(dict(record.extras) == {} for record in records)
    assert all(meta.inlined == () for record in records for meta in record.meta.variants.values())


GPL_HEADER = "/* SPDX-License-Identifier: GPL-2.0-or-later */\n"


def licensed_config(folder: Path, **settings: Any) -> Path:
    """A permissive project with one copyleft file and one header of both, and a copyleft project."""
    texts = {
        "free/own.c": '#include "inline.h"\nint own(int x) { return inlined(x) + 1; }\n',
        "free/both.c": "// SPDX-License-Identifier: GPL-2.0-only OR MIT\nint both(int x) { return x * 5; }\n",
        "free/borrowed.c": GPL_HEADER + "int borrowed(int x) { return x * x; }\n",
        "free/inline.h": GPL_HEADER + "static int inlined(int x) { return x ^ 77; }\n",
        "left/left.c": "int left(int x) { return x - 9; }\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    path = write_config(
        folder, projects={"free": folder / "free", "left": folder / "left"}, levels=["O0"], **settings
    )
    data = yaml.safe_load(path.read_text())
    data["projects"][1]["license"] = "GPL-3.0-only"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("licenses", "functions"),
    [("all", {"own", "both", "borrowed", "inlined", "left"}), ("permissive", {"own", "both"})],
)
def test_copyleft_is_left_out_where_asked(
    tmp_path: Path, ray_address: str, licenses: str, functions: set[str]
) -> None:
    config = load_corpus_config(licensed_config(tmp_path, licenses=licenses))
    index = build(config, address=ray_address)
    records = list(read_split(config.output, "train"))
    assert {record.meta.name for record in records} == functions
    assert index.failures == {}
    assert ("left" in index.projects) == (licenses == "all")
    headers = {record.meta.name: record.meta.file_license for record in records}
    assert headers["both"] == "GPL-2.0-only OR MIT"
    assert headers.get("borrowed", "GPL-2.0-or-later") == "GPL-2.0-or-later"
    assert verify_corpus(config.output) == []


def test_a_project_left_out_for_its_licence_is_named(
    tmp_path: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = licensed_config(tmp_path, licenses="permissive")
    (note,) = plan_build(load_corpus_config(path)).notes
    assert note == "left is left out: its licence, GPL-3.0-only, is not permissive"
    assert main(["build", str(path), "--address", ray_address]) == 0
    assert f"note: {note}\n" in capsys.readouterr().err


def failing_projects(folder: Path) -> list[dict[str, Any]]:
    """Projects that each fail in a way of their own, around one that does not."""
    makefiles = {
        "bomb": "all:\n\tsh -c 'bomb() { bomb | bomb & }; bomb; sleep 60'\n",
        "broken": "all:\n\t@echo no such library >&2; exit 3\n",
        "half": "all: good.o bad.o\n%.o: %.c\n\t$(CC) -c $< -o $@\n",
    }
    described = []
    for name, makefile in makefiles.items():
        (folder / name).mkdir()
        (folder / name / "Makefile").write_text(makefile)
        source = {"kind": "path", "path": str(folder / name)}
        described.append({"name": name, "version": "1", "license": "MIT", "source": source})
    (folder / "half" / "good.c").write_text("int good(int x) { return x + 4; }\n")
    (folder / "half" / "bad.c").write_text("int bad(int x) { return x + ; }\n")
    lost = {
        "lost-git": {"kind": "git", "url": str(folder / "no.git"), "commit": "0" * 40},
        "lost-path": {"kind": "path", "path": str(folder / "nowhere")},
        "lost-tar": {"kind": "archive", "location": str(folder / "no.tar"), "sha256": "0" * 64},
    }
    return described + [
        {"name": name, "version": "1", "license": "MIT", "source": source} for name, source in lost.items()
    ]


def test_projects_that_fail_cost_themselves_alone(
    tmp_path: Path, ray_address: str, need: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    need("bwrap", "make", "git")
    path = write_config(tmp_path, build_limits={"processes": 60, "time_s": 60}, levels=["O0"])
    data = yaml.safe_load(path.read_text())
    data["projects"] += failing_projects(tmp_path)
    path.write_text(yaml.safe_dump(data))
    assert main(["build", str(path), "--address", ray_address]) == 0
    said = capsys.readouterr().err
    corpus = tmp_path / "corpus"
    index = load_index(corpus)
    (prefix,) = index.toolchains
    assert {record.meta.name for record in read_split(corpus, "train")} == {*TINY_FUNCTIONS, "good"}
    rows = [json.loads(line) for line in (corpus / "failures.jsonl").read_text().splitlines()]
    assert {(row["unit"], row["stage"], row["cause"]) for row in rows} == {
        ("bomb", "capture", "processes"),
        ("broken", "capture", "error"),
        ("half/bad.c", "capture", "error"),
        ("lost-git", "source", "error"),
        ("lost-path", "source", "error"),
        ("lost-tar", "source", "error"),
    }
    tails = {row["unit"]: row["tail"] for row in rows}
    assert "no such library" in tails["broken"]
    assert "nowhere" in tails["lost-path"]
    assert all(f"left out: {name}" in said for name in ("bomb", "broken", "lost-git", "lost-path"))
    assert index.failures["all/source/error"] == 3
    assert index.compiled == {prefix: {"units": 4, "compiled": 4}}
    (way,) = index.projects["half"]["builds"].values()
    assert (way["cause"], way["num_commands"], way["skipped"]) == ("error", 1, {"failed": 1})
    assert verify_corpus(corpus) == []


def test_nothing_of_a_bomb_goes_on(tmp_path: Path, need: Callable[..., None]) -> None:
    need("bwrap", "make")
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "Makefile").write_text(
        "all:\n\tsleep 4217 & sleep 4217 & sleep 0.1; make again\nagain: all\n"
    )
    path = write_config(tmp_path, build_limits={"processes": 40, "time_s": 60})
    data = yaml.safe_load(path.read_text())
    data["projects"][0] |= {"name": "bomb", "source": {"kind": "path", "path": str(tmp_path / "bomb")}}
    del data["projects"][0]["recipe"]
    path.write_text(yaml.safe_dump(data))
    plan = plan_build(load_corpus_config(path))
    assert {(row.unit, row.cause) for row in plan.failures} == {("bomb", "processes")}
    time.sleep(0.2)
    alive = [
        entry
        for entry in os.listdir("/proc")
        if entry.isdigit() and b"sleep\x004217" in _command_line(Path("/proc") / entry)
    ]
    assert alive == []


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
