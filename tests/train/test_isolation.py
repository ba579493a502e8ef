"""The self-check of packing lets every isolated stage start, and refuses one whose documents leak."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asmtrain.data import RowBatch, RowBatches, build_cache
from asmtrain.isolation import check_isolation, packing_gap
from asmtrain.losses import next_tokens, token_losses
from asmtrain.model import llama_config, new_model
from ranks import on_ranks
from test_engine import FULL, SHAPE, _config
from test_train import run_config


@pytest.fixture(scope="module")
def batch(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> RowBatch:
    """Two packed rows of the tiny corpus."""
    data = _config(FULL, zero_stage=0).stages[0].data[0].model_copy(update={"corpus": tiny_corpus})
    cache = build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))
    return RowBatches([cache], [1.0], context=256, rows_per_step=2, micro_rows=2, seed=0).step(0)[0]


def forward_of(model: nn.Module, **named: Callable[[RowBatch], Any]) -> Callable[[RowBatch], torch.Tensor]:
    def forward(rows: RowBatch) -> torch.Tensor:
        arguments = {"position_ids": rows.position_ids_BT, "use_cache": False}
        arguments |= {name: value(rows) for name, value in named.items()}
        return token_losses(model(input_ids=rows.ids_BT, **arguments).logits, next_tokens(rows.labels_BT))

    return forward


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_gap_tells_a_leak_from_rounding(batch: RowBatch, dtype: str, attention: str) -> None:
    model = new_model(llama_config(SHAPE), dtype=dtype, seed=1).eval()
    model.set_attn_implementation(attention)
    assert packing_gap(forward_of(model), batch) < (1e-6 if dtype == "fp32" else 1e-3)
    masked = forward_of(model, attention_mask=lambda rows: torch.ones_like(rows.ids_BT))
    assert packing_gap(masked, batch) > 1e-2
    counted = forward_of(model, position_ids=lambda rows: torch.arange(rows.ids_BT.shape[1])[None])
    assert packing_gap(counted, batch) > 1e-2


@torch.no_grad()
def test_rows_of_one_document_each_have_no_gap(batch: RowBatch) -> None:
    model = new_model(llama_config(SHAPE), dtype="fp32", seed=1).eval()
    whole = RowBatch(
        batch.ids_BT,
        torch.arange(256).expand(2, 256),
        batch.labels_BT,
        torch.zeros_like(batch.document_ids_BT),
    )
    masked = forward_of(model, attention_mask=lambda rows: torch.ones_like(rows.ids_BT))
    assert packing_gap(masked, whole) < 1e-6


def _leak_on_rank_1(world: Any, batch: RowBatch) -> None:
    model = new_model(llama_config(SHAPE), dtype="fp32", seed=1).eval()
    named = {} if world.is_main else {"attention_mask": lambda rows: torch.ones_like(rows.ids_BT)}
    check_isolation(forward_of(model), batch, dtype="fp32")
    check_isolation(forward_of(model, **named), batch, dtype="fp32")


def test_a_leak_on_any_rank_stops_all(batch: RowBatch) -> None:
    with pytest.raises(Exception, match=r"packed documents see each other|exit code 2"):
        on_ranks(2, _leak_on_rank_1, batch)


LEAKING = """
import sys
from asmtrain import cli, rowlosses
# an attention without boundaries sees whole rows
rowlosses.document_lengths = lambda document_ids_BT: [document_ids_BT.shape[1]] * len(document_ids_BT)
sys.exit(cli.main(["train", sys.argv[1]]))
"""


def test_a_run_that_leaks_takes_no_step(tiny_corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, tiny_corpus)
    done = subprocess.run(
        [sys.executable, "-c", LEAKING, config], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "error: packed documents see each other: their losses differ by 0." in done.stderr
    assert "remedy: use an attention that keeps documents apart" in done.stderr
    run = tmp_path / "run"
    assert not any((run / name).exists() for name in ("metrics.jsonl", "checkpoints", "stages"))
