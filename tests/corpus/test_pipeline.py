"""What a build promises, with real compilers and a real Ray: equal bytes, resumption, counted failures."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus_builder import plan
from corpus_builder.config import CorpusConfig, load_config
from corpus_builder.errors import EmptyCorpus
from corpus_builder.pipeline import build
from corpus_builder.plan import Progress, plan_build
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import CorpusIndex, load_index, read_split
from corpus_builder.verify import verify_corpus
from samples import TINY, TINY_FUNCTIONS, a_config, shard_hashes, write_config

BUILD = [sys.executable, "-m", "corpus_builder.cli", "build"]


@pytest.fixture(autouse=True)
def _native_gcc(need: Callable[..., None]) -> None:
    need("gcc")


@pytest.fixture
def run(ray_address: str) -> Callable[..., CorpusIndex]:
    def run(config: CorpusConfig, **options: object) -> CorpusIndex:
        return build(config, address=ray_address, **options)  # type: ignore[arg-type]

    return run


Run = Callable[..., CorpusIndex]


def many_units(folder: Path, number: int) -> Path:
    """A project of that many units of two functions each, all different."""
    folder.mkdir(parents=True)
    for i in range(number):
        (folder / f"u{i:02d}.c").write_text(
            f"int first{i}(int x) {{ return x * {i + 3} + {i}; }}\n"
            f"int second{i}(const int *x, int n)\n"
            f"{{ int s = {i}; while (n--) s ^= x[n] * {7 * i + 5}; return s; }}\n"
        )
    return folder


def records_by_name(corpus: Path, split: str = "train") -> dict[str, FunctionRecord]:
    return {record.meta.name: record for record in read_split(corpus, split)}


def test_a_build_holds_every_function_in_every_variant(tmp_path: Path, run: Run) -> None:
    config = a_config(tmp_path)
    index = run(config)
    records = records_by_name(config.output)
    assert records.keys() == TINY_FUNCTIONS
    (prefix,) = index.toolchains
    assert set(records["crc32"].assembly) == {f"{prefix}.o0", f"{prefix}.o2"}
    assert set(records["step"].assembly) == {f"{prefix}.o0"}  # inlined at O2
    room = records["ring_room"].meta
    assert (room.file, room.lines, room.unit) == ("include/ring.h", (14, 17), "queue.c")
    assert room.comment == "/* Number of places left. */"
    assert (room.license, room.split, room.cluster) == ("MIT", "train", records["ring_room"].key)
    assert index.totals["functions"] == 8
    assert index.projects["tiny"]["units"] == 3
    assert verify_corpus(config.output) == []


def test_one_and_two_workers_give_equal_bytes(tmp_path: Path) -> None:
    """Each with a Ray of its own, as users start it."""
    corpora = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        config = a_config(folder, workers=workers, shards={"samples": 3})
        build(config)
        corpora.append(shard_hashes(config.output))
    assert corpora[0] == corpora[1]
    assert [name for name in corpora[0] if name.startswith("train")] == [
        f"train-0000{number}.tar.zst" for number in range(3)
    ]


def test_a_build_killed_anywhere_ends_with_the_same_shards(tmp_path: Path, run: Run) -> None:
    project = many_units(tmp_path / "project", 24)
    (tmp_path / "whole").mkdir()
    whole = a_config(tmp_path / "whole", projects={"many": project})
    run(whole)
    path = write_config(tmp_path, projects={"many": project})
    parts = tmp_path / "corpus" / "work" / "parts" / "many"
    chance = random.Random()
    for _ in range(2):
        before = len(list(parts.glob("*.part")))
        wanted = chance.randint(before + 1, 23)
        killed = subprocess.Popen([*BUILD, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.part"))) < wanted and time.monotonic() < deadline:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert not (tmp_path / "corpus" / "index.json").exists()
        if len(list(parts.glob("*.part"))) >= 22:
            break
    left = len(list(parts.glob("*.part")))
    states: list[Progress] = []
    run(load_config(CorpusConfig, path), progress=states.append)
    assert shard_hashes(tmp_path / "corpus") == shard_hashes(whole.output)
    assert max(state.reused for state in states) == left > 0


def test_a_finished_build_is_not_repeated(tmp_path: Path, run: Run) -> None:
    config = a_config(tmp_path)
    first = run(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert build(config, address="a Ray that is not needed") == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_corpus_is_put_right_without_compiling(tmp_path: Path, run: Run) -> None:
    config = a_config(tmp_path)
    run(config)
    before = shard_hashes(config.output)
    (config.output / "train-00000.tar.zst").unlink()
    build(config, address="a Ray that is not needed")
    assert shard_hashes(config.output) == before


def test_a_damaged_part_is_made_again(tmp_path: Path, run: Run) -> None:
    config = a_config(tmp_path)
    run(config)
    before = shard_hashes(config.output)
    part = min((config.output / "work" / "parts" / "tiny").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 4
    part.write_bytes(data)
    (config.output / "index.json").unlink()
    run(config)
    assert shard_hashes(config.output) == before


def test_only_what_changed_is_compiled_again(tmp_path: Path, run: Run) -> None:
    """Flags and sources are part of a part's name; shard sizes, splits and thresholds are not."""
    config = a_config(tmp_path)
    run(config)

    def reused(**changes: object) -> int:
        states: list[Progress] = []
        run(config.model_copy(update=changes), progress=states.append)
        return max(state.reused for state in states)

    shards = config.shards.model_copy(update={"samples": 2})
    assert reused(shards=shards) == 3
    assert len(list(config.output.glob("train-*.tar.zst"))) == 4
    assert reused(dedup=config.dedup.model_copy(update={"threshold": 0.5})) == 3
    assert len(list(config.output.glob("train-*.tar.zst"))) == 1  # those of the build before are gone
    assert reused(levels=("O1",)) == 0
    recipe = config.projects[0].recipe.model_copy(update={"defines": ("X=1",)})
    assert reused(projects=(config.projects[0].model_copy(update={"recipe": recipe}),)) == 0
    assert reused() == 3


