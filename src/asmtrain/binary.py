"""Functions of a file to be embedded or searched: assembler text, an object file, or a linked binary.

In goes a path; out come functions as `corpus_builder.asm.view` shows them, so that a function reads the same
whether its compiler's text or its machine code was given. Machine code is disassembled by capstone; labels
are put where jumps go, and relocations turn back into the symbols that the compiler wrote, before the text
meets the same `view`. `tests/train/test_binary.py` holds the share of functions that agree.

Cost: about 100,000 instructions a second on one core; capstone's per-operand details, ten times slower, are
asked for relocated instructions only.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from asmtrain.errors import BinaryError
from corpus_builder import asm

_MACHINES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64"}
_START_UP = frozenset(
    (
        "_start",
        "_init",
        "_fini",
        "_dl_relocate_static_pie",
        "__do_global_dtors_aux",
        "frame_dummy",
        "register_tm_clones",
        "deregister_tm_clones",
        "call_weak_fn",
        "__libc_csu_init",
        "__libc_csu_fini",
    )
)
"""The C library's own functions in every linked file."""
_SYMBOL = "SYM"
"""Stands for every symbol: `view` hides their names in any case."""


@dataclass(frozen=True)
class BinaryFunction:
    """One function of a file."""

    name: str
    isa: str
    view: str
    """Its instructions as a stripped binary shows them (`corpus_builder.asm.view`)."""


class Relocation(NamedTuple):
    """What the linker is to write into an instruction."""

    kind: int
    """Type number of the ELF machine."""
    target: int | None
    """Address in the same section, where the symbol lies there; None elsewhere."""


class Instruction(NamedTuple):
    """One decoded instruction, in capstone's spelling."""

    address: int
    size: int
    mnemonic: str
    operands: str


