"""One spelling for instructions that assemble alike, per ISA: what `asm.view` is made of.

In goes one instruction with canonical spacing, as gcc or clang wrote it or a disassembler printed it; out
comes a template: the disassembler's spelling, with a gap wherever a label or a symbol stands. The linker
fills symbols in, so none is kept: a gap that no label of the function fills reads `CALL` for a jump or call,
`SYM` for data. Constants are kept, in decimal, since they say more of a function than its opcodes do.

The rules follow what gcc 12, clang 19 and zig's clang print (AT&T syntax for x86-64); what a rule does not
know stays as it was written, so a gap in the rules costs a match, never an instruction.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple


class Template(NamedTuple):
    """An instruction with gaps: pieces[0] gap pieces[1] gap ...; one piece more than gaps."""

    pieces: tuple[str, ...]
    names: tuple[str, ...] = ()
    """What each gap refers to: a label's new name goes there, if the function defines it."""
    fallbacks: tuple[str, ...] = ()
    """What goes there if it does not."""

    def with_name(self, name: str) -> "Template":
        """The same with another label in its only gap."""
        same = self.fallbacks == self.names
        return Template(self.pieces, (name,), (name,) if same else self.fallbacks)

    def filled(self, labels: Mapping[str, str]) -> str:
        """The line with a new name for each label that has one."""
        if len(self.names) == 1:
            name = self.names[0]
            return f"{self.pieces[0]}{labels.get(name, self.fallbacks[0])}{self.pieces[1]}\n"
        text = self.pieces[0]
        for name, fallback, piece in zip(self.names, self.fallbacks, self.pieces[1:], strict=True):
            text += labels.get(name, fallback) + piece
        return f"{text}\n"


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

# In every number that _decimal may write otherwise: a base, a fraction, a leading zero, or many digits.
_ODD_NUMBER = re.compile(r"\d[xX.eE]|0\d|\d{10}")


def _decimal(text: str, register_bits: int = 64) -> str:
    """All numbers in decimal: `0xff` 255, `5.0e-1` 0.5, and what sets a register's highest bit negative."""
    if not _ODD_NUMBER.search(text):
        return text

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
_AARCH64_TAKES_ADDRESS = frozenset(("adr", "ldr", "ldrsw"))
_AARCH64_CONDITION_OPERAND = re.compile(r", (cs|cc)$")
_AARCH64_RELOCATION = re.compile(r":\w+:[\w.$]+(?:[-+]\w+)*")
_AARCH64_LITERAL = re.compile(r"(?<= )=?([A-Za-z_.$][\w.$]*)(?:[-+]\w+)*$")


def _select_alias(text: str) -> str:
    select = _AARCH64_SELECT.fullmatch(text)
    if not select:
        return text
    kind, register, source, condition = select.groups()
    condition = _INVERSE.get(_CARRY.get(condition, condition), condition)
    if source in ("wzr", "xzr") and kind != "neg":
        return f"cset{'m' if kind == 'inv' else ''} {register}, {condition}"
    return f"c{kind} {register}, {source}, {condition}"


def _unscaled_alias(text: str) -> str:
    return _AARCH64_UNSCALED.sub(r"\1\2 ", text, count=1)  # the offset tells ldur from ldr


def _shift_alias(text: str) -> str:
    return _AARCH64_IMMEDIATE_SHIFT.sub(lambda match: str(int(match[1]) << 12), text)


@cache
def _aarch64_alias(mnemonic: str) -> Callable[[str], str] | None:
    """What brings an instruction's spellings together, for those instructions that have several."""
    if mnemonic in ("csinc", "csinv", "csneg"):
        return _select_alias
    if mnemonic in ("sxtl", "sxtl2", "uxtl", "uxtl2"):
        return lambda text: _AARCH64_WIDEN.sub(r"\1shll\2 \3, 0", text)
    if _AARCH64_UNSCALED.match(f"{mnemonic} "):
        return _unscaled_alias
    if mnemonic == "uxtw":
        return lambda text: _AARCH64_ZERO_EXTEND.sub(r"mov w\1, ", text)
    if mnemonic in ("tbz", "tbnz"):
        return lambda text: _AARCH64_TEST_BIT.sub(r"\1 w\2, \3,", text)
    if mnemonic in ("ins", "dup"):
        return lambda text: _AARCH64_ELEMENT.sub("mov ", text).removesuffix(", lsl 0")
    if mnemonic.startswith("mov"):
        return lambda text: text.removesuffix(", lsl 0")
    return _shift_alias if mnemonic.startswith(("add", "sub", "cm")) else None


