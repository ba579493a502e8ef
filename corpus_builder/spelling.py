"""One spelling for instructions that assemble alike, per ISA: what `asm.view` is made of.

In goes one instruction with canonical spacing, as gcc or clang wrote it or a disassembler printed it; out
comes a template: the disassembler's spelling, with a gap wherever a label or a symbol stands. The linker
fills symbols in, so none is kept: a gap that no label of the function fills reads `CALL` for a jump or call,
`SYM` for data. Constants are kept, in decimal, since they say more of a function than its opcodes do.

The rules follow what gcc 12, clang 19 and zig's clang print (AT&T syntax for x86-64); what a rule does not
know stays as it was written, so a gap in the rules costs a match, never an instruction.
"""

import re
from typing import NamedTuple


class Template(NamedTuple):
    """An instruction with gaps: pieces[0] gap pieces[1] gap ...; one piece more than gaps."""

    pieces: tuple[str, ...]
    names: tuple[str, ...] = ()
    """What each gap refers to: a label's new name goes there, if the function defines it."""
    fallbacks: tuple[str, ...] = ()
    """What goes there if it does not."""


def gaps(text: str, reference: re.Pattern[str], fallback: str = "") -> Template:
    """A gap for each match of `reference`, whose group 1 is the name; its fallback is the match itself."""
    pieces, names, fallbacks, end = [], [], [], 0
    for match in reference.finditer(text):
        pieces.append(text[end : match.start()])
        names.append(match[1])
        fallbacks.append(fallback or match[0])
        end = match.end()
    return Template((*pieces, text[end:]), tuple(names), tuple(fallbacks))


_NUMBER = re.compile(r"(?<![\w.%])(-?)(?:0x([0-9a-f]+)|(\d+)(\.\d+)?(e[-+]?\d+)?)(?![\w.])", re.IGNORECASE)


def _decimal(text: str, register_bits: int = 64) -> str:
    """All numbers in decimal: `0xff` 255, `5.0e-1` 0.5, and what sets a register's highest bit negative."""

    def decimal(match: re.Match[str]) -> str:
        minus, hexadecimal, digits, fraction, exponent = match.groups()
        if fraction or exponent:
            return repr(float(match[0]))
        number = int(hexadecimal, 16) if hexadecimal else int(digits)
        return f"{minus}{number if minus else _signed(number, register_bits)}"

    return _NUMBER.sub(decimal, text)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) == 1 else number


def _branch(head: str, target: str) -> Template:
    """A jump: to a label of the function, or out of it."""
    name = re.match(r"[\w.$]*", target)
    return Template((f"{head} ", ""), (name[0] if name else target,), ("CALL",))


_CARRY = {"cs": "hs", "cc": "lo"}
_INVERSE = {
    **{"eq": "ne", "hs": "lo", "mi": "pl", "vs": "vc", "hi": "ls", "ge": "lt", "gt": "le"},
    **{"ne": "eq", "lo": "hs", "pl": "mi", "vc": "vs", "ls": "hi", "lt": "ge", "le": "gt"},
}
_AARCH64_SELECT = re.compile(r"cs(inc|inv|neg) (\w+), (\w+), \3, (\w+)")
_AARCH64_UNSCALED = re.compile(r"(ld|st|prf)u(r?[bhsw]*|m) ")
_AARCH64_ZERO_EXTEND = re.compile(r"uxtw [wx](\d+), ")
_AARCH64_WIDEN = re.compile(r"([us])xtl(2?) (.*)")
_AARCH64_ELEMENT = re.compile(r"ins (?=v)|dup (?=[bhsd]\d)")
_AARCH64_REGISTER_RANGE = re.compile(r"\{v(\d+)(\.\w+) ?- ?v(\d+)\.\w+\}")
_AARCH64_IMMEDIATE_SHIFT = re.compile(r"(?<= )(\d+), lsl 12$")
_AARCH64_TEST_BIT = re.compile(r"(tbn?z) x(\d+), (\d|[12]\d|3[01]),")
_AARCH64_BRANCH = re.compile(
    r"b\.?(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al|any|none|n?first|n?last|[pt]cont)"
)
_AARCH64_JUMPS = frozenset(("b", "cbz", "cbnz", "tbz", "tbnz"))
_AARCH64_CONDITION_OPERAND = re.compile(r", (cs|cc)$")
_AARCH64_RELOCATION = re.compile(r":\w+:[\w.$]+(?:[-+]\w+)*")
_AARCH64_LITERAL = re.compile(r"(?<= )=?([A-Za-z_.$][\w.$]*)(?:[-+]\w+)*$")