def functions_in(path: Path, *, isa: str = "") -> list[BinaryFunction]:
    """The functions of a `.s`, `.o`, shared library or executable, in the file's order.

    Args:
        path: the file; ELF is recognised by its first bytes, anything else is read as assembler text.
        isa: of assembler text; guessed from the registers without it.

    Raises:
        BinaryError: the file cannot be read, holds no function, or is of another architecture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BinaryError(f"cannot read {path}: {error.strerror}", remedy="check the path") from None
    if content.startswith(b"\x7fELF"):
        functions = _elf_functions(path)
    else:
        functions = _text_functions(path, content, isa)
    if not functions:
        raise BinaryError(
            f"{path} holds no function",
            remedy="give assembler text with .type lines (gcc -S), or an ELF file that is not stripped",
        )
    return functions


# Assembler text.

_REGISTERS = {
    "aarch64": re.compile(r"(?<![\w.%])(?:[wx]\d\d?|[wx]zr)\b"),
    "x86_64": re.compile(r"%(?:r[a-ds][xip]|r[sb]p|e[a-ds][xip]|r\d\d?|xmm\d)"),
    "riscv64": re.compile(r"(?<![\w.%])(?:ra|s0|a[0-7]),"),
}


def _text_functions(path: Path, content: bytes, isa: str) -> list[BinaryFunction]:
    if b"\0" in content:
        raise BinaryError(
            f"{path} is neither an ELF file nor assembler text", remedy="give a .s, .o, .so or executable"
        )
    text = content.decode("utf-8", "replace")
    isa = isa or _guess_isa(path, text)
    raw = asm.split_functions(text)
    if not raw and asm.num_instructions(asm.clean(text, isa)):
        raw = {path.stem: text}  # one bare function, such as a `.s` member of a shard cleaned by hand
    return [BinaryFunction(name, isa, asm.view(body, isa)) for name, body in raw.items()]


def _guess_isa(path: Path, text: str) -> str:
    hits = {isa: len(pattern.findall(text)) for isa, pattern in _REGISTERS.items()}
    best = max(hits, key=lambda isa: hits[isa])
    if not hits[best]:
        raise BinaryError(
            f"{path} is not assembler text of {', '.join(hits)}: it names none of their registers",
            remedy="give the output of gcc -S or clang -S (AT&T syntax for x86-64)",
        )
    return best


# ELF.


def _elf_functions(path: Path) -> list[BinaryFunction]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            isa = _MACHINES.get(elf["e_machine"])
            if isa is None or elf.elfclass != 64 or not elf.little_endian:
                raise BinaryError(
                    f"{path} is for {elf['e_machine']}, {elf.elfclass} bits",
                    remedy=f"give a 64-bit little-endian file for {' or '.join(_MACHINES.values())}",
                )
            return [
                BinaryFunction(name, isa, asm.view(text, isa)) for name, text in _elf_texts(elf, isa).items()
            ]
    except (
        ELFError,
        UnicodeDecodeError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
    ) as error:
        # A damaged table leads pyelftools astray in many ways; the file is at fault in all of them.
        raise BinaryError(
            f"{path} is a damaged ELF file: {error or type(error).__name__}", remedy="build it again"
        ) from None


def _elf_texts(elf: Any, isa: str) -> dict[str, str]:
    """Function name to assembler text, in the order of sections and addresses."""
    by_section: dict[int, dict[int, tuple[str, int]]] = {}
    for symbol in _symbols(elf):
        where, name = symbol["st_shndx"], symbol.name
        is_function = symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"] > 0
        if is_function and isinstance(where, int) and asm.origin(name) == name and name not in _START_UP:
            # An alias has the address of another symbol; the first of them is kept.
            by_section.setdefault(where, {}).setdefault(symbol["st_value"], (name, symbol["st_size"]))
    is_linked = elf["e_type"] != "ET_REL"
    texts = {}
    for where, functions in sorted(by_section.items()):
        section = elf.get_section(where)
        if not section["sh_flags"] & 0x4 or section["sh_type"] != "SHT_PROGBITS":  # 4: executable
            continue
        code, base = section.data(), section["sh_addr"]
        relocations = {} if is_linked else _relocations(elf, where)
        for address, (name, size) in sorted(functions.items()):
            machine_code = code[address - base : address - base + size]
            texts[name] = function_text(
                machine_code, address, isa, relocations=relocations, is_linked=is_linked
            )
    return texts


def _symbols(elf: Any) -> list[Any]:
    for name in (".symtab", ".dynsym"):
        table = elf.get_section_by_name(name)
        if table is not None:
            return list(table.iter_symbols())
    return []


def _relocations(elf: Any, where: int) -> dict[int, Relocation]:
    """The relocations of one section of an object file, by the offset they change."""
    found = {}
    for section in elf.iter_sections("SHT_RELA"):
        if section["sh_info"] != where:
            continue
        symbols = elf.get_section(section["sh_link"])
        for entry in section.iter_relocations():
            symbol = symbols.get_symbol(entry["r_info_sym"])
            is_here = symbol["st_shndx"] == where
            target = symbol["st_value"] + entry["r_addend"] if is_here else None
            found[entry["r_offset"]] = Relocation(entry["r_info_type"], target)
    return found


def function_text(
    code: bytes, address: int, isa: str, *, relocations: dict[int, Relocation], is_linked: bool
) -> str:
    """Disassemble one function into text that `asm.view` reads like a compiler's.

    Args:
        code: its bytes.
        address: where they lie in their section (object file) or in memory (linked).
        isa: `aarch64` or `x86_64`.
        relocations: of its section, by offset; empty for a linked file.
        is_linked: addresses are final, so that page addresses stand for symbols.
    """
    end = address + len(code)
    instructions = list(_disassemble(code, address, isa))
    if isa == "aarch64":
        written = _written_aarch64(instructions, relocations, is_linked=is_linked)
    else:
        written = _written_x86_64(instructions, relocations, code, address)
    lines: list[tuple[int, str]] = []
    labels: set[int] = set()
    for instruction, (text, target) in zip(instructions, written, strict=True):
        if _PADDING.match(text):
            text, target = "", None  # the label stays
        if target is not None and address <= target < end:
            labels.add(target)
            text += f".L{target}"
        elif target is not None:
            text += _SYMBOL
        lines.append((instruction.address, text))
    return "".join(f".L{at}:\n\t{text}\n" if at in labels else f"\t{text}\n" for at, text in lines)


_PADDING = re.compile(r"(?:data16 |cs )*nop|xchgw %ax, %ax")
"""What assemblers align loops with; compilers never wrote it."""

Written = tuple[str, int | None]
"""An instruction's text, and the address of the label that it ends with; None where it is whole."""


@cache
def _disassembler(isa: str, *, detail: bool) -> Any:
    import capstone

    if isa == "aarch64":
        engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    else:
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    engine.detail = detail
    engine.skipdata = not detail  # bytes that are no instruction become .byte, which `view` passes over
    return engine


def _disassemble(code: bytes, address: int, isa: str) -> Iterator[Instruction]:
    for item in _disassembler(isa, detail=False).disasm_lite(code, address):
        yield Instruction(*item)


_AARCH64_JUMP = re.compile(r"b|bl|b\.\w+|cbn?z|tbn?z|adr")
_AARCH64_BASE = re.compile(r"\[(x\d+|sp)(?:, #-?\w+)?\]")
_AARCH64_WRAPPED = re.compile(r"#0x(f[0-9a-f]{15})\b")
"""A negative number as capstone prints some of them."""


