"""Assembler lines to statements: labels, instructions, the directives that code depends on, section changes.

In goes raw text of gcc, clang or a disassembler, or text that `asm.clean` wrote; out come pairs of kind and
text, in one spelling. What neither adds code nor changes how code is read is dropped here: unwind and debug
information, alignment, symbol types and sizes, comments.

Invariant: the spelling of what comes out reads back as itself. Cost: regular expressions only for lines of
an odd shape; `asm` remembers what each line gave.
"""

import re
from collections.abc import Callable, Iterable
from itertools import count

LABEL, INSTRUCTION, DIRECTIVE, SECTION = range(4)

Statement = tuple[int, str]
"""Kind and text: a label's name, an instruction or directive in canonical spacing, a section directive."""

HOME = ""
"""The section that a function begins in, whatever its name."""

_KEPT = frozenset(
    f".{name}"
    for names in (
        # Data between instructions, which inline assembly and TLS sequences use for machine code.
        "byte 2byte 4byte 8byte half hword short value word long int quad xword dword octa ascii asciz",
        "string float single double zero skip space fill nop nops inst insn uleb128 sleb128 incbin org",
        # How instructions are read, and what they may use.
        "arch arch_extension cpu option code16 code32 code64 intel_syntax att_syntax intel_mnemonic",
        "att_mnemonic",
        # Symbols and relocations.
        "set equ equiv eqv globl global weak weakref local reloc tlsdesccall tlsdescadd tlsdescldr ltorg",
        "pool unreq",
        # Text made by the assembler.
        "macro endm purgem exitm altmacro noaltmacro rept irp irpc endr if ifdef ifndef ifnotdef ifb ifnb",
        "ifc ifnc ifeq ifne ifge ifgt ifle iflt ifeqs ifnes else elseif endif",
    )
    for name in names.split()
)
_REPEATING = (".macro ", ".rept ", ".irp ", ".irpc ")
_SECTIONS = frozenset(
    (
        ".text",
        ".data",
        ".bss",
        ".rodata",
        ".section",
        ".pushsection",
        ".popsection",
        ".previous",
        ".subsection",
    )
)

_BLOCK_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/', re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_NUMBERED_STRING = re.compile(r'"(\d{1,9})"', re.ASCII)
_CHARACTER = re.compile(r"'(?:(\\.)|([^\\']))'?")
_LINE_COMMENT = {
    "aarch64": re.compile(r"//.*|^\s*#.*"),
    "x86_64": re.compile(r"#.*|^\s*/.*"),
    "riscv64": re.compile(r"#.*"),
}
_X86_PREFIX_ALONE = re.compile(r"\b(lock|rep\w*)\s*;")
_PLAIN = {
    isa: re.compile(rf"\t([a-z][\w.]*)(?:[\t ]([^\s\"'=:;/#][^\"';/\t{comment}]*))?")
    for isa, comment in (("aarch64", ""), ("x86_64", "#"), ("riscv64", "#"))
}
_ASSIGNMENT = re.compile(r"([\w.$]+)\s*(==?)\s*(?!=)(.*)")
_COMMA_IN_ADDRESS = re.compile(r", (?=[^()]*\))")
_BRACKET_SPACE = re.compile(r"(?<=[\[({]) | (?=[\])}])")
_LABEL_DEFINITION = re.compile(r'\s*(?:([\w.$]+)|("[^"]*"))\s*:(?!:)\s*')
_NUMBERED_REFERENCE = re.compile(r"(?<![\w.%])(?<![\w.]\$)(\d+)([bf])(?![\w.$])")


def without_block_comments(text: str) -> str:
    """The text with a space for each `/* .. */`."""
    if "/*" not in text:
        return text
    return _BLOCK_COMMENT.sub(lambda match: match[0] if match[0][0] == '"' else " ", text)


def plain_instruction(line: str, isa: str) -> str:
    """The instruction of a line that holds one and nothing else; empty for any other line."""
    plain = _PLAIN[isa].fullmatch(line)
    return _spaced(plain[1], plain[2] or "", isa) if plain else ""


def parse_line(line: str, isa: str) -> tuple[Statement, ...]:
    """The statements of one line without block comments."""
    if plain := plain_instruction(line, isa):
        return ((INSTRUCTION, plain),)
    strings: list[str] = []
    if '"' in line:
        # Nothing in a string may look like the end of a statement or a comment.
        strings = [match[0] for match in _STRING.finditer(line)]
        numbers = count()
        line = _STRING.sub(lambda match: f'"{next(numbers)}"', line)
    if "'" in line:
        line = _CHARACTER.sub(_code_point, line)
    line = _LINE_COMMENT[isa].sub("", line)
    if isa == "x86_64" and ";" in line:
        line = _X86_PREFIX_ALONE.sub(r"\1 ", line)  # a prefix belongs to what follows
    found: list[Statement] = []
    for part in line.split(";"):
        while label := _LABEL_DEFINITION.match(part):
            found.append((LABEL, label[1] or _restored(label[2], strings)[1:-1]))
            part = part[label.end() :]
        found += _parse_statement(part.strip(), isa, strings)
    return tuple(found)


def _code_point(character: re.Match[str]) -> str:
    """A character constant as a number, since `';'` ends no statement; unreadable ones as they are."""
    escaped, plain = character.groups()
    if plain:
        return str(ord(plain)) if plain.isascii() else character[0]
    codes = {"n": 10, "t": 9, "r": 13, "b": 8, "f": 12, "\\": 92, "'": 39, '"': 34}
    return str(codes[escaped[1]]) if escaped[1] in codes else character[0]


