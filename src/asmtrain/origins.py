"""Where values come from: what a register or a place of the frame holds, told by the function's parameters.

In: micro-operations in the order of the text. Out: words, of what is read, written, compared, computed and
handed on, by paths that compilers keep however they assign registers:

    p1  p1.8  p1.8[]        the second parameter; what is at offset 8 of it; an element of that
    c  g  f                 what a call gave back; a symbol; something in the frame
    p1@8  ldp1@8.4          what is read or written through a path: offset; with direction and width
    p1@8=c  p1@8=#0         what is stored there
    cmp p1#5  add p1.8#1    what is done with it
    arg0=p1  arg0=p1,#5     what is handed to a call; with what the next argument is
    ret=c  params=2         what is given back; how many parameters are worked with

The text is followed line by line: a label behind a jump takes what was known where it was first jumped to,
and any other goes on from the line before. No fixed point: a wrong path is one odd word among many.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from asmtrain.lifting import Micro, Reader

_LONGEST_PATH = 20
"""Characters; longer paths are not followed."""

_MOST_PLACES, _MOST_LABELS = 512, 1024
"""That are followed at a time: what is known is copied at every jump to a label that is still to come."""

Place: TypeAlias = "str | tuple[str, int]"
"""A register, or a base register of the frame and an offset."""


class Origin(NamedTuple):
    """A path, and what was added to it."""

    path: str
    added: int = 0

    def __str__(self) -> str:
        return f"{self.path}+{self.added}" if self.added else self.path


_ADDRESSES = {"frame": Origin("f"), "symbol": Origin("g")}


class Origins:
    """What is known at a line."""

    def __init__(self, reader: Reader) -> None:
        self.num_parameters = 0
        """Up to the last one that is compared, computed with or read through: more than handed on."""
        self._reader = reader
        self._held: dict[Place, Origin] = {name: Origin(f"p{at}") for at, name in enumerate(reader.arguments)}
        self._at_label: dict[str, dict[Place, Origin]] = {}

    def jump(self, label: str) -> None:
        """A line may go on at a label further down."""
        if label not in self._at_label and len(self._at_label) < _MOST_LABELS:
            self._at_label[label] = dict(self._held)

    def arrive(self, label: str, *, falls_through: bool) -> None:
        """A label begins; `falls_through` says whether the line before may go on here."""
        known = self._at_label.pop(label, None)
        if known is not None and not falls_through:
            self._held = known

    def follow(self, micro: Micro, constants: Mapping[str, int]) -> list[str]:
        """What a micro-operation does with what is known; notes what it leaves."""
        if micro.op == "call":
            return self._call(constants)
        if micro.op in ("ld", "st"):
            return self._access(micro, constants)
        if micro.op in _ADDRESSES:
            self._put(micro.dest, _ADDRESSES[micro.op])
            return []
        held = [self._held[source] for source in micro.sources if source in self._held]
        words = self._done(micro, held, constants) if held and micro.op != "mov" else []
        self._put(micro.dest, _result(micro, held) if held else None)
        return words

    def leave(self, constants: Mapping[str, int]) -> list[str]:
        """What a return gives back; the first parameter is what most functions have only left there."""
        value = self._told(self._reader.result, constants)
        return [] if value in (None, "p0") else [f"ret={value}"]

    def _put(self, place: Place, origin: Origin | None) -> None:
        if not place:
            return  # a store, or a load into a register that stays zero
        if origin is None or len(origin.path) > _LONGEST_PATH:
            self._held.pop(place, None)
        elif len(self._held) < _MOST_PLACES or place in self._held:
            self._held[place] = origin

    def _read(self, origin: Origin) -> None:
        if origin.path[0] == "p":
            self.num_parameters = max(self.num_parameters, int(origin.path[1]) + 1)

    def _told(self, name: str, constants: Mapping[str, int]) -> str | None:
        if name[:1] == "#":
            return name
        if name in constants:
            return f"#{constants[name]}"
        return str(self._held[name]) if name in self._held else None

    def _done(self, micro: Micro, held: list[Origin], constants: Mapping[str, int]) -> list[str]:
        for origin in held:
            self._read(origin)
        numbers = [] if micro.value is None else [micro.value]
        numbers += [constants[source] for source in micro.sources if source in constants]
        if numbers:
            return [f"{micro.op} {held[0]}#{numbers[0]}"]
        return [f"{micro.op} {','.join(sorted(map(str, held)))}"]

    def _access(self, micro: Micro, constants: Mapping[str, int]) -> list[str]:
        memory = micro.memory
        if memory is not None and memory.base in self._reader.frame:
            place = (memory.base, memory.offset)
            here, there = (micro.dest, place) if micro.op == "ld" else (place, micro.stored)
            self._put(here, self._held.get(there))
            return []
        base = memory and (_ADDRESSES["symbol"] if memory.is_symbol else self._held.get(memory.base))
        if memory is None or base is None:
            self._put(micro.dest, None)
            return []
        self._read(base)
        path, at = base.path + ("[]" if memory.scale else ""), base.added + memory.offset
        words = [f"{path}@{at}", f"{micro.op}{path}@{at}.{micro.width}"]
        if micro.op == "ld":
            self._put(micro.dest, Origin(f"{path}.{at}"))
        elif (value := self._told(micro.stored, constants)) is not None:
            words.append(f"{path}@{at}={value}")
        return words

    def _call(self, constants: Mapping[str, int]) -> list[str]:
        told = [self._told(name, constants) for name in self._reader.arguments]
        # Later registers that hold their own parameters have most often just not been touched.
        told = [None if value == f"p{at}" and at > 1 else value for at, value in enumerate(told)]
        words = [f"arg{at}={value}" for at, value in enumerate(told) if value and value[0] != "#"]
        pairs = enumerate(pairwise(told))
        words += [f"arg{at}={first},{second}" for at, (first, second) in pairs if first and second]
        self._held = {
            place: origin
            for place, origin in self._held.items()
            if isinstance(place, tuple) or place in self._reader.saved
        }
        self._held[self._reader.result] = Origin("c")
        return words


def _result(micro: Micro, held: list[Origin]) -> Origin | None:
    """Where what is left in `dest` comes from, of where some of the sources do."""
    if (micro.op == "mov" and micro.value is None) or "SYM" in micro.sources:
        return held[0]
    if micro.op != "add":
        return None
    if micro.value is None:
        return Origin(f"{min(held).path}[]")
    return held[0]._replace(added=held[0].added + micro.value) if len(micro.sources) == 1 else None
