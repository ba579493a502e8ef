"""Vulnerabilities, on really compiled code: what patches change, who is asked, ranks and nearness."""

import difflib
import itertools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asmtrain.cli import main
from asmtrain.errors import ConfigError
from asmtrain.tasks import cve, fixes
from asmtrain.tasks.cve_questions import Target, questions_of
from corpus_builder import asm
from corpus_builder.csource import functions_in, own_text
from corpus_builder.shards import CorpusIndex, load_index, read_split, write_index, write_shard
from functions import PRELUDE, c_functions
from tiny import _record

ISAS = ("aarch64", "riscv64", "x86_64")

LOOPS = """int {name}(const int *a, int n)
{{
    int total = {seed};
    for (int i = 0; i < n; i++) {{
        total += a[i] * {seed};
    }}
    return total;
}}
"""
FIXED = {
    "    int total = 3;\n": "    int total = 3;\n    if (n > 77) return -7;\n",
    "    int total = 5;\n": "    int total = 5;\n    if (n < 0 || n > 55) return -5;\n",
}


def unit(names: Mapping[str, int]) -> str:
    """A C file: loops that are to be fixed, a function that is not, and one that is too short."""
    others = "\n".join(c_functions("other", 12, seed=4).values())
    loops = "\n".join(LOOPS.format(name=name, seed=seed) for name, seed in names.items())
    return f"{PRELUDE}{others}\n{loops}\nint tiny(int x)\n{{\n    return x + 1;\n}}\n"


def fixed(text: str) -> str:
    for old, new in FIXED.items():
        text = text.replace(old, new)
    return text.replace("return x + 1;", "return x + 2;")


BEFORE = unit({"first": 3, "second": 5, "third": 9})
AFTER = fixed(BEFORE)


def a_patch(old: str, new: str, file: str = "unit.c", folders: tuple[str, str] = ("a", "b")) -> str:
    names = [f"{folder}/{file}" for folder in folders]
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names)
    return "Description: a fix\n" + "".join(lines)


def part(text: str, old: str) -> str:
    """With one of the fixes alone."""
    return text.replace(old, FIXED[old])


PATCHES = {
    "left-out/CVE-2020-0001.patch": a_patch(BEFORE, part(BEFORE, "    int total = 3;\n")),
    "left-out/fix-overflow.patch": "Bug: CVE-2020-0002, CVE-2020-0003\n"
    + a_patch(BEFORE, part(BEFORE, "    int total = 5;\n"), folders=("demo-1.0.orig", "demo-1.0")),
    "left-out/CVE-2020-0004.patch": a_patch(BEFORE, BEFORE.replace("return x + 1;", "return x + 2;")),
    "left-out/CVE-2020-0005.patch": a_patch("int a;\n", "int added;\n", "other.c"),
    "left-out/CVE-2020-0006.patch": a_patch("int a;\n", "int added;\n", "unit.h"),
    "left-out/CVE-2020-0007.patch": a_patch("text\n", "better text\n", "README"),
    "kept/CVE-2020-0008.patch": a_patch(BEFORE, AFTER),
}


def a_corpus(folder: Path, text: str) -> Path:
    """One unit, compiled for three ISAs at O2."""
    folder.mkdir(parents=True)
    (folder / "unit.c").write_text(text)
    assembly: dict[str, dict[str, str]] = {}
    for isa in ISAS:
        argv = [f"{isa}-linux-gnu-gcc", "-O2", "-S", "unit.c", "-o", "unit.s"]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=60)
        for name, body in asm.split_functions((folder / "unit.s").read_bytes()).items():
            assembly.setdefault(name, {})[f"{isa}.gcc12.o2"] = body
    marked = f'# 1 "{folder}/unit.c"\n{text}'.encode()
    sources = functions_in(own_text(marked, folder, "."), folder)
    records = []
    for name, source in sources.items():
        record = _record("test", name, source.text, line=source.lines[0], assembly=assembly[name])
        own = {"lines": source.lines, "source_sha256": source.source_sha256, "project": "demo"}
        records.append(replace(record, meta=record.meta.model_copy(update=own)))
    entry = write_shard(folder / "test-00000.tar.zst", "test", records, zstd_level=1)
    nothing: dict[str, dict[str, int]] = {"totals": {}, "compiled": {}, "failures": {}}
    index = CorpusIndex(
        name="cve", toolchains={f"{isa}.gcc12": "gcc 12" for isa in ISAS}, levels=("O2",), text="raw",
        members=(), dedup={}, projects={}, shards=(entry,), **nothing,
    )  # fmt: skip
    write_index(folder, index)
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, need) -> tuple[Path, Path]:
    """Before and after two functions were fixed by patches of CVEs, and a third one by none."""
    need(*(f"{isa}-linux-gnu-gcc" for isa in ISAS))
    folder = tmp_path_factory.mktemp("cve")
    before, after = a_corpus(folder / "before", BEFORE), a_corpus(folder / "after", AFTER)
    for name, text in PATCHES.items():
        path = before / "patches" / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return before, after


