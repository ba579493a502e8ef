"""The token cache: a corpus split in, memory-mapped token ids out.

A cache is a folder with one part per shard, each holding the arrays of its documents; ranks make different
parts at the same time, and the result does not depend on their number. Its name is a hash of all that its
content depends on, so that a run, or a later run beside it, reuses exactly what is still right. A part
appears whole (renamed into place) or not at all, so a killed build goes on where it stopped.

Cost: clean or view of each function's text (about 3,000 a second), then the tokenizer (parallel).
"""

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from asmtrain.config import DataConfig, DocumentTask
from asmtrain.examples import EXAMPLE_TASKS, encode, examples
from asmtrain.packing import IntArray
from asmtrain.tokens import assembly_of, documents
from asmtrain.watch import beat
from corpus_builder.errors import EmptyCorpus
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import atomic_output, load_index, read_shard

_SCHEMA_VERSION = 4
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Part:
    """Where one shard's functions stand in their split."""

    name: str
    shard: Path
    first_function: int
    num_functions: int


class TokenCache:
    """Documents as token ids; functions and documents are numbered over all parts.

    `lengths`, `functions`, `projects`, `bodies` and `variants` have one entry a document; the documents of a
    function follow each other. `bodies` is the start of the body's sha256 as int64, equal for equal bodies.
    An example is a document that begins with a prompt: `prompt_lengths` tokens, 0 in documents without one;
    `are_apart` tells where prompt and answer were tokenised each by itself.
    """

    def __init__(self, folder: Path) -> None:
        """Open a finished cache."""
        meta = json.loads((folder / "cache.json").read_text())
        self.folder = folder
        self.pad_id: int = meta["pad_id"]
        parts = [folder / name for name in meta["parts"]]
        self._tokens = [np.load(part / "tokens.npy", mmap_mode="r") for part in parts]
        self._starts = [np.load(part / "starts.npy") for part in parts]
        self._first_document = np.cumsum([0, *(len(starts) - 1 for starts in self._starts)])
        self.lengths: IntArray = np.concatenate([np.diff(starts) for starts in self._starts])

        def column(name: str) -> npt.NDArray[Any]:
            return np.concatenate([np.load(part / f"{name}.npy") for part in parts])

        self.bodies: IntArray = column("bodies")
        self.variants: npt.NDArray[np.str_] = column("variants")
        self.keys: npt.NDArray[np.str_] = column("keys")
        self.projects: npt.NDArray[np.str_] = column("projects")
        self.prompt_lengths: npt.NDArray[np.int32] = column("prompt_lengths")
        self.are_apart: npt.NDArray[np.bool_] = column("are_apart")
        is_first = np.append(True, self.keys[1:] != self.keys[:-1])
        self.functions: IntArray = np.cumsum(is_first) - 1
        self._function_starts = np.append(np.flatnonzero(is_first), len(self.keys))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_functions(self) -> int:
        """Functions that have a document here."""
        return len(self._function_starts) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    def tokens(self, document: int) -> npt.NDArray[np.integer]:
        """The ids of one document, with its BOS and EOS."""
        part = int(np.searchsorted(self._first_document, document, side="right")) - 1
        place = document - int(self._first_document[part])
        starts = self._starts[part]
        ids: npt.NDArray[np.integer] = self._tokens[part][starts[place] : starts[place + 1]]
        return ids

    def documents_of(self, function: int) -> range:
        """The documents of one function."""
        return range(int(self._function_starts[function]), int(self._function_starts[function + 1]))


