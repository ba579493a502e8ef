"""Events: the same of the same source, whatever compiled it."""

import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmtrain.events import NUM_WORDS, event_text, events
from asmtrain.lifting import signed
from asmtrain.tokens import event_tokenizer
from corpus_builder import asm

# Each line of a test: a C-like meaning, then how each instruction set writes it.
SAME = {
    "compare with a number": (
        ("cmp w0, 7\nb.eq L0\n", "cmpl $7, %eax\nje L0\n", "li a5, 7\nbeq a0, a5, L0\n"),
        ("cmp#7",),
    ),
    "compare with zero": (
        ("cbz x0, L0\n", "testq %rax, %rax\nje L0\n", "beqz a0, L0\n"),
        ("cmp#0",),
    ),
    "read a field": (
        ("ldr w1, [x0, 12]\n", "movl 12(%rdi), %eax\n", "lw a5, 12(a0)\n"),
        ("@12", "@12.4", "ld@12.4"),
    ),
    "write a byte": (
        ("strb w1, [x0, 3]\n", "movb %al, 3(%rdi)\n", "sb a5, 3(a0)\n"),
        ("@3", "@3.1", "st@3.1"),
    ),
    "write zero": (
        ("str wzr, [x0, 8]\n", "movl $0, 8(%rdi)\n", "sw zero, 8(a0)\n"),
        ("st@8.4", "mov#0"),
    ),
    "a large constant": (
        (
            "mov w0, 22136\nmovk w0, 4660, lsl 16\n",
            "movl $305419896, %eax\n",
            "lui a0, 74565\naddi a0, a0, 1656\n",
        ),
        ("#305419896", "mov#305419896"),
    ),
    "a mask": (("and w0, w0, 15\n", "andl $15, %eax\n", "andi a0, a0, 15\n"), ("and#15",)),
    "a shift": (("lsr w0, w0, 4\n", "shrl $4, %eax\n", "srliw a0, a0, 4\n"), ("shr#4",)),
    "one less": (("sub w0, w0, 1\n", "subl $1, %eax\n", "addiw a0, a0, -1\n"), ("add#-1",)),
    "hand constants to a call": (
        (
            "mov w1, 5\nmov w2, 0\nbl CALL\n",
            "movl $5, %esi\nxorl %edx, %edx\ncall CALL\n",
            "li a1, 5\nli a2, 0\ncall CALL\n",
        ),
        ("arg1=5", "arg2=0", "args:1=5,2=0", "calls=1"),
    ),
}

SOURCE = """
struct node { int kind; unsigned char flag; struct node *next; long total; };
extern int note(struct node *, int, int);
int walk(struct node *n, int limit)
{
    int seen = 0;
    while (n && seen < limit) {
        if (n->kind == 77 && (n->flag & 16))
            seen += note(n, 3, 19088743);
        n->total = 0;
        n = n->next;
    }
    return seen * 24;
}
"""
COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
}


@pytest.mark.parametrize("meaning", SAME)
def test_instruction_sets_share_words(meaning: str) -> None:
    texts, expected = SAME[meaning]
    for text in texts:
        assert set(expected) <= set(events(text)), text


def test_the_frame_is_told_without_offsets() -> None:
    for text in (
        "stp x29, x30, [sp, -48]!\nmov x29, sp\nstr x0, [x29, 24]\nldr w1, [sp, 28]\n",
        "pushq %rbp\nmovq %rsp, %rbp\nsubq $32, %rsp\nmovl %esi, -28(%rbp)\n",
        "addi sp, sp, -48\naddi s0, sp, 48\nsw a1, -36(s0)\n",
    ):
        told = events(text)
        assert "frame" in told
        assert not [word for word in told if word[0] in "@#"], told


def test_a_pointer_in_the_frame_register_is_no_frame() -> None:
    assert "@8.8" in events("pushq %rbp\nmovq %rdi, %rbp\nmovq 8(%rbp), %rax\n")


def test_constants_do_not_cross_a_label() -> None:
    assert "arg0=1" in events("mov w0, 1\nbl CALL\n")
    assert "arg0=1" not in events("mov w0, 1\nL0:\nbl CALL\n")
    assert "arg0=1" not in events("mov w0, 1\nldr w0, [x1]\nbl CALL\n")


@pytest.mark.parametrize(
    ("written", "meant"), [(0xFFFFFFFF, -1), (-1, -1), ((1 << 64) - 1, -1), (1 << 31, -(1 << 31)), (5, 5)]
)
def test_one_number_for_both_widths(written: int, meant: int) -> None:
    assert signed(written) == meant


def test_levels_and_instruction_sets_agree_on_a_function(tmp_path) -> None:
    """What identifies it is told at O0 as at O2, on all three."""
    (tmp_path / "walk.c").write_text(SOURCE)
    for isa, compiler in COMPILERS.items():
        for level in ("-O0", "-O2"):
            command = [compiler, level, "-S", "-o", "-", "walk.c"]
            text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
            view = asm.view(asm.split_functions(text)["walk"], isa)
            told = set(events(view))
            wanted = {"cmp#77", "@4.1", "ld@8.8", "st@16.8", "arg1=3", "#19088743", "calls=1"}
            assert wanted <= told, (isa, level, wanted - told)


LINES = [line for texts, _ in SAME.values() for text in texts for line in text.splitlines()]
CLAIMED = st.sampled_from([
    *("", "-1", "\u00b2", "9" * 5000, str(1 << 64), "lsl 99999999999", "x0", "sp", "%rip", "zero", "SYM"),
    *("[x0, x1, lsl 99999999999]", "(%rax,%rbx,\u00b2)", "(,,)", "[", ")", ",", ":"),
    *("tbz", "ubfx", "lui", "pop"),
])  # fmt: skip


@st.composite
def _lines(draw: st.DrawFn) -> str:
    """An instruction, some of its words put out, exchanged or added."""
    words = draw(st.sampled_from(LINES)).replace(",", " , ").split()
    changed = [word for word in words if draw(st.integers(0, 4))]
    for place in draw(st.lists(st.integers(0, 5), max_size=2)):
        changed.insert(place, draw(CLAIMED))
    return " ".join(changed).replace(" , ", ", ")


@given(st.lists(_lines() | st.text(max_size=40), max_size=12))
def test_no_text_is_too_strange(lines: list[str]) -> None:
    for first in ("ret", "retq", "addi sp, sp, -16"):
        assert all(events("\n".join([first, *lines])))


def test_a_line_without_end_takes_no_time() -> None:
    started = time.process_time()
    events("\n".join(["mov x0, [" + "[x1, " * 100_000, "add(" * 100_000, "-" * 1_000_000] * 5))
    assert time.process_time() - started < 1


def test_text_is_hashed_and_weighted_by_the_log_of_counts() -> None:
    once, often = event_text("ret\n").split(), event_text("ret\n" * 20).split()
    assert all(word[0] == "e" and int(word[1:]) < NUM_WORDS for word in often)
    (mnemonic,) = [word for word in set(once) if often.count(word) > 1]
    assert once.count(mnemonic) == 1
    assert often.count(mnemonic) == 4  # 1 + log 20


def test_the_tokenizer_knows_every_word() -> None:
    tokenizer = event_tokenizer()
    ids = tokenizer(f"e0 e{NUM_WORDS - 1}")["input_ids"]
    assert ids == [tokenizer.bos_token_id, 3, NUM_WORDS + 2, tokenizer.eos_token_id]
    assert len(tokenizer) == NUM_WORDS + 3