def _listed(registers: re.Match[str]) -> str:
    first, kind, last = registers.groups()
    return "{" + ", ".join(f"v{number}{kind}" for number in range(int(first), int(last) + 1)) + "}"


@cache
def _aarch64_jump(mnemonic: str) -> str:
    """How a jump is called, `b.eq` for `beq`; empty for other instructions."""
    if branch := _AARCH64_BRANCH.fullmatch(mnemonic):
        return f"b.{_CARRY.get(branch[1], branch[1])}"
    return mnemonic if mnemonic in _AARCH64_JUMPS else ""


def _view_aarch64(text: str) -> Template:
    mnemonic, _, operands = text.partition(" ")
    if mnemonic == "bl":
        return Template(("bl CALL",))
    if ":" in text:
        text = _AARCH64_RELOCATION.sub("SYM", text)
    text = _decimal(text, 32 if operands.startswith("w") else 64)
    if alias := _aarch64_alias(mnemonic):
        text = alias(text)
    if "-" in text and "{" in text:
        text = _AARCH64_REGISTER_RANGE.sub(_listed, text)
    if jump := _aarch64_jump(mnemonic):
        head, _, target = text.rpartition(" ")
        return _branch(f"{jump}{head[len(mnemonic) :]}", target)
    if mnemonic == "adrp":
        return Template((text.partition(", ")[0] + ", SYM",))
    if mnemonic in ("mrs", "msr"):
        return Template((text.lower(),))
    if text.endswith((", cs", ", cc")):
        text = _AARCH64_CONDITION_OPERAND.sub(lambda match: f", {_CARRY[match[1]]}", text)
    if mnemonic in _AARCH64_TAKES_ADDRESS and "[" not in text:
        return gaps(text, _AARCH64_LITERAL, "SYM")
    return Template((text,))


_X86_SAME_CONDITION = {
    **{"z": "e", "nz": "ne", "c": "b", "nae": "b", "nc": "ae", "nb": "ae", "nbe": "a", "na": "be"},
    **{"nle": "g", "nl": "ge", "nge": "l", "ng": "le", "pe": "p", "po": "np"},
}
_X86_CALL = re.compile("call")
_X86_IS_PREFIX = re.compile(r"lock|rep\w*|notrack|bnd|data16|rex\w*")
_X86_NAME = re.compile(r"(?<![%\w.@{])[A-Za-z_.]")
_X86_PREFIX = re.compile(r"((?:(?:lock|rep\w*|notrack|bnd|data16|rex\w*) )*)(\S+) ?(.*)")
_X86_SPELLING = {"retq": "ret", "callq": "call", "jmpq": "jmp", "leaveq": "leave"} | {
    f"sal{size}": f"shl{size}" for size in ("", "b", "w", "l", "q")
}
_X86_SCANS = {"rep bsfl": "tzcntl", "rep bsfq": "tzcntq", "rep bsrl": "lzcntl", "rep bsrq": "lzcntq"}
_X86_STRING = re.compile(r"(?:movs|stos|lods|scas|cmps)[bwlq]")
_X86_SHIFT = re.compile(r"(?:sh[lr]|sar|ro[lr]|rc[lr])[bwlq]?")
_X86_IMMEDIATE = re.compile(r"\$(\d+)(?=,|$)")
_X86_BITS = {"b": 8, "w": 16, "l": 32}
# Immediates that may have the highest bit of so many.
_X86_LARGE = {
    bits: re.compile(rf"\$\d{{{digits}}}") for bits, digits in ((8, 3), (16, 5), (32, 10), (64, 19))
}
_X86_JUMP = re.compile(r"jmp|j[re]?cxz|loopn?e?|xbegin|j(?:[abgl]e?|[esop]|n[esop])")
_X86_CONDITIONAL = re.compile(r"(j|set|cmov)(pe|po|n?(?:[abgl]e?|[ezcsop]))")
_X86_SIZED_CMOV = re.compile(r"(cmov)(pe|po|n?(?:[abgl]e?|[ezcsop]))[wlq]")
_X86_SYMBOL = re.compile(r"(?<![%\w.@{])(?:-?\d+\+)?([A-Za-z_.][\w.$]*)(?:@\w+)?(?:[-+]\w+)*(?:@\w+)?")
_X86_DISPLACEMENT_0 = re.compile(r"(?<![\w.$+-])0(?=\()")
_X86_INTEGER_FROM_FLOAT = re.compile(r"(v?cvtt?s[sd]2u?si)[lq]")
_X86_FLOAT_FROM_INTEGER = re.compile(r"(v?cvtu?si2s[sd])[lq]")


