"""Attention within the documents of packed rows, each by itself.

In: queries, keys and values of whole rows, and where documents end. Out: what causal attention gives each
document alone. Registered with transformers; after `use_within_documents` a model wants
`document_lengths` at each call.

Invariant: no token sees another document, whatever the position ids. Cost: the sum of the squares of the
documents' lengths, where one masked call takes the square of the row's: at 4,096 tokens and functions of 300
a tenth. Padding at the end of a row counts as a document.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AttentionInterface, PreTrainedModel

from asmtrain.ulysses import over_whole_rows

_NAME = "documents"
_VARLEN = "documents_varlen"


def use_within_documents(model: PreTrainedModel | PeftModel, name: str = _NAME) -> None:
    """Let the model attend within documents from now on."""
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation(name)


def choose_attention(
    model: PreTrainedModel | PeftModel, device: torch.device, dtype: torch.dtype, *, splits_rows: bool = False
) -> None:
    """Attend within documents: in bf16 on GPUs by the kernel that flash has for them, and on CPU.

    Rows that ranks split are attended to within documents everywhere; others by transformers' own sdpa.
    """
    if device.type == "cuda" and dtype == torch.bfloat16 and has_varlen():
        use_within_documents(model, _VARLEN)
    elif device.type == "cpu" or splits_rows:
        use_within_documents(model)


def has_varlen() -> bool:
    """Whether this torch has `varlen_attn` as it is from 2.11 on, and a device that runs it."""
    if not torch.cuda.is_available() or importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()


def document_ends(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """0, and where each document ends in the rows laid behind each other; int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


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
        _attended(*(side_HND[None] for side_HND in sides_HND), scaling=scaling, dropout=dropout)[0]
        for sides_HND in zip(*sides, strict=True)
    ]
    output_NHD = torch.cat(attended_HND, dim=1).transpose(0, 1)
    return output_NHD.reshape(rows, length, *output_NHD.shape[1:]).contiguous(), None


def _attended(
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    *,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Causal attention by a kernel that keeps no scores."""
    sides = (query_BHTD, key_BHTD, value_BHTD)
    if query_BHTD.is_meta:  # torch would plan with a kernel that keeps them, which no device takes
        attended_BHTD: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *sides, dropout, True, scale=scaling
        )[0]
        return attended_BHTD
    return F.scaled_dot_product_attention(
        *sides, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
    )


def _flat(side_BHTD: torch.Tensor) -> torch.Tensor:
    """(H, B x T, D): the rows behind each other."""
    return side_BHTD.transpose(0, 1).flatten(1, 2)


@over_whole_rows
def attend_varlen(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    document_ends: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` in one call of flash's kernel for documents: CUDA, bf16, without dropout.

    The ends come as a tensor: as a list of numbers, a compiled layer would be compiled for each batch.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, dim = query_BHTD.shape
    query_NHD, key_NHD, value_NHD = (
        side.repeat_interleave(heads // side.shape[1], dim=1).transpose(1, 2).flatten(0, 1)
        if side.shape[1] != heads
        else side.transpose(1, 2).flatten(0, 1)
        for side in (query_BHTD, key_BHTD, value_BHTD)
    )
    attended_NHD: Any = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        document_ends,
        document_ends,
        length,  # no document is longer than a row
        length,
        scale=scaling,
        window_size=(-1, 0),
    )
    return attended_NHD.view(rows, length, heads, dim), None


AttentionInterface.register(_NAME, attend)
AttentionInterface.register(_VARLEN, attend_varlen)
