"""The lanes of retrieval: which variants of a function are asked for, among which variants of others.

In go the variant names of a corpus, out come the lanes that it allows. A lane is two sets of variants: each
function draws its query from one and its answer from the other. Invariant: every query of a lane with every
answer of the lane, its own or another function's, stands in the relation that the lane is named after, so
negatives obey the positive's constraint. So "same level" is a lane a level, and "other ISA and other level"
goes from low levels to high ones.

    XO O0O3, ..   one ISA and compiler, another -O level; XO mixed: any two levels
    XC O2, ..     one ISA and level, gcc against clang
    XA O2, ..     one level and compiler, another ISA
    XA+XO         another ISA, from a low level (O0, O1) to a high one
    XM            any variant against any other
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from corpus_builder.record import Variant

CROSSED_LEVELS = (("o0", "o3"), ("o1", "o3"), ("o2", "o3"), ("o0", "os"), ("o1", "os"), ("o2", "os"))
_LEVELS = ("o0", "o1", "o2", "o3", "os", "oz", "og", "ofast")
_LOW = ("o0", "o1")


@dataclass(frozen=True)
class Lane:
    """One question: functions as one of `queries` shows them, to be found as one of `answers` shows them."""

    task: str
    """`XO O0O3`, `XC O2`, `XA O2`, `XA+XO`, `XM`."""
    isa: str
    """One, two joined by a hyphen, or `all`."""
    queries: tuple[str, ...]
    """Variant names."""
    answers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Task and ISA: unique in a corpus."""
        return f"{self.task} {self.isa}"


def lanes_of(variants: Iterable[str]) -> list[Lane]:
    """The lanes that a corpus with these variants allows.

    gcc stands for a compiler family here; where an ISA has none, its first compiler takes the place. Levels
    with a flag set (`o2-no-inline`) are asked for from O0 alone, as a diagnosis, and mix with nothing.
    """
    names = sorted(set(variants))
    plain = [name for name in names if Variant.parse(name).level in _LEVELS]
    main = main_compilers(names)
    found = [lane for isa in main for lane in _across_levels(isa, main[isa], names, plain)]
    found += [lane for isa in main for lane in _across_compilers(isa, main[isa], plain)]
    for left, right in combinations(main, 2):
        found += _across_isas((left, main[left]), (right, main[right]), plain)
    if len(plain) > 1:
        found.append(Lane("XM", "all", tuple(plain), tuple(plain)))
    return found


def main_compilers(variants: Iterable[str]) -> dict[str, str]:
    """ISA to its gcc, or to its first compiler."""
    known = {Variant.parse(name)[:2] for name in variants}
    main: dict[str, str] = {}
    for isa, compiler in sorted(known, key=lambda pair: (not pair[1].startswith("gcc"), pair)):
        main.setdefault(isa, compiler)
    return dict(sorted(main.items()))


def _across_levels(isa: str, compiler: str, names: Sequence[str], plain: Sequence[str]) -> Iterator[Lane]:
    diagnostic = [name for name in names if name not in plain and name.startswith(f"{isa}.{compiler}.")]
    crossed = [*CROSSED_LEVELS, *(("o0", Variant.parse(name).level) for name in diagnostic)]
    for low, high in crossed:
        pair = (f"{isa}.{compiler}.{low}", f"{isa}.{compiler}.{high}")
        if set(pair) <= set(names):
            yield Lane(f"XO {_title(low)}{_title(high)}", isa, pair[:1], pair[1:])
    own = tuple(f"{isa}.{compiler}.{level}" for level in _levels(isa, compiler, plain))
    if len(own) > 1:
        yield Lane("XO mixed", isa, own, own)


def _across_compilers(isa: str, main: str, plain: Sequence[str]) -> Iterator[Lane]:
    others = sorted({Variant.parse(name).compiler for name in plain if name.startswith(f"{isa}.")} - {main})
    others = [other for other in others if not other.startswith("gcc")]
    if main.startswith("gcc") and others:
        shared = set(_levels(isa, others[0], plain))
        for level in _levels(isa, main, plain):
            if level in shared:
                pair = (f"{isa}.{main}.{level}", f"{isa}.{others[0]}.{level}")
                yield Lane(f"XC {_title(level)}", isa, pair[:1], pair[1:])


def _across_isas(left: tuple[str, str], right: tuple[str, str], plain: Sequence[str]) -> Iterator[Lane]:
    isas = f"{left[0]}-{right[0]}"
    shared = set(_levels(*right, plain))
    for level in _levels(*left, plain):
        if level in shared:
            pair = (".".join((*left, level)), ".".join((*right, level)))
            yield Lane(f"XA {_title(level)}", isas, pair[:1], pair[1:])
    low = tuple(".".join((*left, level)) for level in _levels(*left, plain) if level in _LOW)
    high = tuple(".".join((*right, level)) for level in _levels(*right, plain) if level not in _LOW)
    if low and high:
        yield Lane("XA+XO", isas, low, high)


def _levels(isa: str, compiler: str, plain: Sequence[str]) -> list[str]:
    """The plain levels of a toolchain, in their usual order."""
    return [level for level in _LEVELS if f"{isa}.{compiler}.{level}" in plain]


def _title(level: str) -> str:
    return f"O{level[1:]}"