class _X86Rule(NamedTuple):
    """What holds for all instructions of one mnemonic."""

    spelling: str
    """The disassembler's name: one of each pair of equal conditions, no size that a register gives."""
    register_spelling: str
    """The same where the first operand is a register."""
    role: str
    """`call`, `jump`, `string`, `shift` or empty."""
    bits: int


@cache
def _x86_rule(mnemonic: str) -> _X86Rule:
    spelling = _X86_SPELLING.get(mnemonic, mnemonic)
    if found := _X86_CONDITIONAL.fullmatch(mnemonic) or _X86_SIZED_CMOV.fullmatch(mnemonic):
        spelling = found[1] + _X86_SAME_CONDITION.get(found[2], found[2])
    elif found := _X86_INTEGER_FROM_FLOAT.fullmatch(mnemonic):
        spelling = found[1]
    from_register = _X86_FLOAT_FROM_INTEGER.fullmatch(mnemonic)
    patterns = {"jump": _X86_JUMP, "string": _X86_STRING, "shift": _X86_SHIFT, "call": _X86_CALL}
    role = next((role for role, pattern in patterns.items() if pattern.fullmatch(spelling)), "")
    return _X86Rule(
        spelling, from_register[1] if from_register else spelling, role, _X86_BITS.get(spelling[-1:], 64)
    )


def _x86_immediates(rule: _X86Rule, operands: str) -> str:
    """Immediates as signed numbers of the operation's width, since the bytes know no other; no shift by 1."""
    if rule.role == "shift" and operands.startswith("$1, ") and operands.count(",") == 1:
        return operands[4:]
    if not _X86_LARGE[rule.bits].search(operands):
        return operands
    return _X86_IMMEDIATE.sub(lambda match: f"${_signed(int(match[1]), rule.bits)}", operands)


def _view_x86_64(text: str) -> Template:
    mnemonic, _, operands = text.partition(" ")
    prefix = ""
    if _X86_IS_PREFIX.fullmatch(mnemonic):
        prefix, mnemonic, operands = _X86_PREFIX.fullmatch(text).groups()  # type: ignore[union-attr]
    rule = _x86_rule(mnemonic)
    head = prefix + (rule.register_spelling if operands.startswith("%") else rule.spelling)
    is_indirect = operands.startswith("*")
    if rule.role == "call" and not is_indirect:
        return Template((f"{head} CALL",))
    if rule.role == "jump" and not is_indirect:
        return _branch(head, operands)
    if not operands or (rule.role == "string" and "%xmm" not in operands):
        return Template((head,))
    head = _X86_SCANS.get(head, head)
    operands = _decimal(operands)
    if "$" in operands:
        operands = _x86_immediates(rule, operands)
    if "(" in operands:
        operands = _X86_DISPLACEMENT_0.sub("", operands).replace(",1)", ")")
    if not _X86_NAME.search(operands):
        return Template((f"{head} {operands}",))
    operand = gaps(operands, _X86_SYMBOL, "SYM")
    return operand._replace(pieces=(f"{head} {operand.pieces[0]}", *operand.pieces[1:]))


_RISCV_RELOCATION = re.compile(r"%\w+\([^()]*\)")
_RISCV_JUMP = re.compile(r"j|b(?:eq|ne|lt|ge|gt|le)(?:u|z)?")
_RISCV_ADDRESS = re.compile(r"(?<= )([A-Za-z_.][\w.$]*)(?:[-+]\w+)*$")
_RISCV_TAKES_ADDRESS = re.compile(r"l[lg]?a|l[bhwd]u?|fl[wd]")


@cache
def _riscv_role(mnemonic: str) -> str:
    if mnemonic in ("call", "tail"):
        return "call"
    if _RISCV_JUMP.fullmatch(mnemonic):
        return "jump"
    return "address" if _RISCV_TAKES_ADDRESS.fullmatch(mnemonic) else ""


def _view_riscv64(text: str) -> Template:
    mnemonic, _, operands = text.partition(" ")
    role = _riscv_role(mnemonic)
    if role == "call" or (mnemonic == "jal" and "," not in operands):
        return Template((f"{mnemonic} CALL",))
    if role == "jump":
        head, _, target = text.rpartition(" ")
        return _branch(head, target)
    if "%" in text:
        text = _RISCV_RELOCATION.sub("SYM", text)
    text = _decimal(text)
    return gaps(text, _RISCV_ADDRESS, "SYM") if role == "address" else Template((text,))


VIEW_TEMPLATES = {"aarch64": _view_aarch64, "x86_64": _view_x86_64, "riscv64": _view_riscv64}
"""For each ISA the function from an instruction to its template."""
