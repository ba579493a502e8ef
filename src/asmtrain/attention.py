"""Attention within the documents of packed rows, each by itself.

In: queries, keys and values of whole rows, and where documents end. Out: what causal attention gives each
document alone. Registered with transformers; after `use_within_documents` a model wants
`document_lengths` at each call.

Invariant: no token sees another document, whatever the position ids. Cost: the sum of the squares of the
documents' lengths, where one masked call takes the square of the row's: at 4,096 tokens and functions of 300
a tenth. Padding at the end of a row counts as a document.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AttentionInterface, PreTrainedModel

from asmtrain.ulysses import over_whole_rows

_NAME = "documents"


def use_within_documents(model: PreTrainedModel | PeftModel) -> None:
    """Let the model attend within documents from now on."""
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation(_NAME)


def document_lengths(document_ids_BT: torch.Tensor) -> list[int]:
    """Lengths of the runs of equal ids, row after row: documents, and padding (-1) at the end of a row."""
    lengths: list[int] = []
    for row_T in document_ids_BT.cpu():
        lengths += torch.unique_consecutive(row_T, return_counts=True)[1].tolist()
    return lengths


@over_whole_rows
def attend(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    document_lengths: Sequence[int] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each document, (B, T, H, D); of each row where no lengths are given.

    Keys and values may have fewer heads than queries.
    """
    rows, _heads, length, _dim = query_BHTD.shape
    lengths = list(document_lengths) if document_lengths is not None else [length] * rows
    sides = (torch.split(_flat(side), lengths, dim=1) for side in (query_BHTD, key_BHTD, value_BHTD))
    attended_HND = [
        F.scaled_dot_product_attention(
            query_HND[None],
            key_HND[None],
            value_HND[None],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )[0]
        for query_HND, key_HND, value_HND in zip(*sides, strict=True)
    ]
    output_NHD = torch.cat(attended_HND, dim=1).transpose(0, 1)
    return output_NHD.reshape(rows, length, *output_NHD.shape[1:]).contiguous(), None


def _flat(side_BHTD: torch.Tensor) -> torch.Tensor:
    """(H, B x T, D): the rows behind each other."""
    return side_BHTD.transpose(0, 1).flatten(1, 2)


AttentionInterface.register(_NAME, attend)