def _aarch64_alias(text: str) -> str:
    """One of the spellings that assemble to the same instruction; a load's offset tells ldur from ldr."""
    if select := _AARCH64_SELECT.fullmatch(text):
        kind, register, source, condition = select.groups()
        condition = _INVERSE.get(_CARRY.get(condition, condition), condition)
        if source in ("wzr", "xzr") and kind != "neg":
            return f"cset{'m' if kind == 'inv' else ''} {register}, {condition}"
        return f"c{kind} {register}, {source}, {condition}"
    if widen := _AARCH64_WIDEN.fullmatch(text):
        return f"{widen[1]}shll{widen[2]} {widen[3]}, 0"
    text = _AARCH64_UNSCALED.sub(r"\1\2 ", text, count=1)
    text = _AARCH64_ZERO_EXTEND.sub(r"mov w\1, ", text)
    text = _AARCH64_TEST_BIT.sub(r"\1 w\2, \3,", text)
    text = _AARCH64_ELEMENT.sub("mov ", text)
    text = text.removesuffix(", lsl 0") if text.startswith("mov") else text
    if text.startswith(("add", "sub", "cm")):
        text = _AARCH64_IMMEDIATE_SHIFT.sub(lambda match: str(int(match[1]) << 12), text)
    return _AARCH64_REGISTER_RANGE.sub(_listed, text) if "-" in text else text


def _listed(registers: re.Match[str]) -> str:
    first, kind, last = registers.groups()
    return "{" + ", ".join(f"v{number}{kind}" for number in range(int(first), int(last) + 1)) + "}"


def _view_aarch64(text: str) -> Template:
    is_32_bit = text.partition(" ")[2].startswith("w")
    text = _AARCH64_RELOCATION.sub("SYM", text)
    text = _aarch64_alias(_decimal(text, 32 if is_32_bit else 64))
    mnemonic, _, operands = text.partition(" ")
    if mnemonic == "bl":
        return Template(("bl CALL",))
    if branch := _AARCH64_BRANCH.fullmatch(mnemonic):
        return _branch(f"b.{_CARRY.get(branch[1], branch[1])}", operands)
    if mnemonic in _AARCH64_JUMPS:
        head, _, target = text.rpartition(" ")
        return _branch(head, target)
    if mnemonic == "adrp":
        return Template((text.partition(", ")[0] + ", SYM",))
    if mnemonic in ("mrs", "msr"):
        return Template((text.lower(),))
    text = _AARCH64_CONDITION_OPERAND.sub(lambda match: f", {_CARRY[match[1]]}", text)
    if mnemonic == "adr" or (mnemonic in ("ldr", "ldrsw") and "[" not in text):
        return gaps(text, _AARCH64_LITERAL, "SYM")
    return Template((text,))


