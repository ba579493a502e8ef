"""Which vulnerable functions are asked for, and what counts as finding them.

In goes the comparison of two corpora (`fixes`), out come questions, and a reason for every changed function
that none is made of; and the pool. Pure but for the corpus that models have seen. Bodies are known by their
sha256 throughout.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from asmtrain.tasks.fixes import Compared, Identity, State, States
from asmtrain.tasks.pools import Body
from asmtrain.tasks.retrieval import MIN_INSTRUCTIONS
from corpus_builder.shards import read_split

QUERY_ISA, TARGET_ISAS = "x86_64", ("aarch64", "riscv64")


@dataclass(frozen=True)
class Target:
    """What counts for a question on one ISA; bodies by their sha256."""

    right: frozenset[str]
    taken_out: frozenset[str]
    pair: tuple[str, str] | None
    """Vulnerable and fixed body, where both are there and differ."""


@dataclass(frozen=True)
class Question:
    """A vulnerable function."""

    identity: Identity
    cves: tuple[str, ...]
    vulnerable: str
    """sha256 of its x86-64 body."""
    fixed: str
    targets: Mapping[str, Target]
    """By ISA; those where it is found at all."""


def seen_in(corpus: Path) -> frozenset[object]:
    """Bodies, and names with files, of a corpus's training split."""
    found: set[object] = set()
    for record in read_split(corpus, "train"):
        found.add((record.meta.name, record.meta.file))
        found |= {variant.body_sha256 for variant in record.meta.variants.values()}
    return frozenset(found)


def questions_of(
    compared: Compared, seen: Collection[object] = frozenset()
) -> tuple[list[Question], dict[Identity, str]]:
    """The functions to ask for, and why the other changed ones are not."""
    cves = {f"{patch.project}/{patch.name}": patch.cves for patch in compared.patches}
    questions, reasons = [], {}
    for identity, names in sorted(compared.changed.items()):
        own = tuple(sorted({cve for name in names for cve in cves[name]}))
        states = compared.before[identity], compared.after[identity]
        targets = {isa: target for isa in TARGET_ISAS if (target := _target(isa, *states)).right}
        reason = _unfit(identity, *states, seen) or ("" if targets else "not in AArch64 or RISC-V code")
        if not own:
            reasons[identity] = "changed by no patch of a CVE"
        elif reason:
            reasons[identity] = reason
        else:
            bodies = [state.bodies[QUERY_ISA].sha256 for state in states]
            questions.append(Question(identity, own, bodies[0], bodies[1], targets))
    return questions, reasons


def _unfit(identity: Identity, before: State, after: State, seen: Collection[object]) -> str:
    bodies = [state.bodies.get(QUERY_ISA) for state in (before, after)]
    found = [body for body in bodies if body]
    if len(found) < 2:
        return "inlined or absent in x86-64 code"
    if min(body.num_instructions for body in found) < MIN_INSTRUCTIONS:
        return f"shorter than {MIN_INSTRUCTIONS} instructions"
    if found[0].sha256 == found[1].sha256:
        return "equal x86-64 code before and after"
    shas = {body.sha256 for state in (before, after) for body in state.bodies.values()}
    is_seen = any(body in seen for body in shas) or (identity.name, identity.file) in seen
    return "seen in training" if is_seen else ""


def _target(isa: str, before: State, after: State) -> Target:
    own = [_long(state.bodies.get(isa)) for state in (before, after)]
    every = {body.sha256 for state in (before, after) for body in state.bodies.values()}
    right = frozenset(body for body in own if body)
    pair = (own[0], own[1]) if own[0] and own[1] and own[0] != own[1] else None
    return Target(right, frozenset(every) - right, pair)


def _long(body: Body | None) -> str:
    return body.sha256 if body and body.num_instructions >= MIN_INSTRUCTIONS else ""


def pool_of(compared: Compared) -> list[str]:
    """Every distinct body of the target ISAs that is long enough, in an order of its own."""
    return sorted(_bodies(compared.before) | _bodies(compared.after))


def _bodies(states: States) -> set[str]:
    return {_long(state.bodies.get(isa)) for state in states.values() for isa in TARGET_ISAS} - {""}
