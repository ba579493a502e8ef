"""RISC-V instructions of capstone, as gcc or clang write them.

Compressed instructions are written in full. gcc writes pseudo-instructions (`call`, `lla`, `li`) for pairs
that clang writes out, so that a file's compiler decides how a pair reads; `riscv_gcc` guesses where the bytes
leave gcc a choice. The linker's relaxation shortens such pairs: what jumps directly was a `call` or `tail`,
what counts from gp was an address.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from asmtrain.machine.context import OUTSIDE, SYMBOL, Context, Decoded, Written, number
from asmtrain.machine.riscv_gcc import Step, as_gcc

_TWO_OPERANDS = frozenset(
    ("add", "sub", "xor", "or", "and", "addw", "subw", "slli", "srli", "srai", "andi", "addi", "addiw")
)
_JUMP = re.compile(r"j|jal|b(?:eq|ne|lt|ge|gt|le)(?:u|z)?")
_AGAINST_ZERO = re.compile(r"b(eq|ne|lt|ge|gt|le)z")
_MEMORY = re.compile(r"(-?\w*)\((\w+)\)$")
_STORE = re.compile(r"f?s[bhwdq]")
_INVERSE = {
    one: other
    for pair in (("eq", "ne"), ("lt", "ge"), ("ltu", "geu"), ("gt", "le"), ("gtu", "leu"))
    for one, other in (pair, pair[::-1])
}
_GOT, _TLS_IE, _TLS_GD = 20, 21, 22
_TPREL_ADD = 32
_BRANCH_REACHES = 4096
_HIGH = frozenset((20, 21, 22, 23, 26, 29))
"""GOT_HI20, TLS_GOT_HI20, TLS_GD_HI20, PCREL_HI20, HI20, TPREL_HI20."""
_LOW = frozenset((24, 25, 27, 28, 30, 31))
"""PCREL_LO12_I and _S, LO12_I and _S, TPREL_LO12_I and _S."""


class _Spelled(NamedTuple):
    """An instruction without its relocation, written in full."""

    mnemonic: str
    operands: str
    jump: int | None
    """How far it jumps; None if it does not."""


@lru_cache(1 << 16)
def _spelled(mnemonic: str, operands: str, is_clang: bool) -> _Spelled:
    if mnemonic.startswith("c."):
        mnemonic, operands = _in_full(mnemonic[2:], operands)
    head, _, last = operands.rpartition(", ")
    jump = number(last) if _JUMP.fullmatch(mnemonic) else None
    if jump is not None:
        found = _AGAINST_ZERO.fullmatch(mnemonic)
        if found and not is_clang:
            mnemonic, head = f"b{found[1]}", f"{head}, zero"
        return _Spelled(mnemonic, f"{head}, " if head else "", jump)
    if mnemonic == "addi" and ", zero, " in operands:
        mnemonic, operands = "li", operands.replace("zero, ", "")
    if not is_clang:
        mnemonic, operands = _as_gcc(mnemonic, operands)
    return _Spelled(mnemonic, operands, None)


def _in_full(mnemonic: str, operands: str) -> tuple[str, str]:
    """A compressed instruction as the one that it abbreviates."""
    first, _, rest = operands.partition(", ")
    if mnemonic == "addiw" and rest == "0":
        return "sext.w", f"{first}, {first}"
    if mnemonic in _TWO_OPERANDS:
        return mnemonic, f"{first}, {first}, {rest}"
    if mnemonic == "addi16sp":
        return "addi", f"sp, sp, {rest}"
    if mnemonic == "addi4spn":
        return "addi", operands
    if mnemonic == "jr" and operands == "ra":
        return "ret", ""
    return mnemonic.removesuffix("sp"), operands


def _as_gcc(mnemonic: str, operands: str) -> tuple[str, str]:
    if mnemonic == "fence" and not operands:
        return mnemonic, "iorw, iorw"
    if mnemonic == "sgtz":
        return "sgt", f"{operands}, zero"
    if mnemonic == "sltz":
        return "slt", f"{operands}, zero"
    if mnemonic.startswith(("amo", "lr.", "sc.")):
        return mnemonic, operands.replace("(", "0(")
    return mnemonic, operands


def written(instructions: Decoded, code: bytes, address: int, context: Context) -> Written:
    """The instructions of one function; `code` are its bytes, `address` where they lie."""
    is_clang = context.is_clang
    steps = [
        Step(at, *_spelled(mnemonic, operands, is_clang), mnemonic.startswith("c."))
        for at, _, mnemonic, operands in instructions
    ]
    if not is_clang:
        steps = as_gcc(steps)
    steps.append(Step(address + len(code), "", "", None, False))
    pages: set[str] = set()
    place = 0
    while place < len(steps) - 1:
        step, following = steps[place], steps[place + 1]
        place += 1
        if step.mnemonic == "auipc" and (pair := _pair(step, following, context)):
            yield pair
            place += 1
        elif skip := _far_branch(step, following, context, address, address + len(code)):
            yield skip
            place += 1
        elif step.jump is not None:
            yield _jump(step, context, address, address + len(code))
        else:
            yield from ((step.at, text, None) for text in _plain(step, context, pages))


def _kind(at: int, context: Context) -> int:
    relocation = context.relocations.get(at)
    return relocation.kind if relocation else 0


def _pair(step: Step, following: Step, context: Context) -> tuple[int, str, int | None] | None:
    """What `auipc` and the instruction behind it were written as, if as one."""
    register, kind = step.register, _kind(step.at, context)
    if following.mnemonic in ("jalr", "jr") and _MEMORY.sub(r"\2", following.operands) in (
        register,
        f"{register}, {register}",
        f"zero, {register}",
    ):
        is_call = following.mnemonic == "jalr" and register == "ra"
        relocation = context.relocations.get(step.at)
        target = relocation.target if relocation and relocation.target is not None else OUTSIDE
        return step.at, "call " if is_call else "tail ", target
    if context.is_clang:
        return None
    if following.operands.startswith(f"{register}, {register}") and following.mnemonic in ("addi", "mv"):
        return step.at, f"{'la.tls.gd' if kind == _TLS_GD else 'lla'} {register}, ", OUTSIDE
    memory = _MEMORY.search(following.operands)
    if not memory or memory[2] != register:
        return None
    if following.mnemonic == "ld" and following.register == register:
        if kind == _TLS_IE:
            return step.at, f"la.tls.ie {register}, ", OUTSIDE
        is_offset = kind == _GOT or (not kind and _is_in_offsets(step, memory[1], context))
        return step.at, f"{'la' if is_offset else 'ld'} {register}, ", OUTSIDE
    if following.register == register:
        return step.at, f"{following.mnemonic} {register}, ", OUTSIDE
    # Loads of floats and stores name a register for the address.
    symbol = ".LC0" if following.mnemonic.startswith("fl") else SYMBOL
    return step.at, f"{following.mnemonic} {following.register}, {symbol}, {register}", None


def _is_in_offsets(step: Step, low: str, context: Context) -> bool:
    """Whether a linked pair loads from the global offset table."""
    high = _signed(_upper(step), 20) << 12
    begin, end = context.offsets
    return begin <= step.at + high + (number(low) or 0) < end


def _far_branch(
    step: Step, following: Step, context: Context, low: int, high: int
) -> tuple[int, str, int | None] | None:
    """A branch too far for one, or out of the section: the assembler wrote its inverse around a jump."""
    inverse = _INVERSE.get(step.mnemonic[1:].removesuffix("z")) if step.mnemonic[:1] == "b" else None
    if inverse is None or following.mnemonic != "j" or step.jump is None or following.jump is None:
        return None
    target = _target(following, context)
    size = 8 if step.jump == 8 else 6
    if step.at + step.jump != step.at + size or following.at != step.at + 4:
        return None
    is_inside = low <= target < high
    # Once linked, a jump out of the function behind a branch is rather a relaxed `tail`.
    if context.is_linked if not is_inside else abs(target - step.at) < _BRANCH_REACHES:
        return None
    zero = "z" if step.mnemonic.endswith("z") else ""
    return step.at, f"b{inverse}{zero} {step.operands}", target if is_inside else OUTSIDE


def _target(step: Step, context: Context) -> int:
    relocation = context.relocations.get(step.at)
    if relocation:
        return OUTSIDE if relocation.target is None else relocation.target
    return step.at + (step.jump or 0)


def _jump(step: Step, context: Context, low: int, high: int) -> tuple[int, str, int | None]:
    target = _target(step, context)
    if step.mnemonic == "jal" and step.operands in ("", "ra, "):
        return step.at, "call ", OUTSIDE
    if step.mnemonic == "j" and context.is_linked and not low <= target < high:
        return step.at, "tail ", OUTSIDE
    return step.at, f"{step.mnemonic} {step.operands}", target


def _plain(step: Step, context: Context, pages: set[str]) -> tuple[str, ...]:
    """The lines of an instruction that neither jumps nor is half of a pair."""
    kind, register = _kind(step.at, context), step.register
    if step.mnemonic in ("lui", "auipc"):
        is_symbol = kind in _HIGH or (context.is_linked and _is_page(step, context))
        pages.discard(register)
        if is_symbol:
            if context.is_linked:
                pages.add(register)
            return (f"{step.mnemonic} {register}, {SYMBOL}",)
        if step.mnemonic == "lui" and not context.is_clang:
            return (f"li {register}, {_signed(_upper(step), 20) << 12}",)
        return (f"{step.mnemonic} {step.operands}",)
    if kind == _TPREL_ADD:
        return (f"{step.mnemonic} {step.operands}, {SYMBOL}",)
    base = _base(step)
    if kind in _LOW or base in pages:
        text: tuple[str, ...] = (_with_symbol(step),)
    elif context.is_linked and base == "gp":
        text = _from_global_pointer(step, context)
    else:
        text = (f"{step.mnemonic} {step.operands}",)
    if not _STORE.fullmatch(step.mnemonic):
        pages.discard(register)
    return text


def _is_page(step: Step, context: Context) -> bool:
    if step.mnemonic == "auipc":
        return True
    low, high = context.absolute
    return low <= _signed(_upper(step), 20) << 12 < high


def _upper(step: Step) -> int:
    """The immediate of `lui` or `auipc`."""
    return number(step.operands.rpartition(" ")[2]) or 0


def _base(step: Step) -> str:
    """The register that an address counts from."""
    if step.operands.endswith(")"):
        return step.operands[step.operands.rfind("(") + 1 : -1]
    if step.mnemonic in ("addi", "mv"):
        return step.operands.partition(", ")[2].partition(",")[0]
    return ""


def _with_symbol(step: Step) -> str:
    if step.operands.endswith(")"):
        register, _, memory = step.operands.partition(", ")
        return f"{step.mnemonic} {register}, {SYMBOL}{memory[memory.find('(') :]}"
    register, base, *_ = [*step.operands.split(", "), ""]
    return f"addi {register}, {base}, {SYMBOL}" if base else f"{step.mnemonic} {step.operands}"


def _from_global_pointer(step: Step, context: Context) -> tuple[str, ...]:
    """What the linker shortened to count from gp: the page's instruction is gone."""
    register = step.register if step.register[:1] in ("a", "s", "t") else "a5"
    is_address = not step.operands.endswith(")")
    if not context.is_clang and not context.absolute[1]:
        return (f"lla {register}, {SYMBOL}" if is_address else f"{step.mnemonic} {step.register}, {SYMBOL}",)
    page = f"{'lui' if context.absolute[1] else 'auipc'} {register}, {SYMBOL}"
    return page, _with_symbol(step).replace("gp", register)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) & 1 else number
