"""What an evaluation must not ask for: functions of a split that stand in training, under any of three rules.

In goes a corpus, out come the functions that leak, each with the rule that says so:
  body   a normalised body of its, in any variant, is one of a training function;
  name   a training function has its name and its declaring file;
  text   what its ISA's main compiler makes of it at O0 is near a training function's: MinHash over runs of
         three lines of the view, estimated Jaccard similarity .9 or more.
The builder drops equal bodies and near-equal sources between splits (`corpus-builder verify` searches anew);
these rules look at what models see. `asmtrain eval retrieval` leaves out what they find. Cost: one view a
function and ISA, of both splits; near texts are found by banding, so time grows with the corpus alone.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from asmtrain import terminal
from asmtrain.tasks import minhash
from asmtrain.tasks.lanes import main_compilers
from corpus_builder.asm import view
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import load_index, read_split

THRESHOLD = 0.9
_SHINGLE = 3
_BAND = 8
"""Places of a band: 16 of them find a pair at the threshold with probability .9999."""
_SHOWN = 40


@dataclass(frozen=True)
class Leak:
    """A function that training has seen."""

    key: str
    rule: str
    """`body`, `name` or `text`."""
    project: str
    name: str
    seen: str
    """Key of the training function."""


def run(corpus: Path, *, split: str, trained_on: Path | None = None, as_json: bool) -> int:
    """Print what leaks from training into a split; returns 1 if anything does.

    `trained_on` is the corpus whose training split counts, if it is another one.

    Raises:
        ShardError: there is no corpus, or it is damaged.
        EmptyCorpus: the split is empty.
    """
    found = list(leaks(corpus, split, trained_on or corpus))
    total = sum(shard.num_functions for shard in load_index(corpus).shards if shard.split == split)
    if as_json:
        print(json.dumps([asdict(leak) for leak in found], indent=1))
        return 1 if found else 0
    if found:
        table = Table(title="Leaks", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("rule", "project", "function", "key", "seen as"):
            table.add_column(heading, overflow="fold")
        for leak in found[:_SHOWN]:
            table.add_row(leak.rule, leak.project, leak.name, leak.key, leak.seen)
        terminal.console().print(table)
    rules = {rule: sum(leak.rule == rule for leak in found) for rule in ("body", "name", "text")}
    counts = ", ".join(f"{number} by {rule}" for rule, number in rules.items())
    print(f"{corpus}: {len(found)} of {total:,} functions in {split} were seen in training ({counts})")
    return 1 if found else 0


def leaks(corpus: Path, split: str, training_corpus: Path) -> Iterator[Leak]:
    """The functions of a split that leak, in its order, each with the first rule that it meets.

    A training corpus without a training split has none.
    """
    training = _Training()
    variants = _texts_at_o0(training_corpus)
    try:
        for record in read_split(training_corpus, "train"):
            training.add(record, _hashes(record, variants))
    except EmptyCorpus:
        return
    for record in read_split(corpus, split):
        if known := training.find(record, _hashes(record, variants)):
            rule, seen = known
            yield Leak(record.key, rule, record.meta.project, record.meta.name, seen)


def _texts_at_o0(corpus: Path) -> set[str]:
    """The main compiler's O0 of every ISA."""
    main = main_compilers(f"{toolchain}.o0" for toolchain in load_index(corpus).toolchains)
    return {f"{isa}.{compiler}.o0" for isa, compiler in main.items()}


def _hashes(record: FunctionRecord, variants: set[str]) -> dict[str, Any]:
    """The MinHash of the record's O0 text on each ISA."""
    found = {}
    for variant in sorted(variants & record.assembly.keys()):
        isa = Variant.parse(variant).isa
        lines = view(record.assembly[variant], isa).splitlines()
        (found[isa],) = minhash.hashes([minhash.shingles(lines, _SHINGLE)])
    return found


@dataclass
class _Training:
    """What a training split holds, to look functions up in."""

    bodies: dict[str, str] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    texts: dict[tuple[str, str], Any] = field(default_factory=dict)
    """ISA and key to the MinHash."""
    near: dict[str, Any] = field(default_factory=dict)
    """ISA to an index of keys by bands."""

    def add(self, record: FunctionRecord, hashes: dict[str, Any]) -> None:
        for variant in record.meta.variants.values():
            self.bodies.setdefault(variant.body_sha256, record.key)
        self.places.setdefault((record.meta.name, record.meta.file), record.key)
        for isa, own in hashes.items():
            self.near.setdefault(isa, _index()).insert(record.key, own)
            self.texts[isa, record.key] = own

    def find(self, record: FunctionRecord, hashes: dict[str, Any]) -> tuple[str, str] | None:
        """The rule by which a function was seen, and as which."""
        for variant in record.meta.variants.values():
            if variant.body_sha256 in self.bodies:
                return "body", self.bodies[variant.body_sha256]
        place = (record.meta.name, record.meta.file)
        if place in self.places:
            return "name", self.places[place]
        for isa, own in hashes.items():
            for key in sorted(self.near[isa].query(own)) if isa in self.near else ():
                if own.jaccard(self.texts[isa, key]) >= THRESHOLD:
                    return "text", key
        return None


def _index() -> Any:
    from datasketch import MinHashLSH

    return MinHashLSH(num_perm=minhash.NUM_PERM, params=(minhash.NUM_PERM // _BAND, _BAND))
