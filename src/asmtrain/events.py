"""What a function does, in words that all three instruction sets share: a view text in, events out.

A view (`corpus_builder.asm.view`) is read line by line into micro-operations (`lifting`), and those are
told as short words. Mnemonics and registers differ between instruction sets, compilers and levels; the
numbers that a function compares with, the offsets and widths of the structures that it reads and the
constants that it hands to calls do so less. The words:

    m:ldr                  a mnemonic
    #8  cmp#8  add#-1      a number, and with it what is done (`cmp`, `and`, `shl`, `mov`, ..)
    @16  @16.4  st@16.4    access to memory that is not the frame's: offset; with width; with its direction
    arg1=5  args:1=5,2=0   constants that argument registers hold at a call, one by one and together
    index4  frame  symbol  a scaled index; an access to the frame, whose offsets are left out; an address
    p0@8=#0  arg1=p2  ..   what is done with parameters and what they lead to (`origins`)
    calls=3  loops=1       counts; `calls~5`, `blocks~7`, `size~9` are logarithmic ones, each told twice so
                           that neighbours share a word

Constants are followed through registers inside a basic block, and through the function where a register holds
nothing else, so `movz`/`movk`, `lui`/`addi` and a compare with a loaded constant read as x86-64's single
instruction does. Pure. Cost: half a millisecond a function (benchmarks/embed_speed.py); lines are remembered.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import log, log1p
from zlib import crc32

from asmtrain.lifting import Micro, Reader, lift, reader_of
from asmtrain.origins import Origins

EVENTS = "events.2"
"""What the config of a model that reads events says (`reads`): another number, other words."""
NUM_WORDS = 1 << 15
"""Words that `event_text` can write; events share them by hash."""

_LONGEST_LINE = 256
"""What is behind is not read: no instruction is so long, and patterns over it would take long."""

_MOST_FIXED = 128
"""Registers with one constant: more than there are, and few enough to begin every block with a copy."""
_RETURNS = frozenset(("ret", "retq", "jr ra"))
_ENDS = frozenset(("b", "br", "jmp", "j", "jr", "tail", "ret", "retq"))
"""Mnemonics behind which a function does not go on at the next line."""

Constants = dict[str, int]
"""Registers and what they are known to hold."""


def events(view: str) -> list[str]:
    """The words of a view, in the order of its instructions, then its counts."""
    reader = reader_of(view)
    lines = [line[:_LONGEST_LINE] for line in view.splitlines()]
    lifted = [() if line.endswith(":") else lift(reader, line) for line in lines]
    state = _State(reader, _fixed(lifted, reader))
    words: list[str] = []
    for line, micros in zip(lines, lifted, strict=True):
        if micros:
            words += state.line(line, micros)
        else:
            state.label(line[:-1])
    return [*words, f"params={state.origins.num_parameters}", *_counts(state.counts)]


class _State:
    """What is known at a line, and what was counted before."""

    def __init__(self, reader: Reader, fixed: Constants) -> None:
        self.origins = Origins(reader)
        self.counts = dict.fromkeys(("calls", "loops", "blocks", "size"), 0)
        self._reader, self._fixed, self._constants = reader, fixed, dict(fixed)
        self._labels: set[str] = set()
        self._falls_through = True

    def label(self, name: str) -> None:
        """A basic block begins; other paths lead here."""
        self._labels.add(name)
        self._constants = dict(self._fixed)
        self.counts["blocks"] += 1
        self.origins.arrive(name, falls_through=self._falls_through)
        self._falls_through = True

    def line(self, line: str, micros: Sequence[Micro]) -> list[str]:
        """The words of an instruction."""
        mnemonic, target = line.partition(" ")[0], line[line.rfind(" ") + 1 :]
        self.counts["size"] += 1
        self.counts["loops"] += target in self._labels
        words: list[str] = []
        for micro in micros:
            words += micro.words
            if micro.is_stateful:
                words += self._state_words(micro)
        if line in _RETURNS:
            words += self.origins.leave(self._constants)
        if target[:1] == "L" and target not in self._labels:
            self.origins.jump(target)
        self._falls_through = mnemonic not in _ENDS
        return words

    def _state_words(self, micro: Micro) -> list[str]:
        """What depends on the lines before."""
        words = self.origins.follow(micro, self._constants)
        if micro.op == "call":
            self.counts["calls"] += 1
            words += _arguments(self._constants, self._reader.arguments)
            self._constants = dict(self._fixed)
        elif micro.dest or micro.sources:
            words += _follow(micro, self._constants)
        return words


def _fixed(lifted: Sequence[Sequence[Micro]], reader: Reader) -> Constants:
    """Registers that one constant is put into and nothing else: compilers load such ones before a loop.

    What a saved register is given back at the end does not count; arguments' registers change at calls.
    """
    known: Constants = {}
    written: set[str] = set()
    for micro in (micro for micros in lifted for micro in micros):
        if micro.op == "call":
            known.pop(reader.result, None)
        if not micro.dest or (micro.dest in reader.saved and micro.words == ("frame",)):
            continue
        goes_on = micro.shift is not None or micro.dest in micro.sources  # movk; addi after lui
        value = micro.result(known) if goes_on or micro.dest not in written else None
        written.add(micro.dest)
        if value is None:
            known.pop(micro.dest, None)
        elif len(known) < _MOST_FIXED:
            known[micro.dest] = value
    return {name: value for name, value in known.items() if name not in reader.arguments}


def _follow(micro: Micro, constants: Constants) -> list[str]:
    """Words that depend on what registers hold; notes what a register holds from now on."""
    known = [constants[source] for source in micro.sources if source in constants]
    words = [f"{micro.op}#{value}" for value in known if micro.op != "mov"]
    if not micro.dest:
        return words
    value = micro.result(constants)
    if value is None:
        constants.pop(micro.dest, None)
        return words
    constants[micro.dest] = value
    is_copy = micro.value is None
    return words if is_copy else [*words, f"#{value}", f"mov#{value}"]


def _arguments(constants: Constants, registers: Sequence[str]) -> list[str]:
    held = [f"{at}={constants[name]}" for at, name in enumerate(registers) if name in constants]
    return [f"arg{one}" for one in held] + ([f"args:{','.join(held)}"] if len(held) > 1 else [])


def _counts(counts: dict[str, int]) -> list[str]:
    words = [f"calls={min(counts['calls'], 24)}", f"loops={min(counts['loops'], 12)}"]
    for name, count in counts.items():
        step = round(2 * log1p(count))
        words += [f"{name}~{step}", f"{name}~{step + 1}"]
    return words


def event_text(view: str) -> str:
    """The events of a view as a text of hashed words, each about 1 + log of its count times.

    A sum over the words' vectors then weighs them as retrieval does term frequencies (Manning et al. 2008,
    6.4.1), and a number that training never saw still is a word, the same on both sides.
    """
    counts = Counter(events(view))
    return " ".join(_hashed(word) for word, count in counts.items() for _ in range(round(1 + log(count))))


@lru_cache(maxsize=1 << 16)
def _hashed(word: str) -> str:
    return f"e{crc32(word.encode()) % NUM_WORDS}"
