"""What the model writes by itself: a few documents of the validation split in, its way on with them out.

Of a text the first half is shown, of an example the prompt; the model goes on greedily. All ranks run the
same forward passes, as ZeRO 3 needs, and take rank 0's tokens, so that they also stop together. Invariant:
the same documents are asked at each evaluation of a stage. Cost: one forward pass a token, without a cache,
over all samples in one batch of a fixed shape.

Shapes: S samples, T tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from asmtrain import dist, notice
from asmtrain.cache import TokenCache
from asmtrain.engine import Engine
from asmtrain.metrics import Sample
from asmtrain.packing import IntArray

NEW_TOKENS = 64
_PROMPT_TOKENS = 64
"""Of a text; an example's prompt is shown whole."""


class Asked(NamedTuple):
    """A document, cut where the model is to go on."""

    part: str
    key: str
    variant: str
    prompt: list[int]
    truth: list[int]
    """What stands there."""


def choose(caches: Sequence[TokenCache], names: Sequence[str], *, context: int, count: int) -> list[Asked]:
    """`count` documents, the parts in turn, evenly spread within each; fewer where too few are fit for it."""
    new = min(NEW_TOKENS, context // 2)
    asked = []
    for number in range(count):
        part, place = number % len(caches), number // len(caches)
        cache, turns = caches[part], -(-(count - number % len(caches)) // len(caches))
        prompts = _prompt_lengths(cache, context - new)
        fit = np.flatnonzero(prompts)
        if len(fit) > place:
            document = int(fit[len(fit) * (2 * place + 1) // (2 * turns)])
            ids, cut = cache.tokens(document).tolist(), int(prompts[document])
            key, variant = str(cache.keys[document]), str(cache.variants[document])
            asked.append(Asked(names[part], key, variant, ids[:cut], ids[cut : cut + new]))
    return asked


def _prompt_lengths(cache: TokenCache, most: int) -> IntArray:
    """Tokens shown of each document; 0 of those that are of no use."""
    halves = np.where(cache.lengths >= 4, np.minimum(cache.lengths // 2, min(_PROMPT_TOKENS, most)), 0)
    lengths: IntArray = np.where(cache.prompt_lengths > 0, cache.prompt_lengths, halves)
    return np.where(lengths <= most, lengths, 0)


def write(engine: Engine, asked: Sequence[Asked], tokenizer: Any) -> list[Sample]:
    """Let the model go on with each; on all ranks together, in evaluation mode. Raises Warned."""
    if not asked:
        return []
    written = complete(
        engine, [item.prompt for item in asked], num_new=NEW_TOKENS, end=tokenizer.eos_token_id
    )

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return [
        Sample(item.part, item.key, item.variant, text(item.prompt), text(ids), text(item.truth))
        for item, ids in zip(asked, written, strict=True)
    ]


def complete(engine: Engine, prompts: Sequence[list[int]], *, num_new: int, end: int) -> list[list[int]]:
    """The likeliest next tokens, one after the other, up to and with the end token; at most `num_new`."""
    device = engine.world.device
    lengths_S = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # Padding on the right is behind all that a token sees.
    ids_ST = torch.full((len(prompts), int(lengths_S.max()) + num_new), end, device=device)
    for line, prompt in enumerate(prompts):
        ids_ST[line, : len(prompt)] = torch.tensor(prompt, device=device)
    positions_ST = torch.arange(ids_ST.shape[1], device=device).expand_as(ids_ST).contiguous()
    lines_S = torch.arange(len(prompts), device=device)
    has_ended_S = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for done in range(num_new):
        notice.heed(device)
        last_S = lengths_S + done - 1
        logits_SSV = engine(ids_ST, positions_ST, logits_at=last_S)
        tokens_S = dist.broadcast(logits_SSV[lines_S, lines_S].argmax(-1))
        ids_ST[lines_S, last_S + 1] = torch.where(has_ended_S, end, tokens_S)
        has_ended_S |= tokens_S == end
        if has_ended_S.all():
            break
    return [
        _until(row[length : length + num_new].tolist(), end)
        for row, length in zip(ids_ST, lengths_S.tolist(), strict=True)
    ]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
