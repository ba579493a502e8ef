"""Whether a corpus keeps its promises: its location in, a list of problems out.

Two passes over all shards. The first checks that every shard is the one the index lists and reads in full,
that texts match their sha256, that keys are unique and that every function has a licence. The second puts
every function through the builder's own search for duplicates again, from the texts that are in the shards:
in a sound corpus it finds none to drop, so no source stands twice, and no body and no near duplicate in two
splits. Memory is that of the keys, 100 bytes each, and of the search.
"""

import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from corpus_builder.config import SPLITS, DedupConfig
from corpus_builder.csource import source_tokens
from corpus_builder.dedup import Batch, Functions, find_duplicates, signatures
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import CorpusIndex, load_index, read_shard, verify_shards
from corpus_builder.storage import Location

_BATCH = 1000
_HEX_DIGITS_OF_64_BITS = 16
_LEAKS = {
    "exact": "its source stands in the corpus twice",
    "body": "one of its bodies stands in an earlier split as well",
    "near": "a near duplicate of its source stands in an earlier split",
}


def verify_corpus(corpus: Location, progress: Callable[[str], None] = lambda name: None) -> list[str]:
    """The problems found, each in one line; empty for a sound corpus.

    Raises:
        ShardError: there is no index, or it is damaged.
    """
    problems = verify_shards(corpus, progress, _RecordChecks().check)
    return problems or [f"{key}: {_LEAKS[reason]}" for key, reason in leaks(corpus)]


def leaks(corpus: Location) -> list[tuple[str, str]]:
    """Functions that duplicate another one, or leak into another split: key, and which rule says so.

    Raises:
        ShardError: a shard is damaged.
        OutputError: there is no room for the search's tables.
    """
    index = load_index(corpus)
    settings = DedupConfig.model_validate(index.dedup)
    with tempfile.TemporaryDirectory(prefix="asmtrain-") as name:
        batches = _batches(corpus, index, settings)
        with find_duplicates(
            batches, folder=Path(name), threshold=settings.threshold, num_perm=settings.num_perm
        ) as found:
            return list(found.dropped())


def _batches(corpus: Location, index: CorpusIndex, settings: DedupConfig) -> Iterator[Batch]:
    for number, shard in enumerate(index.shards):
        records = read_shard(corpus / shard.name)
        while batch := list(islice(records, _BATCH)):
            yield number, shard.split, _functions(batch, settings)


def _functions(records: list[FunctionRecord], settings: DedupConfig) -> Functions:
    tokens = [source_tokens(record.source) for record in records]
    bodies = [sorted({item.body_sha256 for item in record.meta.variants.values()}) for record in records]
    flat = [int(body[:_HEX_DIGITS_OF_64_BITS], 16) for own in bodies for body in own]
    return Functions(
        keys=[record.key for record in records],
        sources=[record.meta.source_sha256 for record in records],
        signatures=np.stack(signatures(tokens, num_perm=settings.num_perm, shingle=settings.shingle)),
        bodies=np.array(flat, np.uint64),
        body_owners=np.repeat(np.arange(len(records), dtype=np.uint32), [len(own) for own in bodies]),
    )


class _RecordChecks:
    """What shows in the records alone."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def check(self, record: FunctionRecord) -> list[str]:
        problems = []
        if record.key in self._keys:
            problems.append(f"{record.key} stands in the corpus twice")
        self._keys.add(record.key)
        if not record.meta.license.strip():
            problems.append(f"{record.key} has no licence")
        if record.meta.split not in SPLITS:
            problems.append(f"{record.key} has no split")
        return problems