def _written_aarch64(
    instructions: Iterable[Instruction], relocations: dict[int, Relocation], *, is_linked: bool
) -> Iterator[Written]:
    pages: set[str] = set()  # registers that hold a symbol's page, in a linked file
    for at, _, mnemonic, operands in instructions:
        operands = _AARCH64_WRAPPED.sub(lambda match: f"#{int(match[1], 16) - (1 << 64)}", operands)
        relocation = relocations.get(at)
        is_jump = bool(_AARCH64_JUMP.fullmatch(mnemonic))
        if is_jump or (mnemonic in ("ldr", "ldrsw") and "[" not in operands):
            head, _, last = f"{mnemonic} {operands}".rpartition(" ")
            target = relocation.target if relocation else int(last.removeprefix("#"), 0)
            yield (f"{head} ", -1 if target is None else target)
        elif mnemonic == "adrp":
            register = operands.partition(",")[0]
            pages.add(register)
            yield f"adrp {register}, {_SYMBOL}", None
        elif (relocation and not _is_call_marker(relocation)) or (
            is_linked and _uses_page(mnemonic, operands, pages)
        ):
            yield f"{mnemonic} {_low_12_bits(operands)}", None
        else:
            yield f"{mnemonic} {operands}", None
        destination = operands.partition(",")[0]
        if mnemonic != "adrp" and not mnemonic.startswith(("st", "cmp", "tst")):
            pages.discard(destination)


def _is_call_marker(relocation: Relocation) -> bool:
    return relocation.kind == 569  # R_AARCH64_TLSDESC_CALL changes nothing


def _uses_page(mnemonic: str, operands: str, pages: set[str]) -> bool:
    base = _AARCH64_BASE.search(operands)
    if base:
        return base[1] in pages
    parts = operands.split(", ")
    return mnemonic == "add" and len(parts) == 3 and parts[1] in pages and parts[2].startswith("#")


def _low_12_bits(operands: str) -> str:
    """The operands with the symbol in place of the offset: `x0, [x0, :lo12:SYM]`, `x0, x0, :lo12:SYM`."""
    reference = f":lo12:{_SYMBOL}"
    if "[" in operands:
        return _AARCH64_BASE.sub(lambda base: f"[{base[1]}, {reference}]", operands)
    head, comma, shift = operands.partition(", lsl")
    return f"{head.rpartition(', ')[0]}, {reference}{comma}{shift}"


_X86_JUMP = re.compile(r"(?:\w+ )*(?:callq?|jmpq?|j[a-z]{1,4}|loopn?e?|xbegin)")
_X86_RIP = re.compile(r"[-\w]*\(%rip\)")
_X86_IMMEDIATE = re.compile(r"\$-?\w+")
_X86_MEMORY = re.compile(r"(?<![$\w%])-?(?:0x[0-9a-f]+|\d+)?(?=\()|(?<![$\w%(])(?:0x[0-9a-f]+|\d+)(?![\w)(])")
_R_X86_64_PC_RELATIVE = frozenset(
    (2, 4, 9, 22, 41, 42)
)  # PC32 PLT32 GOTPCREL GOTTPOFF GOTPCRELX REX_GOTPCRELX


def _written_x86_64(
    instructions: Iterable[Instruction], relocations: dict[int, Relocation], code: bytes, address: int
) -> Iterator[Written]:
    for instruction in instructions:
        at, size, mnemonic, operands = instruction
        inside = [offset for offset in range(at + 1, at + size) if offset in relocations]
        if _X86_JUMP.fullmatch(mnemonic) and not operands.startswith("*"):
            target: int | None = int(operands, 0)
            for offset in inside:
                target = _displaced(relocations[offset], offset, at + size)
            yield (f"{mnemonic} ", -1 if target is None else target)
            continue
        if inside:
            operands = _with_symbols(instruction, inside, code[at - address :][:size])
        yield f"{mnemonic} {_X86_RIP.sub(f'{_SYMBOL}(%rip)', operands)}", None


def _displaced(relocation: Relocation, offset: int, next_address: int) -> int | None:
    """Where a relocated PC-relative operand points: its addend counts from the operand, not from the end."""
    if relocation.target is None:
        return None
    return relocation.target + (next_address - offset if relocation.kind in _R_X86_64_PC_RELATIVE else 0)


def _with_symbols(instruction: Instruction, inside: list[int], code: bytes) -> str:
    """The operands with symbols in place of what the linker is to fill in."""
    detail = next(_disassembler("x86_64", detail=True).disasm(code, instruction.address, 1), None)
    operands = instruction.operands
    for offset in inside:
        if detail is not None and detail.imm_offset == offset - instruction.address:
            operands = _X86_IMMEDIATE.sub(f"${_SYMBOL}", operands, count=1)
        elif "(%rip)" not in operands:
            operands = _X86_MEMORY.sub(_SYMBOL, operands, count=1)
    return operands
