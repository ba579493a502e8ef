r"""A pre-trained model's vocabulary, extended by pieces of assembly.

In: a BPE tokenizer, texts, and the folder of its model. Out: the same tokenizer with up to N more merges and
the tokens they make, and the model with a row for each. What is learnt is BPE gone on with: the pair of
tokens that stands next to each other most often becomes one token, which saves just as many tokens as it
has places, and so on. Pairs never cross the borders of assembly's pieces: newline and mnemonic (`\nldr`),
register with its punctuation (` [sp,`), constant (never tied to what is behind it); nor those of the
tokenizer's own pre-tokenizer. A new row is the mean of the rows of its pieces.

Invariant: decoding gives the text back, as it did before; the new merges come after all old ones, so that a
text that holds no new pair has its old tokens. (Added tokens in the sense of transformers would cut words
of C in two, as `add` does `address`.) Cost: one pass over the texts, mostly a regular expression's.
"""

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig

from asmtrain.config import Dtype
from asmtrain.errors import ConfigError, ModelError
from asmtrain.model import DTYPES, extended
from asmtrain.weights import TensorFiles, copy_generation_config, model_files, model_folder, write_shards

Pair: TypeAlias = tuple[str, str]

TOKENIZER_FILE = "tokenizer.json"
_SHARD_BYTES = 5_000_000_000
_NEWLINE = "<0x0A>"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_PIECES = re.compile(
    "|".join(
        (
            r"\n[ \t]*[A-Za-z_.][\w.]*:?",
            r"[ \t]?-?(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])",
            r"[ \t]?[\[({]?[%*:$]?[A-Za-z_][\w.$@]*[\])}]*!?,?",
            r"[ \t]?[^\w\s]+",
            r"\s|\w+",
        )
    )
)
"""As `tokens` cuts assembly, but with a space before a word, where pre-trained tokenizers have it."""


def extend_tokenizer(folder: Path, texts: Iterable[str], *, num_tokens: int) -> int:
    """Add up to `num_tokens` tokens to the tokenizer of a folder; returns how many it has got.

    Raises:
        ConfigError: it is no BPE tokenizer, or the texts give nothing to join.
    """
    path = folder / TOKENIZER_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["model"]["type"] != "BPE":
        raise ConfigError(
            f"model.assembly_tokens: the tokenizer is a {content['model']['type']}, not a BPE",
            remedy="set it to 0 for this model",
        )
    words = _words(Tokenizer.from_file(str(path)), Counter(_all_pieces(texts)))
    merges = _learn_merges(words, num_tokens)
    num_added = _append(content, merges)
    if not num_added:
        raise ConfigError(
            "model.assembly_tokens: no two tokens of the corpus stand together twice",
            remedy="give a larger corpus, or set it to 0",
        )
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return num_added


def _all_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _PIECES.findall(text)


def _words(backend: Tokenizer, pieces: Counter[str]) -> Counter[tuple[str, ...]]:
    """The tokens that may be joined with each other, and how often they stand so in the texts."""
    words: Counter[tuple[str, ...]] = Counter()
    # Behind a newline, as in the middle of a text: what a tokenizer writes at a text's start is cut off.
    encodings = backend.encode_batch([f"\n{piece}" for piece in pieces], add_special_tokens=False)
    for encoding, count in zip(encodings, pieces.values(), strict=True):
        tokens = zip(encoding.tokens, encoding.word_ids, encoding.offsets, strict=True)
        inside = [(token, word) for token, word, (start, stop) in tokens if start >= 1 and stop > start]
        for (_, is_apart), group in groupby(inside, key=lambda item: (item[1], _is_other_byte(item[0]))):
            word = tuple(token for token, _ in group)
            if len(word) > 1 and not is_apart:
                words[word] += count
    return words


def _is_other_byte(token: str) -> bool:
    return token != _NEWLINE and _BYTE.fullmatch(token) is not None


def _learn_merges(words: Counter[tuple[str, ...]], num_tokens: int) -> list[Pair]:
    """The pairs to join, in their order: each the one with most places left, of equal ones the first."""
    texts, counts = [list(word) for word in words], list(words.values())
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)

    def count(number: int, sign: int) -> set[Pair]:
        pairs = list(pairwise(texts[number]))
        for pair in pairs:
            totals[pair] += sign * counts[number]
            places[pair].add(number)
        return set(pairs)

    def candidates(pairs: Iterable[Pair]) -> list[tuple[int, Pair]]:
        return [(-totals[pair], pair) for pair in pairs if totals[pair] > 1 and not _ends_number(*pair)]

    for number in range(len(texts)):
        count(number, 1)
    merges: list[Pair] = []
    heap = candidates(totals)
    heapq.heapify(heap)
    while heap and len(merges) < num_tokens:
        total, best = heapq.heappop(heap)
        if -total != totals[best]:
            continue  # counted before a merge took some of its places; its present count is in the heap
        merges.append(best)
        changed = set()
        for number in places.pop(best):
            changed |= count(number, -1)
            texts[number] = _joined(texts[number], best)
            changed |= count(number, 1)
        for candidate in candidates(changed):
            heapq.heappush(heap, candidate)
    return merges


