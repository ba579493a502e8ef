"""What stands beside a model: counts in texts, views, untrained baselines, and the bag that learns."""

import math
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asmtrain.errors import ModelError
from asmtrain.tasks import bag, baselines, contenders, features, minhash, pools, retrieval, views
from corpus_builder import asm
from corpus_builder.asm import split_functions, view
from corpus_builder.shards import load_index, read_split, write_index

VIEW = "movl $-22, %eax\ncmpb $3, 16(%rdi)\njne L0\ncall CALL\nmovq SYM(%rip), %rax\nL0:\nret\n"
WHOLE = slice(0, None)


def similarity(name: str, queries: list[str], answers: list[str]) -> np.ndarray:
    texts = {str(at): text for at, text in enumerate(queries + answers)}
    bodies = list(texts)
    found = baselines.similarities(
        baselines.text_table(texts), bodies[: len(queries)], bodies[len(queries) :]
    )
    return found[name](WHOLE, WHOLE)


def test_numbers_are_those_of_the_text() -> None:
    counts = dict(zip(features.NUMERIC, features.numbers(VIEW), strict=True))
    assert len(features.NUMERIC) == 14
    assert counts == {
        "instructions": 6, "blocks": 3, "calls": 1, "jumps": 0, "branches": 1, "returns": 1, "compares": 1,
        "moves": 2, "arithmetic": 0, "logic": 0, "memory": 2, "symbols": 1, "constants": 3,
        "distinct_constants": 3,
    }  # fmt: skip
    assert features.opcodes(VIEW) == ["movl", "cmpb", "jne", "call", "movq", "ret"]
    assert asm.constants(VIEW) == ["-22", "3", "16"]
    assert asm.masked(VIEW).startswith("movl $N, %eax\ncmpb $N, N(%rdi)\njne L0\n")
    assert asm.constants(asm.masked(VIEW)) == []
    assert asm.constants("fmov d0, 1.5\nadd x0, x1, 0x10\nldr q0, [x2]\n") == ["1.5", "0x10"]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("ret\n", 1),
        ("cbz x0, L0\nmov w0, 1\nret\nL0:\nmov w0, 2\nret\n", 3),
        ("L0:\nsubs w0, w0, 1\nb.ne L0\nbl CALL\nblr x3\nret\n", 2),  # calls come back
        ("beqz a0, L0\njal CALL\njalr a5\nbgeu a1, a2, L0\naddi a0, a0, 1\nL0:\nL1:\nret\n", 4),
        ("testq %rdi, %rdi\njle L0\njmp CALL\nL0:\njmp *%rax\n", 3),
        ("", 0),
    ],
)
def test_blocks_begin_at_labels_and_behind_jumps(text: str, blocks: int) -> None:
    assert features.num_blocks(text) == blocks


@pytest.mark.parametrize(
    ("kind", "mnemonics"),
    {
        "calls": "bl blr call callq jal jalr",
        "jumps": "b br jmp j jr tail",
        "branches": "b.eq cbnz tbz jne jbe beq bltu bgez blez",
        "returns": "ret",
        "compares": "cmp ccmp fcmpe tst testb ucomisd sltiu snez sete cset",
        "moves": "mov fmov movk movzbl ldr ldp ldrsw str stp lw sd fld lui leaq pushq adrp csel cmovne",
        "arithmetic": "add subs madd fmul sdiv neg imull incq addiw remu sqrtsd",
        "logic": "and orr eor lsl sarl shrq notl bfi sxtw slli srai xori ubfx",
        "other": "nop dmb",
    }.items(),
)
def test_mnemonics_of_all_isas_are_told_apart(kind: str, mnemonics: str) -> None:
    assert {name: features.kind_of(name) for name in mnemonics.split()} == dict.fromkeys(
        mnemonics.split(), kind
    )


