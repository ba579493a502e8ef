"""From a function's tokens and hidden states to its vector: pooling, a dense layer, unit length.

The three steps are those of sentence-transformers' Pooling, Dense (no bias, no activation) and Normalize, so
that an export as such a folder gives the same vectors. `learned` pooling is its Dense with a GLU over the
tokens, then its Pooling: folders that name classes of ours are not loaded without `trust_remote_code`.

Shapes: B functions, T tokens, H hidden size, D vector length. Masks are 1 for tokens, 0 for padding, on
either side.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from asmtrain.config import EmbeddingConfig
from asmtrain.errors import ConfigError

Pooling = Literal["mean", "max", "lasttoken", "learned"]


def mean_pool(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean of the hidden states of the tokens that are not padding: (B, H)."""
    weights_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTH.dtype)
    return (hidden_BTH * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1e-9)


def max_pool(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Greatest value that each hidden dimension takes in any token that is not padding: (B, H)."""
    return hidden_BTH.masked_fill(mask_BT.unsqueeze(-1) == 0, -torch.inf).amax(1)


def last_token_pool(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Hidden state of the last token that is not padding: (B, H)."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (mask_BT.long() * places_T).argmax(1)
    return hidden_BTH[torch.arange(len(last_B), device=mask_BT.device), last_B]


_POOLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": mean_pool,
    "max": max_pool,
    "lasttoken": last_token_pool,
}


class _SlicedLinear(nn.Linear):
    """Without bias, `copies` times `dim` wide: of each copy slice k sees slice k of the inputs alone.

    The first copy starts orthogonal slice by slice, the others at zero.
    """

    def __init__(self, hidden_size: int, dim: int, *, copies: int, members: int) -> None:
        super().__init__(hidden_size, copies * dim, bias=False)
        self.dim, self.members = dim, members
        nn.init.zeros_(self.weight)
        rows, columns = dim // members, hidden_size // members
        for at in range(members):
            own = self.weight[at * rows : (at + 1) * rows, at * columns : (at + 1) * columns]
            nn.init.orthogonal_(own)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.members == 1:
            return super().forward(states)
        outputs, inputs = (torch.arange(size, device=states.device) for size in self.weight.shape)
        of_outputs = outputs % self.dim * self.members // self.dim
        of_inputs = inputs * self.members // self.in_features
        return F.linear(states, self.weight * (of_outputs[:, None] == of_inputs))


class EmbeddingHead(nn.Module):
    """Pooling, then a dense layer without bias, then unit length.

    The dense layer starts orthogonal: as far as `dim` allows it keeps the backbone's angles.

    With `learned` pooling dimension d of a vector is the mean over tokens of sigmoid(q_d . h) (w_d . h): an
    attention whose weights are not forced to sum to 1, which unit length makes up for. The layer holds the
    w_d, then the q_d; these start at zero, which is mean pooling.

    Each of several `members` is made from its own slice of the hidden state; the dense layer's other weights
    are zero and stay so. Who only computes vectors need not know of them.
    """

    def __init__(self, hidden_size: int, dim: int, *, pooling: Pooling, members: int = 1) -> None:
        """Raises ConfigError where the hidden state has not `members` equal slices."""
        if hidden_size % members:
            raise ConfigError(
                f"a hidden state of {hidden_size} numbers has no {members} equal slices",
                remedy="set `embedding.members` to a divisor of the model's hidden size and of `dim`",
            )
        super().__init__()
        self.pooling: Pooling = pooling
        self.dim = dim
        self.dense = _SlicedLinear(hidden_size, dim, copies=2 if pooling == "learned" else 1, members=members)

    def forward(self, hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D), in the dtype of the hidden states."""
        if self.pooling == "learned":
            return F.normalize(mean_pool(F.glu(self.dense(hidden_BTH)), mask_BT), dim=-1)
        pooled_BH = _POOLS[self.pooling](hidden_BTH, mask_BT)
        return F.normalize(self.dense(pooled_BH), dim=-1)

    def of_bags(
        self, states_UH: torch.Tensor, places_N: torch.Tensor, lengths_B: torch.Tensor
    ) -> torch.Tensor:
        """The same (B, D) of texts whose N tokens, one text behind the other, have states at places of U.

        For `mean` and `learned` pooling, to which order is nothing.
        """
        values = F.glu(self.dense(states_UH)) if self.pooling == "learned" else states_UH
        pooled = F.embedding_bag(places_N, values, lengths_B.cumsum(0) - lengths_B, mode="mean")
        return F.normalize(pooled if self.pooling == "learned" else self.dense(pooled), dim=-1)


def new_head(hidden_size: int, settings: EmbeddingConfig) -> EmbeddingHead:
    """The head that a stage's settings ask for, untrained; raises ConfigError where they do not fit."""
    return EmbeddingHead(hidden_size, settings.dim, pooling=settings.pooling, members=settings.members)


def vectors_of(
    transformer: Any, head: EmbeddingHead, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Unit vectors_BD of texts that are padded on the right.

    Without layers a token's state depends on its id alone: each id of the batch is computed once, no padding.
    """
    if len(transformer.layers) or head.pooling not in ("mean", "learned"):
        vectors: torch.Tensor = head(hidden_states(transformer, ids_BT, mask_BT), mask_BT)
        return vectors
    ids_U, places_N = torch.unique(ids_BT[mask_BT.bool()], return_inverse=True)
    states_1UH = transformer(input_ids=ids_U[None], use_cache=False).last_hidden_state
    return head.of_bags(states_1UH[0], places_N, mask_BT.sum(1))


def hidden_states(transformer: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The hidden states_BTH of texts that are padded on the right.

    Where attention looks back only, no token sees the padding: without a mask the kernel is quicker, and
    what it computes for padding is never pooled.
    """
    is_causal = getattr(transformer.config, "is_causal", True)
    seen_BT = None if is_causal else mask_BT
    states: torch.Tensor = transformer(
        input_ids=ids_BT, attention_mask=seen_BT, use_cache=False
    ).last_hidden_state
    return states
