"""RISC-V as gcc spells it, where the bytes leave a choice: guesses by what gcc 12 does most often.

`bgt a, b` and `blt b, a` are one instruction, and so are the compressed `add a, a, b` and `add a, b, a`.
Which of them gcc writes depends on the order of operands in its own representation, of which code shows a
trace: what wrote the registers, and when. The rules are majorities over 30,000 instructions of erfa and Lua
at O0, O1, O2 and Os.
"""

from typing import NamedTuple


class Step(NamedTuple):
    """An instruction where it stands, written in full."""

    at: int
    mnemonic: str
    operands: str
    jump: int | None
    """How far it jumps; None if it does not."""
    is_compressed: bool

    @property
    def register(self) -> str:
        """Its first operand."""
        return self.operands.partition(",")[0]


_COMMUTATIVE = frozenset(("add", "addw", "and", "or", "xor"))
_SWAPPED = {
    **{"blt": "bgt", "bge": "ble", "bltu": "bgtu", "bgeu": "bleu", "slt": "sgt", "sltu": "sgtu"},
    **{f"f{a}.{size}": f"f{b}.{size}" for a, b in (("lt", "gt"), ("le", "ge")) for size in "sd"},
}
_WRITES_NOTHING = frozenset(("sb", "sh", "sw", "sd", "fsw", "fsd", "nop", "fence", "ret", "jr", "ebreak"))

_INDEXES = frozenset(("slli", "srli", "addiw", "addw", "sub"))
"""What computes an index, which stands behind its base."""
_NOTHING = Step(-1, "", "", None, False)


def as_gcc(steps: list[Step]) -> list[Step]:
    """The steps of a function with gcc's choices."""
    keeps_frame = any(step.mnemonic == "addi" and step.operands.startswith("s0, sp, ") for step in steps[:8])
    written: dict[str, Step] = {}
    has_popped = False
    chosen = []
    before = ""
    for step in steps:
        if step.mnemonic in _COMMUTATIVE and step.is_compressed:
            step = _ordered(step, written, keeps_frame)
        elif step.mnemonic in _SWAPPED:
            step = _compared(step, written, keeps_frame)
        # Epilogues return by `jr ra`, other returns read `ret`.
        has_popped = _pops(step) or (has_popped and step.jump is None)
        if step.mnemonic == "ret":
            if has_popped:
                step = step._replace(mnemonic="jr", operands="ra")
            has_popped = False
        elif step.mnemonic == "bne" and before.startswith("sc."):
            step = step._replace(mnemonic="bnez", operands=step.operands.replace(", zero", ""))
        if step.jump is None and step.mnemonic not in _WRITES_NOTHING:
            written[step.register] = step
        before = step.mnemonic
        chosen.append(step)
    return chosen


def _pops(step: Step) -> bool:
    return step.operands.startswith("sp, ") and step.mnemonic in ("addi", "add") and "-" not in step.operands


def _ordered(step: Step, written: dict[str, Step], keeps_frame: bool) -> Step:
    register, _, other = [*step.operands.split(", "), "", ""][:3]
    writer = written.get(register, _NOTHING)
    if step.mnemonic != "add" or other == "tp":
        swaps = keeps_frame and other != "tp"
    elif keeps_frame:
        swaps = writer.mnemonic != "addi" or writer < written.get(other, _NOTHING)
    else:
        swaps = writer.mnemonic in _INDEXES
    return step._replace(operands=f"{register}, {other}, {register}") if swaps else step


def _compared(step: Step, written: dict[str, Step], keeps_frame: bool) -> Step:
    *head, left, right = ["", *step.operands.removesuffix(", ").split(", ")]
    if "zero" in (left, right):
        # A number of zero comes second in gcc's representation.
        swaps = left == "zero"
    else:
        is_newest = written.get(left, _NOTHING) > written.get(right, _NOTHING)
        swaps = is_newest or (step.mnemonic == "bltu" and not keeps_frame)
    if not swaps:
        return step
    tail = ", " if step.jump is not None else ""
    return step._replace(
        mnemonic=_SWAPPED[step.mnemonic], operands=", ".join((*head[1:], right, left)) + tail
    )