def test_views_hide_and_show_what_they_say(tiny_corpus: Path) -> None:
    """`pick` calls `helper`, which its unit only declares; gcc at O2 jumps to it."""
    imports = views.import_names(tiny_corpus)
    assert imports == {"helper"}
    for record in read_split(tiny_corpus, "test"):
        for variant, assembly in record.assembly.items():
            isa = variant.partition(".")[0]
            plain = view(assembly, isa)
            assert views.text_of(assembly, isa, "default") == plain
            assert views.text_of(assembly, isa, "masked") == asm.masked(plain)
            named = views.text_of(assembly, isa, "imports", imports)
            assert named.replace("helper", "CALL") == plain
            assert ("helper" in named) == record.meta.name.startswith("pick")
            assert views.text_of(assembly, isa, "imports") == plain


def test_what_one_project_alone_calls_is_no_import(tiny_corpus: Path, tmp_path: Path) -> None:
    index = load_index(tiny_corpus)
    only = tuple(shard for shard in index.shards if shard.split == "test")
    shutil.copy(tiny_corpus / only[0].name, tmp_path)
    write_index(tmp_path, index.model_copy(update={"shards": only}))
    assert views.import_names(tmp_path) == frozenset()


def test_a_cold_part_and_nops_do_not_shift_the_names_of_imports() -> None:
    text = (Path(__file__).parents[1] / "golden" / "asm" / "aarch64" / "cold_and_clones.gcc.o2.s").read_text()
    calls = {}
    for name, body in split_functions(text).items():
        shown = views.text_of(body, "aarch64", "imports", {"note", "slow", "fatal"})
        calls[name] = [line for line in shown.splitlines() if line.startswith("bl ")]
    assert calls["use"] == ["bl CALL", "bl CALL", "bl slow"]  # the others are clones
    assert calls["slow"] == ["bl note", "bl note"]


@pytest.mark.parametrize(
    ("name", "same", "different"), [("opcode_tfidf", 1, 2), ("minhash", 1, 2), ("constants_tfidf", 2, 1)]
)
def test_baselines_see_what_they_are_named_after(name: str, same: int, different: int) -> None:
    first = "movl $-22, %eax\ncmpb $3, 16(%rdi)\njne L0\nL0:\nret\n"
    other_constants = "movl $7, %ebx\ncmpb $9, (%rax)\njne L0\nL0:\nret\n"
    other_opcodes = "addq $-22, %rdx\nsubq $3, 16(%rcx)\nleave\nhlt\n"
    block = similarity(name, [first], [first, other_constants, other_opcodes])[0]
    assert block[same] == pytest.approx(block[0])
    assert block[different] < 0.1 < block[0]


def test_texts_without_constants_are_all_alike() -> None:
    assert (similarity("constants_tfidf", ["ret\n", "nop\n"], ["nop\n", "ret\n"]) == 0).all()


def test_length_and_numbers_prefer_the_nearest() -> None:
    texts = ["ret\n" * size for size in (4, 16, 64)]
    for name in ("length", "numeric"):
        assert similarity(name, ["ret\n" * 15], texts)[0].argmax() == 1


def test_bm25_is_its_formula() -> None:
    rng = random.Random(0)
    answers = ["".join(f"op{rng.randint(0, 9)} x0\n" for _ in range(rng.randint(5, 30))) for _ in range(12)]
    query = answers[3]
    counts = [Counter(features.opcodes(text)) for text in answers]
    mean = np.mean([count.total() for count in counts])
    scores = []
    for count in counts:
        score = 0.0
        for name, repeats in Counter(features.opcodes(query)).items():
            holding = sum(name in other for other in counts)
            idf = math.log(1 + (12 - holding + 0.5) / (holding + 0.5))
            score += (
                repeats * idf * count[name] * 2.2 / (count[name] + 1.2 * (0.25 + 0.75 * count.total() / mean))
            )
        scores.append(score)
    np.testing.assert_allclose(similarity("bm25", [query], answers)[0], scores, rtol=1e-9)


