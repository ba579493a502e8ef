"""Whether a corpus keeps its promises: its folder in, a list of problems out.

Checks that every shard is the one the index lists and reads in full, that texts match their sha256, that keys
are unique, that no function's source or body stands in two splits, and that every function has a licence.
One pass over all shards; memory grows with the number of distinct bodies (about 100 bytes each).
"""

from collections.abc import Callable

from corpus_builder.config import SPLITS
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import verify_shards
from corpus_builder.storage import Location


def verify_corpus(corpus: Location, progress: Callable[[str], None] = lambda name: None) -> list[str]:
    """The problems found, each in one line; empty for a sound corpus.

    Raises:
        ShardError: there is no index, or it is damaged.
    """
    leaks = _CrossChecks()
    return verify_shards(corpus, progress, leaks.check)


class _CrossChecks:
    """What only shows when all records are seen."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._first_split: dict[tuple[str, str], str] = {}

    def check(self, record: FunctionRecord) -> list[str]:
        meta = record.meta
        problems = []
        if record.key in self._keys:
            problems.append(f"{record.key} stands in the corpus twice")
        self._keys.add(record.key)
        if not meta.license.strip():
            problems.append(f"{record.key} has no licence")
        if meta.split not in SPLITS:
            problems.append(f"{record.key} has no split")
        marks = {("source", meta.source_sha256)} | {("body", v.body_sha256) for v in meta.variants.values()}
        for mark in sorted(marks):
            other = self._first_split.setdefault(mark, meta.split)
            if other != meta.split:
                problems.append(f"{record.key} in {meta.split}: its {mark[0]} stands in {other} as well")
                break
        return problems
