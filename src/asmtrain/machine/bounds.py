"""Where the functions of an ELF file are: from symbols, unwind tables, and else from the code itself.

In goes a file, out come its functions in the order of sections and addresses. The C library's start-up code,
stubs of the PLT, clones and `.cold` parts are left out. Invariant: functions do not overlap, so that together
they are no longer than the code.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from asmtrain.machine.discovery import discover
from asmtrain.machine.elf import FUNC, IFUNC, SHARED, SYMTAB, Elf, Section
from asmtrain.machine.frames import Frame, Place, frames
from corpus_builder.asm import origin

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
        "load_gp",
        "__libc_csu_init",
        "__libc_csu_fini",
    )
)
"""The C library's own functions in every linked file."""
_STUBS = (".plt", ".iplt", ".init", ".fini")
_RELATIVE_ADDRESS = {"x86_64": 2, "aarch64": 261, "riscv64": 57}
"""R_X86_64_PC32, R_AARCH64_PREL32, R_RISCV_32_PCREL: how an object's unwind table refers to code."""
_RISCV_ADD_32 = 35
_MOST_START_UP = 8
_DESCRIBED_SHARE = 0.5
"""Where symbols and unwind tables cover less of a stripped file's code, the rest is searched."""


class Function(NamedTuple):
    """Where a function is."""

    name: str
    section: Section
    address: int
    """In its section (object file), or in memory (linked)."""
    size: int


class _Claim(NamedTuple):
    """What is known of an address where a function begins."""

    size: int
    name: str
    """Empty for what is no function to be read: start-up code, clones, parts of functions."""


def functions(elf: Elf) -> list[Function]:
    """All functions of a file.

    Raises:
        Damaged: a table cannot be read.
    """
    code = {
        section.number: section
        for section in elf.sections
        if section.is_code and not section.name.startswith(_STUBS)
    }
    claims: dict[int, dict[int, _Claim]] = {index: {} for index in code}
    _claim_symbols(elf, claims)
    _claim_frames(elf, code, claims)
    has_names = any(section.kind == SYMTAB for section in elf.sections)
    if elf.is_linked and not has_names:
        pointers = _pointers(elf)
        if _share_described(code, claims) < _DESCRIBED_SHARE:
            _claim_code(elf, code, claims, {elf.entry, *pointers.values()})
        _disclaim_start_up(elf, claims, pointers)
    return list(_without_overlaps(elf, code, claims))


def _claim_symbols(elf: Elf, claims: dict[int, dict[int, _Claim]]) -> None:
    for symbol in elf.symbols:
        if symbol.kind in (FUNC, IFUNC) and symbol.section in claims:
            known = claims[symbol.section].get(symbol.value)
            # An alias has the address of another symbol; the first that names a function is kept.
            if known is None or not known.name or not known.size:
                name = elf.symbol_name(symbol)
                is_whole = origin(name) == name and name not in _START_UP
                claims[symbol.section][symbol.value] = _Claim(symbol.size, name if is_whole else "")


def _claim_frames(elf: Elf, code: dict[int, Section], claims: dict[int, dict[int, _Claim]]) -> None:
    by_address = sorted(code.values(), key=lambda section: section.address)
    starts = [section.address for section in by_address]
    for frame in _frames(elf):
        index = frame.section
        if elf.is_linked:
            at = bisect_right(starts, frame.address) - 1
            index = by_address[at].number if at >= 0 else -1
        if index in claims and frame.address not in claims[index]:
            is_start = elf.is_linked and frame.address == elf.entry != 0
            is_function = frame.is_entered_whole and not is_start
            name = f"sub_{frame.address:x}" if is_function else ""
            claims[index][frame.address] = _Claim(frame.size, name)


def _frames(elf: Elf) -> list[Frame]:
    section = elf.named(".eh_frame")
    if section is None:
        return []
    starts: dict[int, Place] = {}
    lengths: dict[int, int] = {}
    if not elf.is_linked:
        for entry in elf.relocations(section.number):
            if entry.symbol < len(elf.symbols):
                symbol = elf.symbols[entry.symbol]
                value = symbol.value + entry.addend
                if entry.kind == _RELATIVE_ADDRESS[elf.isa]:
                    starts[entry.offset] = Place(symbol.section, value)
                elif elf.isa == "riscv64":
                    sign = 1 if entry.kind == _RISCV_ADD_32 else -1
                    lengths[entry.offset] = lengths.get(entry.offset, 0) + sign * value
    return frames(elf.data(section), section.address, starts=starts, lengths=lengths)


def _share_described(code: dict[int, Section], claims: dict[int, dict[int, _Claim]]) -> float:
    described = sum(claim.size for known in claims.values() for claim in known.values())
    return described / max(1, sum(section.size for section in code.values()))


def _claim_code(
    elf: Elf, code: dict[int, Section], claims: dict[int, dict[int, _Claim]], hints: set[int]
) -> None:
    """Add what the code itself shows."""
    for index, section in code.items():
        known = {address: claim.size for address, claim in claims[index].items()}
        found = discover(elf.data(section), section.address, elf.isa, known=known, hints=hints)
        for address, size in found.items():
            if address not in known:
                claims[index][address] = _Claim(size, f"sub_{address:x}")


def _pointers(elf: Elf) -> dict[int, int]:
    """Addresses that the loader adds its base to, and what they hold; constructors, where it adds none."""
    found = {}
    if elf.kind == SHARED:
        relative = {"x86_64": 8, "aarch64": 1027, "riscv64": 3}[elf.isa]
        for entry in elf.relocations(0):
            if entry.kind == relative:
                found[entry.offset] = entry.addend
    else:
        for section in elf.sections:
            if section.name in (".init_array", ".fini_array"):
                data = elf.data(section)
                for at in range(0, len(data) - 7, 8):
                    found[section.address + at] = int.from_bytes(data[at : at + 8], "little")
    return found


def _disclaim_start_up(elf: Elf, claims: dict[int, dict[int, _Claim]], pointers: Mapping[int, int]) -> None:
    """Take out crt1.o and crtbegin.o: from the entry, or two before the first hook, to the last hook.

    Linkers put these files first; their hooks are the first constructor and the first destructor.
    """
    arrays = [section for section in elf.sections if section.name in (".init_array", ".fini_array")]
    hooks = {pointers.get(array.address, 0) for array in arrays}
    for known in claims.values():
        order = sorted(known)
        places = [place for place, address in enumerate(order) if address in hooks]
        own = [elf.entry] if elf.entry in known else []
        if places:
            first = order.index(elf.entry) if own else max(0, places[0] - 2)
            if 0 <= places[-1] - first <= _MOST_START_UP:
                own += order[first : places[-1] + 1]
        for address in own:
            known[address] = known[address]._replace(name="")


def _without_overlaps(
    elf: Elf, code: dict[int, Section], claims: dict[int, dict[int, _Claim]]
) -> Iterator[Function]:
    """Functions that lie whole in their section, each cut where the next begins."""
    for index in sorted(claims):
        section = code[index]
        low, high = section.address, section.address + section.size
        order = [address for address in sorted(claims[index]) if low <= address < high]
        for address, following in pairwise([*order, high]):
            claim = claims[index][address]
            size = min(claim.size, following - address)
            if claim.name and size > 0:
                yield Function(claim.name, section, address, size)
