"""One function for the eye: a corpus and a name in, its source beside two variants' assembly out.

A key is found by reading up to it; a name is looked for in the whole corpus: several projects may use it.
"""

import difflib
import fnmatch
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from corpus_builder import asm
from corpus_builder.errors import UserFacingError
from corpus_builder.record import FunctionRecord, Variant
from corpus_builder.shards import load_index, read_shard
from corpus_builder.storage import Location


def find_function(corpus: Location, wanted: str) -> tuple[FunctionRecord, list[tuple[str, str]]]:
    """The first function with that key or name, and the (key, place) of others with that name.

    Raises:
        UserFacingError: there is none; the message names similar ones.
        ShardError: a shard is damaged.
    """
    found: FunctionRecord | None = None
    others: list[tuple[str, str]] = []
    names: set[str] = set()
    for record in _records(corpus):
        if record.key == wanted:
            return record, []
        names.add(record.meta.name)
        if record.meta.name != wanted:
            continue
        if found is None:
            found = record
        else:
            others.append((record.key, _place(record)))
    if found is None:
        near = difflib.get_close_matches(wanted, sorted(names), n=3)
        hint = f"similar names: {', '.join(near)}" if near else "`corpus-builder stats` shows what it holds"
        raise UserFacingError(f"{corpus} has no function {wanted!r}", remedy=hint)
    return found, others


def choose_variants(record: FunctionRecord, wanted: str | None) -> list[str]:
    """The variants named in `wanted`, a glob meaning the first that matches; or one compiler's O0 and O2.

    Raises:
        UserFacingError: the function has no such variant.
    """
    there = sorted(record.assembly)
    if wanted is None:
        first = Variant.parse(there[0])
        usual = [str(first._replace(level=level)) for level in ("o0", "o2")]
        present = [variant for variant in usual if variant in record.assembly]
        return list(dict.fromkeys([*present, *there]))[:2]
    chosen = []
    for pattern in wanted.split(","):
        matching = fnmatch.filter(there, pattern)
        if not matching:
            raise UserFacingError(
                f"{record.meta.name} has no variant {pattern!r}", remedy=f"choose from {', '.join(there)}"
            )
        chosen.append(matching[0])
    return chosen


def side_by_side(record: FunctionRecord, variants: list[str], *, raw: bool) -> Table:
    """Source and assembly in columns; `raw` keeps directives."""
    meta = record.meta
    title = f"{meta.signature}\n{_place(record)}  {meta.license}  {meta.split}  {record.key}"
    table = Table(title=Text(title), title_justify="left", expand=False)
    table.add_column("C", overflow="fold")
    texts = [record.source]
    for name in variants:
        variant = meta.variants[name]
        table.add_column(
            f"{name}\n{variant.num_instructions} instructions, {variant.code_bytes} bytes", overflow="fold"
        )
        assembly = record.assembly[name]
        texts.append(assembly if raw else asm.clean(assembly, Variant.parse(name).isa))
    table.add_row(*(Text(text.expandtabs(4)) for text in texts))
    return table


def _records(corpus: Location) -> Iterator[FunctionRecord]:
    for shard in load_index(corpus).shards:
        yield from read_shard(corpus / shard.name)


def _place(record: FunctionRecord) -> str:
    meta = record.meta
    return f"{meta.project} {meta.version}, {meta.file}:{meta.lines[0]}"