def test_changed_functions_are_those_of_their_patches(corpora: tuple[Path, Path]) -> None:
    compared = fixes.compare(*corpora)
    found = {identity.name: names for identity, names in compared.changed.items()}
    assert found == {
        "first": {"demo/CVE-2020-0001.patch"},
        "second": {"demo/fix-overflow.patch"},
        "tiny": {"demo/CVE-2020-0004.patch"},
    }
    assert {patch.name: patch.cves for patch in compared.patches}["fix-overflow.patch"] == (
        "CVE-2020-0002",
        "CVE-2020-0003",
    )


def test_a_line_that_two_functions_gain_is_the_nearest_ones() -> None:
    """Both functions gain the same check; the patches are told apart by where they put it."""
    check = "    if (n > 9) return 0;"
    text = "int {}(int n)\n{{\n{}    return n;\n}}"
    changed = [
        (
            fixes.Identity("p", "a.c", name),
            *(
                fixes.State(text.format(name, more), f"{name}{more}", (at, at + 4), {})
                for more in ("", f"{check}\n")
            ),
        )
        for name, at in (("one", 10), ("two", 100))
    ]
    old = {identity: before for identity, before, _ in changed}
    new = {identity: after for identity, _, after in changed}
    patches = [
        fixes.Patch("p", f"CVE-{at}", (), True, [fixes.Change("a.c", check.strip(), at, True)])
        for at in (20, 90)
    ]
    found = fixes._changed(old, new, patches)
    assert {identity.name: names for identity, names in found.items()} == {
        "one": {"p/CVE-20"},
        "two": {"p/CVE-90"},
    }


def test_who_is_asked_and_why_the_others_are_not(corpora: tuple[Path, Path]) -> None:
    compared = fixes.compare(*corpora)
    questions, reasons = questions_of(compared)
    assert [(question.identity.name, question.cves) for question in questions] == [
        ("first", ("CVE-2020-0001",)),
        ("second", ("CVE-2020-0002", "CVE-2020-0003")),
    ]
    assert set(reasons.values()) == {"shorter than 10 instructions"}
    for question in questions:
        assert list(question.targets) == ["aarch64", "riscv64"]
        for isa, target in question.targets.items():
            own = [
                states[question.identity].bodies[isa].sha256 for states in (compared.before, compared.after)
            ]
            assert target.pair == tuple(own)
            assert target.right == set(own)
            assert question.vulnerable in target.taken_out
    seen = {compared.before[questions[0].identity].bodies["riscv64"].sha256, ("second", "unit.c")}
    assert questions_of(compared, seen)[0] == []


def test_the_rank_is_that_of_the_nearest_right_body() -> None:
    """Against all orders of a few, with ties."""
    rng = np.random.default_rng(0)
    names = [f"b{at}" for at in range(7)]
    places = {name: at for at, name in enumerate(names)}
    target = Target(frozenset({"b1", "b4"}), frozenset({"b6", "elsewhere"}), ("b1", "b4"))
    for _ in range(20):
        similarity = rng.integers(0, 3, len(names)).astype(float)
        ranks = []
        for order in itertools.permutations(range(6)):  # b6 is taken out
            ranked = sorted(order, key=lambda at: -similarity[at])
            ranks.append(1 + min(ranked.index(1), ranked.index(4)))
        assert cve.rank_of(similarity, target, places) == pytest.approx(np.mean(ranks))