def test_a_changed_header_makes_parts_stale(tmp_path: Path, run: Run) -> None:
    project = tmp_path / "project"
    shutil.copytree(TINY, project)
    config = a_config(tmp_path, projects={"tiny": project})
    run(config)
    header = project / "include" / "ring.h"
    header.write_text(header.read_text().replace("64 -", "65 -"))
    run(config)
    assert "65 - ring->count" in records_by_name(config.output)["ring_room"].source


def test_bad_units_are_counted_and_the_others_go_on(tmp_path: Path, run: Run) -> None:
    project = many_units(tmp_path / "project", 6)
    (project / "bad.c").write_text("int broken(int x) { return x + ; }\n")
    (project / "endless.c").write_text('#include "endless.c"\n')
    config = a_config(tmp_path, projects={"many": project})
    index = run(config)
    assert index.totals["functions"] == 12
    (prefix,) = index.toolchains
    assert index.failures == {f"{prefix}/compile/error": 1, f"{prefix}/preprocess/error": 1}
    rows = [json.loads(line) for line in (config.output / "failures.jsonl").read_text().splitlines()]
    assert [(row["unit"], row["variant"]) for row in rows] == [
        ("many/bad.c", f"{prefix}.o0"),
        ("many/bad.c", f"{prefix}.o2"),
        ("many/endless.c", prefix),  # not preprocessed: no level is tried
    ]
    assert "expected expression" in rows[0]["tail"]
    assert str(tmp_path) not in (config.output / "failures.jsonl").read_text()


def test_a_corpus_without_functions_is_an_error_that_says_why(tmp_path: Path, run: Run) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "bad.c").write_text('#include "missing.h"\n')
    config = a_config(tmp_path, projects={"bad": project})
    with pytest.raises(
        EmptyCorpus, match=r"not one function came out of 1 units; .*preprocess/error in 1"
    ) as caught:
        run(config)
    assert "failures.jsonl" in caught.value.remedy
    assert "missing.h" in (config.output / "failures.jsonl").read_text()
    assert not (config.output / "index.json").exists()