def build_cache(
    data: DataConfig,
    split: str,
    tokenizer: Any,
    folder: Path,
    *,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> TokenCache:
    """Tokenise a split under `folder`, or reuse what an equal call left there. All ranks call it together.

    Raises:
        ShardError: the corpus is missing or damaged.
        EmptyCorpus: the split has no function, or no variant that the globs allow.
        OutputError: the disk is full, or the folder cannot be written.
    """
    parts = _parts(data, split)
    cache = folder / _cache_name(data, split, tokenizer)
    if not (cache / "cache.json").exists():
        for first in range(0, len(parts), world):  # in step, since a barrier may end the build
            for part in parts[first + rank : first + rank + 1]:
                if rank == 0:
                    print(f"tokenising {part.shard} for {data.task}", flush=True)
                _write_part(part, _selection(parts, data.max_functions), data, tokenizer, cache)
            barrier()
        if rank == 0:
            _publish(cache, parts, data, tokenizer)
        barrier()
    if not json.loads((cache / "cache.json").read_text())["parts"]:
        raise EmptyCorpus(
            f"no function of corpus {data.corpus} gives a text of task {data.task} from variants that match "
            f"{', '.join(data.variants)}",
            remedy="correct `variants` (and `answers`) in the stage's data; corpus-builder stats lists a "
            "corpus's variants",
        )
    return TokenCache(cache)


def assemblies(cache: TokenCache, data: DataConfig, split: str) -> Iterator[Callable[[], str]]:
    """For each document of `build_cache`, in order, what makes its assembly: only what is asked for is made.

    Raises:
        ShardError: the corpus is missing or damaged.
    """
    functions = (cache.documents_of(number) for number in range(cache.num_functions))
    own = next(functions, None)
    for part in _parts(data, split):
        for record in read_shard(part.shard):
            if own is None:
                return
            if record.key == cache.keys[own[0]]:
                for document in own:
                    variant = str(cache.variants[document])
                    yield functools.partial(
                        assembly_of, record, variant, _task(data), hide_numbers=data.hide_numbers
                    )
                own = next(functions, None)


def estimate_tokens(data: DataConfig, split: str, tokenizer: Any, *, num_functions: int = 64) -> float:
    """About how many tokens the cache would hold, from functions at the start of each of some shards.

    Raises:
        ShardError: the corpus is missing or damaged.
        EmptyCorpus: the split has no function.
    """
    parts = _parts(data, split)
    read = parts[:: -(-len(parts) // num_functions)]
    sample = [
        record
        for part in read
        for record in itertools.islice(read_shard(part.shard), -(-num_functions // len(read)))
    ]
    entries = (_examples if data.task in EXAMPLE_TASKS else _documents)(iter(sample), data, tokenizer)
    num_tokens = sum(len(entry.ids) for entry in entries)
    return num_tokens / len(sample) * int(_selection(parts, data.max_functions).sum())


def _parts(data: DataConfig, split: str) -> list[_Part]:
    parts: list[_Part] = []
    first = 0
    for entry in load_index(data.corpus).shards:
        if entry.split == split:
            name = f"part-{len(parts):05d}"
            parts.append(_Part(name, data.corpus / entry.name, first, entry.num_functions))
            first += entry.num_functions
    if first == 0:
        raise EmptyCorpus(
            f"corpus {data.corpus} has no function in split {split!r}",
            remedy="add projects, or fix a project's `split` in the corpus config",
        )
    return parts


def _selection(parts: list[_Part], max_functions: int | None) -> npt.NDArray[np.bool_]:
    """Which functions of the split are used: all, or `max_functions` evenly spread ones."""
    total = sum(part.num_functions for part in parts)
    if max_functions is None or max_functions >= total:
        return np.ones(total, dtype=bool)
    selected = np.zeros(total, dtype=bool)
    selected[np.arange(max_functions) * total // max_functions] = True
    return selected


def _cache_name(data: DataConfig, split: str, tokenizer: Any) -> str:
    content = {
        "schema": _SCHEMA_VERSION,
        "corpus": load_index(data.corpus).sha256(),
        "tokenizer": hashlib.sha256(_encoder(tokenizer).to_str().encode()).hexdigest(),
        "pad": tokenizer.pad_token_id,
        "data": data.model_dump(mode="json", exclude={"corpus", "weight"}),
        "template": tokenizer.chat_template if data.prompt == "chat" else None,
        "split": split,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{split}-{data.task}-{digest[:16]}"


def _encoder(tokenizer: Any, *, chat: bool = False) -> Tokenizer:
    """The tokenizer's backend without whatever truncation or padding a caller left switched on.

    `</s>` in a text is four characters of C and ends nothing; a chat template writes such tokens as text.
    """
    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = not chat
    return encoder


def _write_part(
    part: _Part, selected: npt.NDArray[np.bool_], data: DataConfig, tokenizer: Any, cache: Path
) -> None:
    """Write one shard's arrays, unless a killed build had finished them."""
    target = cache / part.name
    own = selected[part.first_function : part.first_function + part.num_functions]
    if target.exists() or not own.any():
        return
    records = (record for record, is_used in zip(read_shard(part.shard), own, strict=True) if is_used)
    arrays = _encode(records, data, tokenizer)
    temporary = cache / f".{part.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for name, array in arrays.items():
        with atomic_output(temporary / f"{name}.npy") as stream:
            np.save(stream, array)
    os.replace(temporary, target)


class _Entry(NamedTuple):
    """What a cache holds of one document."""

    ids: list[int]
    key: str
    variant: str
    body_sha256: str
    num_prompt: int = 0
    is_apart: bool = False
    project: str = ""
    """Of documents; examples do without."""


def _encode(
    records: Iterator[FunctionRecord], data: DataConfig, tokenizer: Any
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one part."""
    entries = (_examples if data.task in EXAMPLE_TASKS else _documents)(records, data, tokenizer)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    ids: list[npt.NDArray[Any]] = []
    rows: list[tuple[str, str, str, int, int, bool]] = []
    for entry in entries:
        beat()
        ids.append(np.array(entry.ids, dtype=dtype))
        body = int.from_bytes(bytes.fromhex(entry.body_sha256[:16]), "big", signed=True)
        rows.append((entry.key, entry.project, entry.variant, body, entry.num_prompt, entry.is_apart))
    keys, projects, variants, bodies, prompts, apart = zip(*rows, strict=True) if rows else ((),) * 6
    return {
        "tokens": np.concatenate([np.empty(0, dtype), *ids]),
        "starts": np.cumsum([0, *map(len, ids)]),
        "keys": np.array(keys, dtype=str),
        "projects": np.array(projects, dtype=str),
        "variants": np.array(variants, dtype=str),
        "bodies": np.array(bodies, dtype=np.int64),
        "prompt_lengths": np.array(prompts, dtype=np.int32),
        "are_apart": np.array(apart, dtype=bool),
    }


def _documents(records: Iterator[FunctionRecord], data: DataConfig, tokenizer: Any) -> Iterator[_Entry]:
    encoder = _encoder(tokenizer)
    texts = itertools.chain.from_iterable(
        documents(record, _task(data), data.variants, hide_numbers=data.hide_numbers) for record in records
    )
    while batch := list(itertools.islice(texts, _DOCUMENTS_AT_ONCE)):
        encoded = encoder.encode_batch_fast([document.text for document in batch])
        for item, document in zip(encoded, batch, strict=True):
            yield _Entry(
                item.ids, document.key, document.variant, document.body_sha256, project=document.project
            )


def _task(data: DataConfig) -> DocumentTask:
    assert data.task == "completion" or data.task == "retrieval" or data.task == "events"
    return data.task


def _examples(records: Iterator[FunctionRecord], data: DataConfig, tokenizer: Any) -> Iterator[_Entry]:
    chat = data.prompt == "chat"
    encoder = _encoder(tokenizer, chat=chat)
    shown = (example for record in records for example in examples(record, data))
    while batch := list(itertools.islice(shown, _DOCUMENTS_AT_ONCE)):
        encoded = encode(batch, tokenizer, encoder, chat=chat)
        for item, example in zip(encoded, batch, strict=True):
            yield _Entry(
                item.ids, example.key, example.variant, example.body_sha256, item.num_prompt, item.is_apart
            )


def _publish(cache: Path, parts: list[_Part], data: DataConfig, tokenizer: Any) -> None:
    """Write `cache.json`, which is what makes the cache exist; without parts where nothing matches."""
    names = [part.name for part in parts if (cache / part.name).exists()]
    names = [name for name in names if len(np.load(cache / name / "bodies.npy"))]
    with atomic_output(cache / "cache.json") as stream:
        stream.write(json.dumps({"parts": names, "pad_id": tokenizer.pad_token_id}, indent=1).encode())
