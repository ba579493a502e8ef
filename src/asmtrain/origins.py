"""Where values come from: what a register or a place of the frame holds, told by the function's parameters.

In: micro-operations in the order of the text. Out: words, of what is read, written, compared, computed and
handed on, by paths that compilers keep however they assign registers:

    p1  p1.8  p1.8[]  c     a parameter; what is at offset 8 of it; an element of that; what a call gave back
    p1@8  ldp1@8.4          what is read or written through a path: offset; with direction and width
    p1@8=c  p1@8=#0         what is stored there
    cmp p1#5  add p1.8#1    what is done with it
    arg0=p1  arg0=p1,1=#5   what is handed to a call; two arguments beside each other

Flow is followed line by line: a label behind a jump takes what was known where it was first jumped to, and any
other goes on from the line before. No fixed point: a wrong path is one odd word among many.
"""

from typing import NamedTuple, TypeAlias

from asmtrain.lifting import Micro, Reader

_LONGEST_PATH = 20
"""Characters; what is behind is not followed."""

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
        self._reader = reader
        self._held: dict[Place, Origin] = {
            name: Origin(f"p{at}") for at, name in enumerate(reader.arguments)
        }
        self.num_parameters = 0
        self._at_label: dict[str, dict[Place, Origin]] = {}

    def jump(self, label: str) -> None:
        """A line goes on at a label as well."""
        self._at_label.setdefault(label, dict(self._held))

    def arrive(self, label: str, *, falls_through: bool) -> None:
        """A label begins."""
        if not falls_through and label in self._at_label:
            self._held = self._at_label[label]

    def follow(self, micro: Micro, constants: dict[str, int]) -> list[str]:
        """What a micro-operation does with what is known; notes what it leaves."""
        if micro.op == "call":
            return self._call(constants)
        if micro.op in ("ld", "st"):
            return self._access(micro, constants)
        if micro.op in _ADDRESSES:
            self._put(micro.dest, _ADDRESSES[micro.op])
            return []
        held = [self._held[source] for source in micro.sources if source in self._held]
        words = self._used(micro, held, constants) if held and micro.op != "mov" else []
        for origin in held if words else []:
            self._read(origin)
        if micro.dest:
            self._put(micro.dest, self._result(micro, held))
        return words

    def leave(self, constants: dict[str, int]) -> list[str]:
        """What a return gives back."""
        value = self._told(self._reader.result, constants)
        return [] if value in (None, "p0") else [f"ret={value}"]  # most have only left their first parameter there

    def _read(self, origin: Origin) -> None:
        if origin.path[0] == "p":
            self.num_parameters = max(self.num_parameters, int(origin.path[1]) + 1)

    def _put(self, place: Place, origin: Origin | None) -> None:
        if origin is None or len(origin.path) > _LONGEST_PATH:
            self._held.pop(place, None)
        else:
            self._held[place] = origin

    def _result(self, micro: Micro, held: list[Origin]) -> Origin | None:
        if not held:
            return None
        if micro.op == "mov" and micro.value is None:
            return held[0]
        if "SYM" in micro.sources:
            return held[0]
        if micro.op == "add" and micro.value is not None:
            return held[0]._replace(added=held[0].added + micro.value) if len(micro.sources) == 1 else None
        return Origin(min(held).path + "[]") if micro.op == "add" else None

    @staticmethod
    def _used(micro: Micro, held: list[Origin], constants: dict[str, int]) -> list[str]:
        numbers = [micro.value] if micro.value is not None else []
        numbers += [constants[source] for source in micro.sources if source in constants]
        if numbers:
            return [f"{micro.op} {held[0]}#{numbers[0]}"]
        return [f"{micro.op} {','.join(sorted(map(str, held)))}"]

    def _access(self, micro: Micro, constants: dict[str, int]) -> list[str]:
        memory = micro.memory
        if memory is None:
            self._put(micro.dest, None)
            return []
        place = (memory.base, memory.offset)
        if memory.base in self._reader.frame:
            if micro.op == "ld":
                self._put(micro.dest, self._held.get(place))
            else:
                self._put(place, self._held.get(micro.stored))
            return []
        base = _ADDRESSES["symbol"] if memory.is_symbol else self._held.get(memory.base)
        if base is None:
            self._put(micro.dest, None)
            return []
        self._read(base)
        path = base.path + ("[]" if memory.scale else "")
        at = base.added + memory.offset
        words = [f"{path}@{at}", f"{micro.op}{path}@{at}.{micro.width}"]
        if micro.op == "ld":
            self._put(micro.dest, Origin(f"{path}.{at}"))
        elif (value := self._told(micro.stored, constants)) is not None:
            words.append(f"{path}@{at}={value}")
        return words

    def _told(self, name: str, constants: dict[str, int]) -> str | None:
        if name[:1] == "#":
            return name
        if name in constants:
            return f"#{constants[name]}"
        return str(self._held[name]) if name in self._held else None

    def _call(self, constants: dict[str, int]) -> list[str]:
        told = [self._told(name, constants) for name in self._reader.arguments]
        told = [value if value != f"p{at}" or at < 2 else None for at, value in enumerate(told)]
        words = [f"arg{at}={value}" for at, value in enumerate(told) if value and value[0] != "#"]
        words += [
            f"arg{at}={told[at]},{told[at + 1]}" for at in range(len(told) - 1) if told[at] and told[at + 1]
        ]
        kept = self._reader.saved
        self._held = {
            place: origin for place, origin in self._held.items() if place in kept or not isinstance(place, str)
        }
        self._held[self._reader.result] = Origin("c")
        return words
