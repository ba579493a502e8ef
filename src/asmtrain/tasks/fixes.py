"""Which functions a security fix changes: two corpora of the same packages, before and after, compared.

In go both folders; the one from before holds the patches that its sources were asked to do without
(`without_patches`). Out come the functions whose C tokens differ, each with the patches that changed it. A
patch changed a function if a line that it adds or removes is one that the function has gained or lost; a line
that several functions of the file gained or lost counts for the one nearest to where the patch says it is,
since other patches move lines. Lines without three letters or digits count for nobody. What is called
`before` lacks all fixes of its package at once.
Cost: both corpora are read once; the view of every body is kept.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from asmtrain.tasks.pools import Body
from asmtrain.tasks.views import text_of
from corpus_builder.errors import ConfigError, EmptyCorpus
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import CorpusIndex, load_index, read_shard

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_DIFF = re.compile(r"^(?:--- |diff )", re.MULTILINE)


class Identity(NamedTuple):
    """A function, whatever its state."""

    project: str
    file: str
    name: str


@dataclass(frozen=True)
class State:
    """A function as one corpus has it."""

    source: str
    source_sha256: str
    lines: tuple[int, int]
    bodies: Mapping[str, Body]
    """By ISA."""


States = Mapping[Identity, State]


@dataclass(frozen=True)
class Patch:
    """One patch file of a package."""

    project: str
    name: str
    cves: tuple[str, ...]
    """Those in its name; without any, those in its header."""
    left_out: bool
    """False for one that is applied in both corpora, for others build on it."""
    changes: Sequence["Change"]


class Change(NamedTuple):
    """A line that a patch adds or removes in a C file."""

    file: str
    text: str
    """Without indentation."""
    line: int
    """As the patch counts, which may differ from a corpus by what other patches add and remove."""
    is_added: bool


@dataclass(frozen=True)
class Compared:
    """Two corpora of the same packages."""

    before: States
    after: States
    texts: Mapping[str, str]
    """Body sha256 to view, of both."""
    patches: Sequence[Patch]
    changed: Mapping[Identity, frozenset[str]]
    """Functions whose source differs, each with the patches that changed it, as `project/name`."""


def compare(before: Path, after: Path, *, level: str = "o2") -> Compared:
    """Read both corpora.

    Raises:
        ConfigError: they were made by different compilers, or have no patch between them.
        EmptyCorpus: an ISA is missing.
        ShardError: there is no corpus, or it is damaged.
    """
    indexes = [load_index(folder) for folder in (before, after)]
    if indexes[0].toolchains != indexes[1].toolchains:
        raise ConfigError(
            f"{before} and {after} were made by different compilers",
            remedy="build both on one machine; a difference must come from the fixes alone",
        )
    patches = list(_patches(before))
    if not patches:
        raise ConfigError(
            f"{before} lacks no patch of its packages",
            remedy="build it with `without_patches`, such as *CVE*",
        )
    texts: dict[str, str] = {}
    old, new = (_states(folder, indexes[at], level, texts) for at, folder in enumerate((before, after)))
    return Compared(old, new, texts, patches, _changed(old, new, patches))


def _states(folder: Path, index: CorpusIndex, level: str, texts: dict[str, str]) -> States:
    """The functions of a corpus; of several with one identity, which `#if` makes, the first."""
    variants = _variants(index, level)
    found: dict[Identity, State] = {}
    for shard in index.shards:
        for record in read_shard(folder / shard.name):
            identity = Identity(record.meta.project, record.meta.file, record.meta.name)
            if identity not in found:
                found[identity] = _state(record, variants, texts)
    return found


def _variants(index: CorpusIndex, level: str) -> dict[str, str]:
    """ISA to the variant of its first gcc."""
    found: dict[str, str] = {}
    for toolchain in sorted(index.toolchains):
        isa, compiler = toolchain.split(".")
        if compiler.startswith("gcc") and level.upper() in (name.upper() for name in index.levels):
            found.setdefault(isa, f"{toolchain}.{level}")
    missing = {"aarch64", "riscv64", "x86_64"} - found.keys()
    if missing:
        raise EmptyCorpus(
            f"corpus {index.name!r} has no gcc at {level.upper()} for {', '.join(sorted(missing))}",
            remedy="build configs/corpus/cve-before.yaml and cve-after.yaml",
        )
    return found


def _state(record: FunctionRecord, variants: Mapping[str, str], texts: dict[str, str]) -> State:
    meta = record.meta
    bodies = {}
    for isa, variant in variants.items():
        if variant in meta.variants:
            body = Body(meta.variants[variant].body_sha256, meta.variants[variant].num_instructions)
            bodies[isa] = body
            if body.sha256 not in texts:
                texts[body.sha256] = text_of(record.assembly[variant], Variant.parse(variant).isa, "default")
    return State(record.source, meta.source_sha256, meta.lines, bodies)


def _patches(corpus: Path) -> Iterator[Patch]:
    for path in sorted((corpus / "patches").glob("*/*/*")):
        text = path.read_bytes().decode(errors="replace")
        named = _CVE.findall(path.name) or _CVE.findall(_DIFF.split(text, maxsplit=1)[0])
        cves = tuple(dict.fromkeys(cve.upper() for cve in named))
        project, state = path.parts[-3:-1]
        yield Patch(project, path.name, cves, state == "left-out", list(_changes(text)))


def _changes(text: str) -> Iterator[Change]:
    try:
        files = PatchSet(text)
    except UnidiffParseError:
        return
    for file in files:
        named = file.target_file if file.target_file != "/dev/null" else file.source_file
        path = named.partition("/")[2]  # as `patch -p1`: the first folder may be anything
        if path.endswith((".c", ".h", ".y", ".l")):
            for line in (line for hunk in file for line in hunk if not line.is_context):
                number = line.target_line_no if line.is_added else line.source_line_no
                if sum(map(str.isalnum, line.value)) >= 3:
                    yield Change(path, line.value.strip(), number or 0, line.is_added)


def _changed(old: States, new: States, patches: Sequence[Patch]) -> dict[Identity, frozenset[str]]:
    by_file: dict[tuple[str, str], list[_Difference]] = {}
    for identity, before in old.items():
        after = new.get(identity)
        if after and after.source_sha256 != before.source_sha256:
            by_file.setdefault(identity[:2], []).append(_difference(identity, before, after))
    found: dict[Identity, set[str]] = {each.identity: set() for group in by_file.values() for each in group}
    for patch in patches:
        for change in patch.changes if patch.left_out else ():
            owners = [each for each in by_file.get((patch.project, change.file), []) if each.has(change)]
            if owners:
                nearest = min(owners, key=lambda each: each.distance(change))
                found[nearest.identity].add(f"{patch.project}/{patch.name}")
    return {identity: frozenset(names) for identity, names in found.items()}


@dataclass(frozen=True)
class _Difference:
    """What a function has gained and lost, and where it stands."""

    identity: Identity
    lines: Mapping[bool, tuple[int, int]]
    """First and last, of the state that has what was added (true) or removed."""
    texts: Mapping[bool, Counter[str]]

    def has(self, change: Change) -> bool:
        return change.text in self.texts[change.is_added]

    def distance(self, change: Change) -> int:
        first, last = self.lines[change.is_added]
        return max(first - change.line, change.line - last, 0)


def _difference(identity: Identity, before: State, after: State) -> _Difference:
    old, new = ([line.strip() for line in state.source.splitlines()] for state in (before, after))
    gone, come = Counter[str](), Counter[str]()
    for tag, *at in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            gone.update(old[at[0] : at[1]])
            come.update(new[at[2] : at[3]])
    return _Difference(identity, {True: after.lines, False: before.lines}, {True: come, False: gone})