def _ends_number(left: str, right: str) -> bool:
    """Whether a pair would tie a number to what stands behind it: a constant shall look the same anywhere."""
    return left.lstrip("-\u2581\u0120").isdigit() and not right[0].isalnum()


def _joined(text: list[str], pair: Pair) -> list[str]:
    """The text with each place of the pair as one token, from left to right."""
    result: list[str] = []
    for token in text:
        if result and (result[-1], token) == pair:
            result[-1] += token
        else:
            result.append(token)
    return result


def _append(content: dict[str, Any], merges: list[Pair]) -> int:
    """Write merges and their tokens behind those of a tokenizer.json; returns the number of new tokens."""
    vocabulary, old_merges = content["model"]["vocab"], content["model"]["merges"]
    # Added tokens keep their ids only where the model knows them too.
    vocabulary |= {token["content"]: token["id"] for token in content["added_tokens"]}
    first: int = 1 + max(vocabulary.values())
    number = first
    is_text = old_merges and isinstance(old_merges[0], str)
    for left, right in merges:
        if left + right not in vocabulary:
            vocabulary[left + right] = number
            number += 1
        old_merges.append(f"{left} {right}" if is_text else [left, right])
    if any(_NEWLINE in token for token, id in vocabulary.items() if id >= first):
        # Byte fallback decodes tokens that are one byte, not those that hold one.
        newline = {"type": "Replace", "pattern": {"String": _NEWLINE}, "content": "\n"}
        content["decoder"] = {"type": "Sequence", "decoders": [newline, content["decoder"]]}
    return number - first


def num_ids(tokenizer: Any) -> int:
    """Ids that a tokenizer may give, those of added tokens too: where new ones begin."""
    largest: int = max(tokenizer.get_vocab().values())
    return largest + 1


def new_token_pieces(folder: Path, *, first: int) -> list[list[int]]:
    """The old ids that each token from `first` on is made of, in the order of the new ids."""
    model = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))["model"]
    vocabulary = model["vocab"]
    pieces: dict[int, list[int]] = {}
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        joined = vocabulary[left + right]
        if joined >= first and joined not in pieces:
            halves = (vocabulary[left], vocabulary[right])
            pieces[joined] = [id for half in halves for id in pieces.get(half, [half])]
    return [pieces[id] for id in sorted(pieces)]


def write_extended_base(model: str, tokenizer: Path, folder: Path, *, first: int, dtype: Dtype) -> None:
    """Write the model with a row in embedding and head for each token from `first` on, in `dtype`.

    Raises:
        ModelError: there is no such model, or it has fewer rows than its tokenizer has tokens.
        ConfigError: its embedding is not where a Llama's is.
    """
    pieces = new_token_pieces(tokenizer, first=first)
    source = model_files(model)
    config = extended(AutoConfig.from_pretrained(model_folder(model)), len(pieces), first=first)
    tables = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in source.shapes]
    if "model.embed_tokens.weight" not in tables:
        raise ConfigError(
            f"model.assembly_tokens: {model} has no model.embed_tokens.weight", remedy="set it to 0"
        )
    if first > source.shapes[tables[0]][0]:
        raise ModelError(
            f"the tokenizer of {model} has {first} tokens, the model only {source.shapes[tables[0]][0]}",
            remedy="use the tokenizer that came with the model",
        )
    news = {name: _mean_rows(source, name, pieces) for name in tables}

    def rows(name: str, start: int, stop: int) -> torch.Tensor:
        if name not in news:
            return source.rows(name, start, stop)
        # A model may have had more rows than its tokenizer has tokens.
        num_old, end = min(first, source.shapes[name][0]), first + len(pieces)
        parts = [
            source.rows(name, min(start, num_old), min(stop, num_old)),
            news[name][max(start - first, 0) : max(stop - first, 0)],
            source.rows(name, max(start, end), max(stop, end)),
        ]
        return torch.cat([part.to(DTYPES[dtype]) for part in parts])

    shapes = source.shapes | {name: (config.vocab_size, *source.shapes[name][1:]) for name in tables}
    write_shards(folder, shapes, rows, dtype=DTYPES[dtype], shard_bytes=_SHARD_BYTES)
    config.dtype = DTYPES[dtype]
    config.save_pretrained(folder)
    copy_generation_config(model_folder(model), folder)


def _mean_rows(source: TensorFiles, name: str, pieces: list[list[int]]) -> torch.Tensor:
    old = {id: source.rows(name, id, id + 1).float() for id in {id for ids in pieces for id in ids}}
    return torch.cat([torch.cat([old[id] for id in ids]).mean(0, keepdim=True) for ids in pieces])