def _restored(text: str, strings: list[str]) -> str:
    def string(match: re.Match[str]) -> str:
        return strings[int(match[1])] if int(match[1]) < len(strings) else match[0]

    return _NUMBERED_STRING.sub(string, text) if strings else text


def _parse_statement(text: str, isa: str, strings: list[str]) -> Iterable[Statement]:
    if not text:
        return ()
    if assignment := _ASSIGNMENT.match(text):
        symbol, equals, value = assignment.groups()
        directive = ".org" if symbol == "." else f"{'.set' if equals == '=' else '.eqv'} {symbol},"
        return ((DIRECTIVE, _restored(f"{directive} {_commas(value)}", strings)),)
    mnemonic, _, operands = " ".join(text.split()).partition(" ")
    if text[0] != ".":
        return ((INSTRUCTION, _restored(_spaced(mnemonic, operands, isa), strings)),)
    directive = mnemonic.lower()
    if directive in _SECTIONS or directive in _KEPT:
        kind = SECTION if directive in _SECTIONS else DIRECTIVE
        return ((kind, _restored(f"{directive} {_commas(operands)}".rstrip(), strings)),)
    return ()


def _commas(operands: str) -> str:
    return operands.replace(" ,", ",").replace(", ", ",").replace(",", ", ")


def _spaced(mnemonic: str, operands: str, isa: str) -> str:
    """An instruction with one spacing: `add x0, x1, x2, lsl 3`, `movl 8(%rax,%rdx,4), %eax`."""
    if "  " in operands or operands[-1:] == " ":
        operands = " ".join(operands.split())
    operands = _commas(operands)
    if operands.count(" ") != operands.count(", "):
        operands = _BRACKET_SPACE.sub("", operands)
    if isa == "aarch64":
        operands = operands.replace("#", "")
    elif isa == "x86_64" and "(" in operands:
        operands = _COMMA_IN_ADDRESS.sub(",", operands)
    return f"{mnemonic.lower()} {operands}".rstrip()


def resolve_numbers(statements: list[Statement]) -> list[Statement]:
    """Give the labels `1:` of inline assembly, which may be defined again and again, names of their own.

    Where the assembler repeats text, they are left as they are, since each copy defines them anew.
    """
    if any(kind == DIRECTIVE and value.startswith(_REPEATING) for kind, value in statements):
        return statements
    places: dict[str, list[int]] = {}
    for index, (kind, value) in enumerate(statements):
        if kind == LABEL and value.isdigit():
            places.setdefault(value, []).append(index)

    def name_at(index: int) -> Callable[[re.Match[str]], str]:
        def name(match: re.Match[str]) -> str:
            number, direction = match.groups()
            before = [place for place in places.get(number, ()) if place < index]
            after = [place for place in places.get(number, ()) if place > index]
            if direction == "b":
                return f".Lnumber${before[-1]}" if before else match[0]
            return f".Lnumber${after[0]}" if after else match[0]

        return name

    resolved = []
    for index, (kind, value) in enumerate(statements):
        if kind == LABEL:
            resolved.append((kind, f".Lnumber${index}" if value.isdigit() else value))
        else:
            resolved.append((kind, _NUMBERED_REFERENCE.sub(name_at(index), value)))
    return resolved


# Sections.

_NAME = re.compile(r'\.(?:push)?section\s+"?([^\s,"]+)"?(?:, \d+)?(?:, "([^"]*)")?')
_DATA_SECTION = re.compile(
    r"\.(?:s?rodata|t?data|s?data|[ts]?bss|debug|note|comment|eh_frame|gcc_except_table|init_array|fini_array)"
)

Section = tuple[str, bool]
"""The directive that leads to it from `.text`, and whether it holds code."""


class Sections:
    """Where the assembler is: follows section directives, with its stack and `.previous`."""

    def __init__(self, home: str = ".text") -> None:
        """Begin in the function's own section, which `home` also leads to."""
        self.current: Section = (HOME, True)
        self._before: Section = (HOME, True)
        self._stack: list[tuple[Section, Section]] = []
        self._home = home

    def follow(self, directive: str) -> None:
        """Take one `SECTION` statement."""
        name, _, rest = directive.partition(" ")
        if name == ".popsection":
            self.current, self._before = self._stack.pop() if self._stack else ((HOME, True), self._before)
        elif name == ".previous":
            self.current, self._before = self._before, self.current
        else:
            if name == ".pushsection":
                self._stack.append((self.current, self._before))
            self._before, self.current = self.current, self._section(directive, name, rest)

    def _section(self, directive: str, name: str, rest: str) -> Section:
        if name == ".subsection":
            return (HOME, True) if rest == "0" else (f".subsection {rest}", self.current[1])
        if name == ".text":
            leads, is_code = directive.removesuffix(" 0"), True
        elif section := _NAME.match(directive):
            leads, is_code = _leading_to(*section.groups())
        else:
            leads, is_code = name, False
        return (HOME, True) if leads == self._home else (leads, is_code)


def _leading_to(name: str, flags: str | None) -> Section:
    is_code = "x" in flags if flags is not None else not _DATA_SECTION.match(name)
    if name.startswith(".text.unlikely"):
        return ".section .text.unlikely", is_code
    if name == ".text" or name.startswith(".text."):
        return (f".section {name}" if name != ".text" else name), is_code
    return f'.section {name}, "ax"', is_code


def home_of(statements: Iterable[Statement], text: str) -> str:
    """What leads to the section that a function begins in: the one where its `.size` stands, else `.text`."""
    sections = Sections("")
    for kind, value in statements:
        if kind == SECTION:
            sections.follow(value)
    leads, is_code = sections.current
    return leads if is_code and leads != HOME and "\t.size\t" in text else ".text"
