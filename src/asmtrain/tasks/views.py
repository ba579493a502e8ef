"""What of a function an evaluation shows: the default view, one without numbers, one with import names.

In goes a variant's assembly, out comes a text. `default` is `asm.view`, what a stripped binary shows.
`masked` is that with `N` for every number. `imports` names the targets of calls that leave the project,
which a dynamically linked binary shows even when stripped. Symbol names leak: such a view is no headline.
"""

import hashlib
from collections.abc import Collection, Iterator

from asmtrain.tasks.features import instructions, masked
from asmtrain.tasks.pools import Body, Function
from corpus_builder.asm import clean, view
from corpus_builder.record import FunctionRecord, Variant

VIEWS = ("default", "masked", "imports")


def text_of(assembly: str, isa: str, name: str, own_names: Collection[str] = ()) -> str:
    """A function's text in the view called `name`; `own_names` are its project's functions, never imports."""
    text = view(assembly, isa)
    if name == "masked":
        return masked(text)
    return _with_imports(text, assembly, isa, own_names) if name == "imports" else text


def _with_imports(text: str, assembly: str, isa: str, own_names: Collection[str]) -> str:
    """A view whose calls and jumps out of the project show their targets."""
    targets = [line.rpartition(" ")[2].partition("@")[0] for line in _at_home(clean(assembly, isa))]
    if len(targets) != len(instructions(text)):  # not the same instructions: name none
        return text
    named = iter(targets)
    lines = []
    for line in text.splitlines():
        if line and not line.endswith(":"):
            target = next(named)
            if line.endswith(" CALL") and target not in own_names and target.isidentifier():
                line = f"{line.removesuffix('CALL')}{target}"
        lines.append(f"{line}\n")
    return "".join(lines)


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


def function_of(record: FunctionRecord, name: str, own_names: Collection[str] = ()) -> Function:
    """A record as the protocol sees it, its bodies hashed as the view called `name` shows them."""
    meta = record.meta
    hashes = {variant: item.body_sha256 for variant, item in meta.variants.items()}
    if name != "default":
        hashes = {
            variant: sha256_of(text_of(text, Variant.parse(variant).isa, name, own_names))
            for variant, text in record.assembly.items()
        }
    bodies = {v: Body(hashes[v], item.num_instructions) for v, item in meta.variants.items()}
    return Function(record.key, meta.project, meta.name, meta.file, meta.source_sha256, bodies)


def sha256_of(text: str) -> str:
    """Hexadecimal, of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
