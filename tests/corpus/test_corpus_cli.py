"""The commands as a user runs them: help, exit codes, one line for a mistake, what `show` shows."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus_builder.cli import main
from corpus_builder.pipeline import build
from corpus_builder.shards import load_index, write_index, write_shard
from samples import TINY_FUNCTIONS, a_record, an_index, load_corpus_config, write_config

HEAVY = [
    "ray",
    "pydantic",
    "yaml",
    "rich",
    "webdataset",
    "zstandard",
    "numpy",
    "datasketch",
    "tree_sitter",
    "torch",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(load_corpus_config(write_config(folder)), address=ray_address)
    return folder / "corpus"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", [[], ["plan"], ["build"], ["stats"], ["verify"], ["show"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """What makes it answer in under half a second."""
    script = (
        "import sys; from corpus_builder.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        f"except SystemExit as end: print('status', end.code, [n for n in {HEAVY!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("status 0 []\n")
    assert "usage: corpus-builder" in done.stdout
    examples = done.stdout.partition("examples:\n")[2]
    assert f"  {' '.join(['corpus-builder', *(command or ['build'])])} " in examples


def test_plan_lists_projects_toolchains_and_numbers(tmp_path: Path, call: Call) -> None:
    path = write_config(tmp_path)
    status, out, _ = call("plan", path, "--json", "--set", "levels=[O0,O1,O2]")
    plan = json.loads(out)
    assert status == 0
    assert (plan["units"], plan["variants"], plan["compilations"]) == (3, 3, 9)
    assert plan["projects"]["tiny"]["license"] == "MIT"
    status, out, _ = call("plan", path)
    assert "tiny" in out
    assert "3 units x 2 variants" in out
    header, row = (next(line for line in out.splitlines() if word in line) for word in ("built", "tiny"))
    assert [cell.strip() for cell in re.split("[│┃]", row)][1:-1][4] == "recipe"
    assert [cell.strip() for cell in re.split("[│┃]", header)][1:-1][4] == "built"


def test_build_prints_its_totals(tmp_path: Path, call: Call, ray_address: str) -> None:
    path = write_config(tmp_path)
    status, out, err = call("build", path, "--address", ray_address)
    assert status == 0
    assert "8" in out.split("functions", 1)[1].splitlines()[0]
    assert "No failures" in out
    assert "compiling units 3/3" in err
    status, out, _ = call("build", path, "--json")
    assert json.loads(out) == json.loads((tmp_path / "corpus" / "index.json").read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levls=[O0]", "levls: unknown key (value ['O0']); did you mean 'levels'?"),
        ("toolchains=[x86_64.gcc99]", "x86_64.gcc99"),
        ("projects.tiny.source.path=/nowhere", "most frequent failure: all/source/error in 1 unit"),
        ("levels=[O2-no-such]", "use one of: lto-free, no-inline, "),
        ("shards.members=[ir]", "shards.members.0: Input should be 'inlined', 'll', 'object' or 'lines'"),
        ("projects.tiny.recipe.sources=['*.cc']", "matches no file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    tmp_path: Path, call: Call, override: str, message: str
) -> None:
    status, out, err = call("build", write_config(tmp_path), "--set", override)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ") or "\nerror: " in err
    assert message in err
    assert "\n  remedy: " in err
    assert "Traceback" not in err


def test_stats_add_up(corpus: Path, call: Call) -> None:
    status, out, _ = call("stats", corpus, "--json")
    stats = json.loads(out)
    index = load_index(corpus)
    assert status == 0
    assert stats["totals"].items() > index.totals.items()
    assert stats["splits"] == {"train": 8}
    functions = {name: variant["functions"] for name, variant in stats["variants"].items()}
    (prefix,) = index.toolchains
    assert functions == {f"{prefix}.o0": 8, f"{prefix}.o2": 6}
    assert sum(functions.values()) == stats["totals"]["variants"] == stats["projects"]["tiny"]["variants"]
    status, out, _ = call("stats", corpus)
    assert f"{prefix}.o2" in out


def test_verify_tells_a_sound_corpus_from_a_damaged_one(corpus: Path, tmp_path: Path, call: Call) -> None:
    status, out, err = call("verify", corpus)
    assert (status, err) == (0, "")
    assert "is sound" in out
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "index.json").write_bytes((corpus / "index.json").read_bytes())
    shard = bytearray((corpus / "train-00000.tar.zst").read_bytes())
    shard[len(shard) // 2] ^= 1
    (damaged / "train-00000.tar.zst").write_bytes(shard)
    status, out, err = call("verify", damaged)
    assert status == 2
    assert "error: train-00000.tar.zst: sha256 differs from the index" in err
    status, out, _ = call("verify", damaged, "--json")
    assert status == 2
    assert len(json.loads(out)["problems"]) == 1
    status, _, err = call("stats", damaged)
    assert status == 2
    assert "train-00000.tar.zst is damaged" in err


@pytest.mark.parametrize("command", [["stats"], ["verify"], ["show"]])
def test_a_folder_without_a_corpus_is_named(tmp_path: Path, call: Call, command: list[str]) -> None:
    status, _, err = call(*command, tmp_path, *(["f"] if command == ["show"] else []))
    assert status == 2
    assert f"error: {tmp_path} holds no corpus" in err


def test_show_puts_source_beside_two_variants(corpus: Path, call: Call) -> None:
    status, out, _ = call("show", corpus, "crc32")
    (prefix,) = load_index(corpus).toolchains
    assert status == 0
    assert "tiny 1, checksum.c:22  MIT  train" in out
    header = next(line for line in out.splitlines() if f"{prefix}.o0" in line)
    assert f"{prefix}.o2" in header
    body = next(
        line
        for line in out.splitlines()
        if "uint32_t crc32(const unsigned char *data" in line and "│" in line
    )
    assert body.count("crc32:") == 2
    assert ".cfi" not in out
    assert ".cfi_startproc" in call("show", corpus, "crc32", "--raw")[1]


def test_show_takes_a_key_and_variants(corpus: Path, call: Call) -> None:
    (prefix,) = load_index(corpus).toolchains
    _, out, _ = call("show", corpus, "step")
    key = next(word for word in out.split() if len(word) == 24 and set(word) <= set("0123456789abcdef"))
    status, out, _ = call("show", corpus, key, "--variants", f"{prefix}.o0")
    assert status == 0
    assert "static uint32_t step(uint32_t crc)" in out
    status, out, _ = call("show", corpus, key, "--variants", "*.o0", "--assembly")
    assert status == 0
    assert "\t.size\t" in out
    assert "\u2502" not in out
    status, _, err = call("show", corpus, key, "--variants", f"{prefix}.o0,{prefix}.o9")
    assert status == 2
    assert f"error: step has no variant '{prefix}.o9'" in err
    assert f"choose from {prefix}.o0" in err


def test_show_suggests_similar_names(corpus: Path, call: Call) -> None:
    status, _, err = call("show", corpus, "ring_pup")
    assert status == 2
    assert "ring_pop" in err.splitlines()[1]
    assert "adler32" in TINY_FUNCTIONS
    assert "adler32" not in err


def test_show_names_functions_of_the_same_name(tmp_path: Path, call: Call) -> None:
    first, second = a_record("twin"), a_record("other")
    second = type(second)(
        second.key, second.meta.model_copy(update={"name": "twin", "file": "b.c"}), "", second.assembly
    )
    entry = write_shard(tmp_path / "train-00000.tar.zst", "train", [first, second], zstd_level=3)
    write_index(tmp_path, an_index([entry]))
    status, out, err = call("show", tmp_path, "twin")
    assert status == 0
    assert first.key in out
    assert err == f"also: {second.key} demo 1.0, b.c:1\n"


def test_a_closed_pipe_is_no_error(corpus: Path) -> None:
    script = (
        f"{sys.executable} -m corpus_builder.cli show {corpus} adler32 | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