_X86_SAME_CONDITION = {
    **{"z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "nbe": "a", "na": "be"},
    **{"nle": "g", "nl": "ge", "nge": "l", "ng": "le", "pe": "p", "po": "np"},
}
_X86_PREFIX = re.compile(r"((?:(?:lock|rep\w*|notrack|bnd|data16|rex\w*) )*)(\S+) ?(.*)")
_X86_SPELLING = {"retq": "ret", "callq": "call", "jmpq": "jmp", "leaveq": "leave"} | {
    f"sal{size}": f"shl{size}" for size in ("", "b", "w", "l", "q")
}
_X86_SCANS = {"rep bsfl": "tzcntl", "rep bsfq": "tzcntq", "rep bsrl": "lzcntl", "rep bsrq": "lzcntq"}
_X86_STRING = re.compile(r"(?:movs|stos|lods|scas|cmps)[bwlq]")
_X86_SHIFT = re.compile(r"(?:sh[lr]|sar|ro[lr]|rc[lr])[bwlq]?")
_X86_IMMEDIATE = re.compile(r"\$(\d+)(?=,|$)")
_X86_BITS = {"b": 8, "w": 16, "l": 32}
_X86_JUMP = re.compile(r"jmp|j[re]?cxz|loopn?e?|xbegin|j(?:[abgl]e?|[esop]|n[esop])")
_X86_CONDITIONAL = re.compile(r"(j|set|cmov)(pe|po|n?(?:[abgl]e?|[ezcsop]))")
_X86_SIZED_CMOV = re.compile(r"(cmov)(pe|po|n?(?:[abgl]e?|[ezcsop]))[wlq]")
_X86_SYMBOL = re.compile(r"(?<![%\w.@{])(?:-?\d+\+)?([A-Za-z_.][\w.$]*)(?:@\w+)?(?:[-+]\w+)*(?:@\w+)?")
_X86_DISPLACEMENT_0 = re.compile(r"(?<![\w.$+-])0(?=\()")
_X86_INTEGER_FROM_FLOAT = re.compile(r"(v?cvtt?s[sd]2u?si)[lq]")
_X86_FLOAT_FROM_INTEGER = re.compile(r"(v?cvtu?si2s[sd])[lq]")


def _x86_mnemonic(mnemonic: str, operands: str) -> str:
    """The disassembler's name: one of each pair of equal conditions, no size that a register gives."""
    conditional = _X86_CONDITIONAL.fullmatch(mnemonic) or _X86_SIZED_CMOV.fullmatch(mnemonic)
    if conditional:
        stem, condition = conditional.groups()
        return stem + _X86_SAME_CONDITION.get(condition, condition)
    if sized := _X86_INTEGER_FROM_FLOAT.fullmatch(mnemonic):
        return sized[1]
    sized = _X86_FLOAT_FROM_INTEGER.fullmatch(mnemonic)
    if sized and operands.startswith("%"):
        return sized[1]
    return _X86_SPELLING.get(mnemonic, mnemonic)


def _x86_immediate(mnemonic: str, operands: str) -> str:
    """Immediates as signed numbers of the operation's width, since the bytes know no other; no shift by 1."""
    if operands.startswith("$1, ") and operands.count(",") == 1 and _X86_SHIFT.fullmatch(mnemonic):
        return operands[4:]
    bits = _X86_BITS.get(mnemonic[-1], 64)
    return _X86_IMMEDIATE.sub(lambda match: f"${_signed(int(match[1]), bits)}", operands)


def _view_x86_64(text: str) -> Template:
    prefix, mnemonic, operands = _X86_PREFIX.fullmatch(text).groups()  # type: ignore[union-attr]
    mnemonic = _x86_mnemonic(mnemonic, operands)
    head = prefix + mnemonic
    if mnemonic == "call" and not operands.startswith("*"):
        return Template((f"{head} CALL",))
    if _X86_JUMP.fullmatch(mnemonic) and not operands.startswith("*"):
        return _branch(head, operands)
    if not operands or (_X86_STRING.fullmatch(mnemonic) and "%xmm" not in operands):
        return Template((head,))
    head = _X86_SCANS.get(head, head)
    operands = _x86_immediate(mnemonic, _decimal(operands))
    operands = _X86_DISPLACEMENT_0.sub("", operands).replace(",1)", ")")
    operand = gaps(operands, _X86_SYMBOL, "SYM")
    return operand._replace(pieces=(f"{head} {operand.pieces[0]}", *operand.pieces[1:]))


_RISCV_RELOCATION = re.compile(r"%\w+\([^()]*\)")
_RISCV_JUMP = re.compile(r"j|b(?:eq|ne|lt|ge|gt|le)(?:u|z)?")
_RISCV_ADDRESS = re.compile(r"(?<= )([A-Za-z_.][\w.$]*)(?:[-+]\w+)*$")
_RISCV_TAKES_ADDRESS = re.compile(r"l[lg]?a|l[bhwd]u?|fl[wd]")


def _view_riscv64(text: str) -> Template:
    mnemonic, _, operands = text.partition(" ")
    if mnemonic in ("call", "tail") or (mnemonic == "jal" and "," not in operands):
        return Template((f"{mnemonic} CALL",))
    if _RISCV_JUMP.fullmatch(mnemonic):
        head, _, target = text.rpartition(" ")
        return _branch(head, target)
    text = _decimal(_RISCV_RELOCATION.sub("SYM", text))
    if _RISCV_TAKES_ADDRESS.fullmatch(mnemonic):
        return gaps(text, _RISCV_ADDRESS, "SYM")
    return Template((text,))


VIEW_TEMPLATES = {"aarch64": _view_aarch64, "x86_64": _view_x86_64, "riscv64": _view_riscv64}
"""For each ISA the function from an instruction to its template."""
