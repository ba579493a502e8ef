"""Function bounds from `.eh_frame`, which stripping leaves where it is.

In goes the section, out come ranges. Compilers describe every function there for unwinding, on x86-64 and
AArch64 by default; the format is DWARF's with the changes of the LSB (Linux Standard Base, chapter 10.6).
Cost: one pass; a record is a few integers.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

_SIZES = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}
"""Bytes of a pointer by the low half of its encoding: absptr, udata2.. and sdata2.."""
_RELATIVE = 0x10


class Frame(NamedTuple):
    """What one record (FDE) describes."""

    section: int
    """Where it lies, in an object file; 0 where linked."""
    address: int
    size: int
    is_entered_whole: bool
    """Whether it begins as a function does, with nothing pushed; a `.cold` part takes over its function's
    frame, and `_start` declares that nothing called it."""


class Place(NamedTuple):
    """What a relocation of the section writes."""

    section: int
    value: int


class _Common(NamedTuple):
    """What records share (CIE)."""

    encoding: int
    is_augmented: bool


def frames(
    data: bytes, address: int, *, starts: Mapping[int, Place], lengths: Mapping[int, int]
) -> list[Frame]:
    """All records, in the section's order; what is damaged ends them.

    Args:
        data: the section.
        address: where it is loaded.
        starts: by offset, what relocations of an object file write there.
        lengths: the same for differences of two symbols, which RISC-V writes as lengths.
    """
    commons: dict[int, _Common | None] = {}
    found = []
    at = 0
    while at + 8 <= len(data):
        length, pointer = struct.unpack_from("<II", data, at)
        if length == 0 or length == 0xFFFFFFFF:  # the end; records of 4 GiB are nobody's
            if length:
                break
            at += 4  # linked files have zeros between those of two inputs
            continue
        end = min(at + 4 + length, len(data))
        if pointer == 0:
            commons[at] = _common(data, at + 8, end)
        elif (common := commons.get(at + 4 - pointer)) is not None:
            frame = _frame(data, at + 8, end, common, address, starts, lengths)
            if frame is not None:
                found.append(frame)
        at = end
    return found


def _common(data: bytes, at: int, end: int) -> _Common | None:
    """How records with this CIE write addresses; none if in a way that is not known."""
    zero = data.find(b"\0", at + 1, end)
    if zero < 0:
        return None
    augmentation = data[at + 1 : zero]
    if not augmentation:
        return _Common(0, False)
    if augmentation[:1] != b"z":
        return None
    version = data[at]
    at = _past_leb128(data, _past_leb128(data, zero + 1, end), end)  # code and data alignment
    at = at + 1 if version == 1 else _past_leb128(data, at, end)  # return address register
    at = _past_leb128(data, at, end)  # length of what follows
    encoding = 0
    for letter in augmentation[1:]:
        if at >= end:
            return None
        if letter == ord("R"):
            encoding = data[at]
            at += 1
        elif letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            at += 1 + _SIZES.get(data[at] & 15, 8)
    return _Common(encoding, True)


def _past_leb128(data: bytes, at: int, end: int) -> int:
    while at < end and data[at] & 0x80:
        at += 1
    return at + 1


def _frame(
    data: bytes,
    at: int,
    end: int,
    common: _Common,
    address: int,
    starts: Mapping[int, Place],
    lengths: Mapping[int, int],
) -> Frame | None:
    size = _SIZES.get(common.encoding & 15)
    if size is None or common.encoding & 0x60 or at + 2 * size > end:
        return None
    signed = bool(common.encoding & 8)
    begin = int.from_bytes(data[at : at + size], "little", signed=signed)
    if common.encoding & _RELATIVE:
        begin += address + at
    length = lengths.get(at + size, int.from_bytes(data[at + size : at + 2 * size], "little"))
    place = starts.get(at, Place(0, begin & (1 << 64) - 1))
    after = at + 2 * size
    if common.is_augmented:
        # The augmentation is a byte long, and holds at most a pointer to exception tables.
        after += 1 + (data[after] if after < end else 0)
    return Frame(place.section, place.value, length, _begins_a_function(data[after:end]))


_ADVANCES = frozenset((1, 2, 3, 4))
_NOP, _PAC = 0, 0x2D


def _begins_a_function(rules: bytes) -> bool:
    """Whether the rules of the first instruction are those of every function's entry."""
    first = next((code for code in rules if code != _NOP), None)
    return first is None or first >> 6 == 1 or first in _ADVANCES or first == _PAC
