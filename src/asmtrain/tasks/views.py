"""What of a function an evaluation shows: the default view, one without numbers, one with import names.

In goes a variant's assembly, out comes a text. `default` is `asm.view`, what a stripped binary shows.
`masked` is that with `N` for every number. `imports` names the targets of calls into common libraries,
which a dynamically linked binary shows even when stripped. Symbol names leak: such a view is no headline.
"""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from asmtrain.tasks.features import instructions
from asmtrain.tasks.pools import Body, Function
from corpus_builder.asm import clean, masked, view
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import load_index, read_shard

VIEWS = ("default", "masked", "imports")


def text_of(assembly: str, isa: str, name: str, imports: Collection[str] = ()) -> str:
    """A function's text in the view called `name`; `imports` are the names that one of them shows."""
    text = view(assembly, isa)
    if name == "masked":
        return masked(text)
    if name != "imports":
        return text
    return "".join(
        f"{line.removesuffix('CALL')}{target}\n" if target in imports else f"{line}\n"
        for line, target in _with_targets(text, assembly, isa)
    )


def import_names(corpus: Path) -> frozenset[str]:
    """What functions of at least two projects call and no function of the corpus is called.

    A corpus does not hold all functions of its projects, so what one project alone calls may be its own.
    """
    callers: dict[str, set[str]] = {}
    defined = set()
    for shard in load_index(corpus).shards:
        for record in read_shard(corpus / shard.name):
            defined.add(record.meta.name)
            variant = min(record.assembly)
            isa = Variant.parse(variant).isa
            text = view(record.assembly[variant], isa)
            for _, target in _with_targets(text, record.assembly[variant], isa):
                callers.setdefault(target, set()).add(record.meta.project)
    return frozenset(name for name, projects in callers.items() if len(projects) > 1) - defined - {""}


def _with_targets(text: str, assembly: str, isa: str) -> Iterator[tuple[str, str]]:
    """The lines of a view, each with the name of what it calls or jumps to outside; empty for the others."""
    targets = [line.rpartition(" ")[2].partition("@")[0] for line in _at_home(clean(assembly, isa))]
    is_same = len(targets) == len(instructions(text))  # else some line is not where it is thought to be
    named = iter(targets)
    for line in text.splitlines():
        target = next(named) if is_same and line and not line.endswith(":") else ""
        yield line, target if line.endswith(" CALL") else ""


def _at_home(clean_text: str) -> Iterator[str]:
    """The instructions of a clean text that a view shows: in the function's own section, without nops."""
    is_home = True
    for line in clean_text.splitlines():
        if line.endswith(":"):
            if ".cold" in line:
                return
        elif line.startswith("."):
            is_home = line == ".text" if line.startswith((".text", ".section")) else is_home
        elif is_home and line != "nop":
            yield line


def function_of(record: FunctionRecord, name: str, imports: Collection[str] = ()) -> Function:
    """A record as the protocol sees it, its bodies hashed as the view called `name` shows them."""
    meta = record.meta
    hashes = {variant: item.body_sha256 for variant, item in meta.variants.items()}
    if name != "default":
        hashes = {
            variant: sha256_of(text_of(text, Variant.parse(variant).isa, name, imports))
            for variant, text in record.assembly.items()
        }
    bodies = {v: Body(hashes[v], item.num_instructions) for v, item in meta.variants.items()}
    return Function(record.key, meta.project, meta.name, meta.file, meta.source_sha256, bodies)


def sha256_of(text: str) -> str:
    """Hexadecimal, of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
