"""Documents longer than a row: a cache and a context in, what is trained on out, and a report of it. Pure.

`causal_lm` splits them into pieces. An example's answer cannot do without its prompt, so `sft` leaves long
examples out or cuts the end of their answers, as `too_long` says, and reports how many and which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from asmtrain.cache import TokenCache
from asmtrain.packing import IntArray
from corpus_builder.errors import EmptyCorpus

TooLong = Literal["split", "drop", "cut"]
_NUM_NAMED = 100


@dataclass(frozen=True)
class Fit:
    """The documents that are trained on, and how many of each one's tokens."""

    documents: IntArray
    lengths: IntArray


def fit(cache: TokenCache, context: int, too_long: TooLong) -> Fit:
    """What rows of `context` tokens are packed from; raises EmptyCorpus where no example fits."""
    documents = np.arange(len(cache))
    if too_long == "split":
        return Fit(documents, cache.lengths)
    # An answer keeps at least one token of those that the context allows.
    has_room = cache.lengths <= context if too_long == "drop" else cache.prompt_lengths < context
    if not has_room.any():
        raise EmptyCorpus(
            f"none of the {len(cache):,} examples in {cache.folder} fits a context of {context:,} tokens: "
            f"the shortest has {int(cache.lengths.min()):,}",
            remedy="raise the stage's `context`, or narrow `variants` to shorter code",
        )
    return Fit(documents[has_room], np.minimum(cache.lengths, context)[has_room])


def report(cache: TokenCache, context: int, too_long: TooLong) -> dict[str, Any]:
    """How many examples are longer than the context, what becomes of them, and the first ones' keys."""
    long = np.flatnonzero(cache.lengths > context)
    num_cut = int((cache.prompt_lengths[long] < context).sum()) if too_long == "cut" else 0
    return {
        "num_examples": len(cache),
        "num_answer_tokens": int((cache.lengths - cache.prompt_lengths).sum()),
        "num_tokenised_apart": int(cache.are_apart.sum()),
        "context": context,
        "num_too_long": len(long),
        "share_too_long": len(long) / len(cache),
        "num_dropped": len(long) - num_cut,
        "num_cut": num_cut,
        "first_too_long": [
            {
                "key": str(cache.keys[number]),
                "variant": str(cache.variants[number]),
                "num_tokens": int(cache.lengths[number]),
            }
            for number in long[:_NUM_NAMED]
        ],
    }


def describe(figures: Mapping[str, Any]) -> str:
    """One report in a few lines."""
    total, context = figures["num_examples"], figures["context"]
    lines = [f"{total:,} examples, {figures['num_answer_tokens']:,} tokens of answers"]
    if figures["num_too_long"]:
        named = figures["first_too_long"][:3]
        first = ", ".join(
            f"{item['key']} {item['variant']} ({item['num_tokens']:,} tokens)" for item in named
        )
        lines.append(
            f"  {figures['num_too_long']:,} ({figures['share_too_long']:.2%}) are longer than {context:,} "
            f"tokens: {figures['num_dropped']:,} left out, {figures['num_cut']:,} cut; first {first}"
        )
    if figures["num_tokenised_apart"]:
        lines.append(
            f"  {figures['num_tokenised_apart']:,} have prompt and answer tokenised each by itself: this "
            "tokenizer merges over their border"
        )
    return "\n".join(lines)