def test_duplicates_and_near_duplicates_never_stand_in_two_splits(tmp_path: Path, run: Run) -> None:
    long_body = "".join(f"    s = s * {i + 3} + x[{i}];\n" for i in range(40))
    texts = {
        "a.c": f"int kept(const int *x)\n{{\n    int s = 1;\n{long_body}    return s;\n}}\n",
        "same_body.c": "unsigned mix(unsigned a, unsigned b) { return (a ^ b) * 40503u + (a >> 7); }\n",
    }
    copies = {
        "exact.c": texts["a.c"].replace("    ", "\t"),
        "near.c": texts["a.c"].replace("kept", "renamed").replace("x[39]", "x[40]"),
        "body.c": "unsigned blend(unsigned p, unsigned q) { return (p ^ q) * 40503u + (p >> 7); }\n",
        "own.c": "long own(long a) { return a * a - 17; }\n",
    }
    for name, files in (("train", texts), ("test", copies)):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    config = a_config(tmp_path, projects={"original": tmp_path / "train", "test-copy": tmp_path / "test"})
    index = run(config)
    assert {reason: index.totals[f"dropped_{reason}"] for reason in ("exact", "body", "near")} == {
        "exact": 1,
        "body": 1,
        "near": 1,
    }
    assert records_by_name(config.output, "test").keys() == {"own"}
    assert records_by_name(config.output).keys() == {"kept", "mix"}
    assert verify_corpus(config.output) == []


def test_a_plan_compiles_nothing(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    plan = plan_build(config)
    assert [planned.unit.id for planned in plan.units] == ["tiny/checksum.c", "tiny/queue.c", "tiny/ring.c"]
    assert plan.summary(config)["compilations"] == 6
    assert not config.output.exists()


def test_plain_tar_shards_hold_the_same(tmp_path: Path, run: Run) -> None:
    config = a_config(tmp_path, shards={"format": "tar"})
    run(config)
    assert [path.name for path in config.output.glob("train*")] == ["train-00000.tar"]
    assert records_by_name(config.output).keys() == TINY_FUNCTIONS
    assert verify_corpus(config.output) == []


def test_a_full_disk_stops_a_build_that_goes_on_when_there_is_room(tmp_path: Path, ray_address: str) -> None:
    """On a small disk of its own, mounted in a user namespace, which needs no root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and a kernel that lets users make namespaces")
    project = many_units(tmp_path / "project", 8)
    path = write_config(tmp_path, projects={"many": project}, output=str(disk / "corpus"))
    command = " ".join([*BUILD, str(path), "--address", ray_address])
    script = f"""
        mount -t tmpfs -o size=24k none {disk} || exit 77
        {command}; echo "first: $?" >&2
        ls {disk}/corpus/work/parts/many | wc -l
        mount -o remount,size=64m {disk}
        {command}; echo "second: $?" >&2
        cp -r {disk}/corpus {tmp_path}/result
    """
    done = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip(f"needs to mount a tmpfs: {done.stderr}")
    errors = done.stderr
    assert re.search(
        r"error: cannot write \S+\.part: No space left on device\n  remedy: free some space", errors
    )
    assert "Traceback" not in errors
    assert "first: 2" in errors
    assert "second: 0" in errors
    finished = int(done.stdout.splitlines()[0])
    assert 0 < finished < 8
    assert f"  {finished} reused\n" in errors.partition("first: 2")[2]
    assert load_index(tmp_path / "result").totals["functions"] == 16
    assert verify_corpus(tmp_path / "result") == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, ray_address: str) -> None:
    (tmp_path / "file").write_text("")
    path = write_config(tmp_path, output=str(tmp_path / "file" / "corpus"))
    done = subprocess.run(
        [*BUILD, path, "--address", ray_address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert re.search(r"error: cannot write \S+: Not a directory\n  remedy: check the path", done.stderr)
    assert "Traceback" not in done.stderr


def test_every_module_that_decides_a_part_makes_old_parts_stale() -> None:
    import grimp  # what import-linter stands on

    graph = grimp.build_graph("corpus_builder")
    maker = "corpus_builder.task"
    behind = {maker, *graph.find_upstream_modules(maker)}
    # Settings are in a part's name themselves; the others hold, watch or report what is made.
    apart = {"config", "database", "errors", "storage", "watch"}
    needed = {name.partition(".")[2] for name in behind} - apart - {""}
    assert set(plan._PART_MODULES) == needed