def test_random_figures_are_those_of_all_orders() -> None:
    target = Target(frozenset({"a", "b"}), frozenset({"c"}), None)
    found = cve._chance([target], 13)
    firsts = [min(pair) for pair in itertools.combinations(range(1, 13), 2)]
    assert found["recall_at_1"] == pytest.approx(np.mean([first == 1 for first in firsts]))
    assert found["recall_at_10"] == pytest.approx(np.mean([first <= 10 for first in firsts]))
    assert found["mrr_at_10"] == pytest.approx(np.mean([1 / f if f <= 10 else 0 for f in firsts]))
    assert found["median_rank"] == pytest.approx(np.mean(firsts))


def counts_of_numbers(texts: list[str]) -> np.ndarray:
    """A model: how often each of the numbers that the functions and their fixes have stands in a text."""
    words = [f" {text} ".replace(",", " ").replace("$", " ").replace("(", " ").split() for text in texts]
    wanted = [str(number) for number in (-7, 77, -5, 55, 3, 5, 9)]
    rows = np.array([[own.count(number) for number in wanted] for own in words], np.float32)
    return rows + 0.01


def test_the_command_finds_them_and_says_what_became_of_every_cve(
    corpora: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = corpora
    options = ["--before", str(before), "--after", str(after), "--output", str(tmp_path)]
    assert main(["eval", "cve", "--model", "test_cve:counts_of_numbers", *options]) == 0
    result = json.loads((tmp_path / "cve.json").read_bytes())
    assert {row["cve"]: row["why_not"] for row in result["cves"]} == {
        "CVE-2020-0001": "",
        "CVE-2020-0002": "",
        "CVE-2020-0003": "",
        "CVE-2020-0004": "shorter than 10 instructions",
        "CVE-2020-0005": "changes no file that is compiled",
        "CVE-2020-0006": "changes headers alone",
        "CVE-2020-0007": "changes no C code",
        "CVE-2020-0008": "its patch stays applied, for later ones build on it",
    }
    rows = {(row["isa"], row["model"]): row for row in result["summary"]}
    assert {isa for isa, _ in rows} == {"aarch64", "riscv64"}
    assert {"random", "combo", "opcode_tfidf", "constants_tfidf", "numeric", "trained"} <= {
        m for _, m in rows
    }
    for isa in ("aarch64", "riscv64"):
        judged = rows[isa, "trained"]
        assert (judged["num_queries"], judged["num_cves"], judged["num_pairs"]) == (2, 3, 2)
        assert judged["recall_at_1"] == 1  # numbers that no other function has
        assert judged["vulnerable_nearer"] == judged["fixed_nearer"] == 1
        assert rows[isa, "random"]["recall_at_1"] < 0.2
    assert len(result["rows"]) == 2 * 2 * (len(rows) // 2 - 1)
    assert (tmp_path / "cve.png").stat().st_size > 5000
    told = capsys.readouterr().out
    assert "3 of 8 CVEs are asked for" in told
    assert "1 changes headers alone" in told


def test_what_training_has_seen_is_not_asked_and_the_bag_stands_beside(
    corpora: tuple[Path, Path], tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asmtrain.tasks import bag

    monkeypatch.setattr(bag, "NUM_ROWS", 1 << 12)
    monkeypatch.setattr(bag, "DIM", 16)
    monkeypatch.setitem(bag.contender.__kwdefaults__, "steps", 3)
    (seen,) = (record for record in read_split(corpora[0], "test") if record.meta.name == "first")
    train = list(read_split(tiny_corpus, "train"))
    entry = write_shard(tmp_path / "train-00000.tar.zst", "train", [*train, seen], zstd_level=1)
    write_index(tmp_path, load_index(tiny_corpus).model_copy(update={"shards": (entry,)}))
    rows = cve.run(["test_cve:counts_of_numbers"], *corpora, tmp_path / "out", trained_on=tmp_path)
    assert {row["num_queries"] for row in rows} == {1}
    assert "bag" in {row["model"] for row in rows}


def test_corpora_that_do_not_fit_are_refused(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = corpora
    with pytest.raises(ConfigError, match="lacks no patch"):
        fixes.compare(after, before)
    other = load_index(after).model_copy(update={"toolchains": {"x86_64.gcc13": "gcc 13"}})
    write_index(tmp_path, other)
    with pytest.raises(ConfigError, match="different compilers"):
        fixes.compare(before, tmp_path)