def test_combo_is_the_sum_of_z_scores_in_the_pool() -> None:
    texts = ["mov w0, 5\nret\n", "add w0, w1, 7\nadd w0, w0, 5\nret\n", VIEW]
    expected = np.zeros((3, 3))
    for name in ("opcode_tfidf", "constants_tfidf", "numeric"):
        block = similarity(name, texts, texts)
        expected += (block - block.mean(1, keepdims=True)) / block.std(1, keepdims=True)
    np.testing.assert_allclose(similarity("combo", texts, texts), expected)


@given(st.sets(st.integers(0, 300), min_size=1), st.sets(st.integers(0, 300), min_size=1))
def test_minhash_estimates_jaccard(left: set[int], right: set[int]) -> None:
    signatures = minhash.signatures([[f"item {at}" for at in side] for side in (left, right)])
    jaccard = len(left & right) / len(left | right)
    estimate = minhash.similarity(signatures[:1], signatures[1:])[0, 0]
    assert estimate == pytest.approx(jaccard, abs=5 * math.sqrt(0.25 / minhash.NUM_PERM))
    assert (estimate == 1) >= (left == right)


@pytest.fixture
def small_bag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a size that tests can afford to write."""
    monkeypatch.setattr(bag, "NUM_ROWS", 1 << 12)
    monkeypatch.setattr(bag, "DIM", 32)


@pytest.mark.usefixtures("small_bag")
def test_the_bag_learns_and_is_kept(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, texts = retrieval.prepare(tiny_corpus, split="valid", seed=0, lanes=["XA *", "XC *"])

    def mean_rank(steps: int) -> float:
        found = bag.contender(tiny_corpus, tmp_path / str(steps), view="default", seed=0, steps=steps)
        vectors = dict(zip(texts, found.embed(list(texts.values()), lambda done: None), strict=True))
        ranks = []
        for task in tasks:
            sides = (
                [vectors[getattr(p, side)] for p in task.pairs] for side in ("query_body", "answer_body")
            )
            ranks += list(
                pools.rank_lane(baselines.cosine(*map(np.stack, sides)), len(task.pairs), len(task.pairs))
            )
        return float(np.mean(ranks))

    assert mean_rank(60) < 0.8 * mean_rank(0)
    trained = bag.contender(tiny_corpus, tmp_path / "60", view="default", seed=0, steps=60)
    monkeypatch.setattr(bag, "train", None)  # what is kept is not trained again
    again = bag.contender(tiny_corpus, tmp_path / "60", view="default", seed=0, steps=60)
    vectors = [model.embed([VIEW, "ret\n", ""], lambda done: None) for model in (trained, again)]
    np.testing.assert_array_equal(*vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-5)
    with pytest.raises(TypeError):  # another view is another model
        bag.contender(tiny_corpus, tmp_path / "60", view="masked", seed=0, steps=60)


@pytest.mark.usefixtures("small_bag")
def test_training_the_bag_twice_gives_equal_weights(tiny_corpus: Path) -> None:
    functions = list(bag._functions(tiny_corpus, "default"))
    first, second = (bag.train(functions, seed=1, steps=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("small_bag")
def test_the_bag_stands_in_the_evaluation(
    tiny_corpus: Path, exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bag.contender.__kwdefaults__, "steps", 3)
    rows = retrieval.run(
        [str(exported_run / "export" / "embedding")], tiny_corpus, tmp_path, lanes=["XC O2 *"]
    )
    assert "bag" in {row["model"] for row in rows}
    assert (tmp_path / "bag-default.safetensors").exists()


def test_one_thread_is_given_back() -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with contenders.one_thread():
        assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, threads)


def test_vectors_that_are_not_finite_are_refused() -> None:
    embed = contenders._in_batches(lambda texts: np.full((len(texts), 2), np.nan), "a:b")
    with pytest.raises(ModelError, match="not finite"):
        embed(["ret\n"], lambda done: None)
