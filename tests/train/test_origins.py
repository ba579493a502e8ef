"""Where values come from: the same paths of the same source, whatever compiled it."""

import subprocess
import time

import pytest

from asmtrain.events import events
from asmtrain.lifting import lift, reader_of
from asmtrain.origins import Origins
from corpus_builder import asm

SOURCE = """
struct list { int count; struct list *next; long total; char name[8]; };
extern long note(long, struct list *, int), tell(long, struct list *, int);
extern struct list *first(const char *);
long add(struct list *list, long more, int unused)
{
    struct list *next = list->next;
    if (list->count == 77)
        return tell(more, next, 5);
    next->total = more;
    struct list *found = first("name");
    found->next = list;
    found->count = 0;
    return note(next->total, found, 9);
}
"""
COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
}
WANTED = {
    *("ldp0@8.8", "cmp p0.0#77", "arg0=p1", "arg1=p0.8", "arg1=p0.8,#5", "stp0.8@16.8", "p0.8@16=p1"),
    *("arg0=g", "c@8=p0", "stc@0.4", "c@0=#0", "arg1=c", "params=1"),
}


@pytest.mark.parametrize("isa", COMPILERS)
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2"])
def test_levels_and_instruction_sets_agree_on_paths(tmp_path, isa: str, level: str) -> None:
    (tmp_path / "list.c").write_text(SOURCE)
    command = [COMPILERS[isa], level, "-S", "-o", "-", "list.c"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    told = set(events(asm.view(asm.split_functions(text)["add"], isa)))
    assert told >= WANTED, WANTED - told


def test_a_path_goes_through_the_frame_and_saved_registers() -> None:
    assert "arg0=p1" in events("str x1, [sp, 8]\nmov x0, 5\nbl CALL\nldr x0, [sp, 8]\nbl CALL\n")
    assert "arg0=p1" in events("mov x19, x1\nbl CALL\nmov x0, x19\nbl CALL\n")
    assert "arg0=p1" not in events("mov x9, x1\nbl CALL\nmov x0, x9\nbl CALL\n"), "a call may change x9"


def test_a_load_into_the_zero_register_leaves_nothing() -> None:
    reader = reader_of("lw zero, 8(a0)\n")
    origins = Origins(reader)
    for micro in lift(reader, "lw zero, 8(a0)"):
        origins.follow(micro, {})
    assert "" not in origins._held


def test_what_was_added_counts_as_offset() -> None:
    assert "p0@24" in events("add x0, x0, 16\nldr x1, [x0, 8]\n")


@pytest.mark.parametrize(
    "text",
    ["ldr w0, [x0, x1, lsl 2]\ncmp w0, 3\n", "lsl x1, x1, 2\nadd x1, x0, x1\nldr w0, [x1]\ncmp w0, 3\n"],
)
def test_elements_are_told_without_their_number(text: str) -> None:
    assert "cmp p0[].0#3" in events(text)


def test_a_label_behind_a_jump_takes_what_was_known_at_the_jump() -> None:
    known = "mov x19, x0\ncbz x1, L0\nmov x19, 0\nret\nL0:\nldr x2, [x19, 8]\n"
    assert "p0@8" in events(known)
    assert "p0@8" not in events(known.replace("ret\n", "nop\n")), "the line before goes on here as well"


def test_what_is_followed_is_bounded() -> None:
    """A jump keeps a copy of what is known: a text with many of both must not take their product."""
    started = time.process_time()
    lines = [f"str x0, [sp, {8 * at}]\nmov y{at}, 5\ncbz x0, L{at}\nM{at}:" for at in range(20_000)]
    assert "p0@8" in events("\n".join([*lines, "ldr x1, [x0, 8]"]))
    assert time.process_time() - started < 10
