"""Rows split over ranks: the losses, gradients and steps of one process; words for what cannot be split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asmtrain.attention import use_within_documents
from asmtrain.cache import TokenCache
from asmtrain.config import TrainConfig
from asmtrain.data import RowBatches, build_cache
from asmtrain.engine import Engine, accumulation
from asmtrain.errors import ConfigError, LaunchError
from asmtrain.evaluation import Validation
from asmtrain.model import TokenLossModel, enable_recompute
from asmtrain.report import read_steps
from asmtrain.rowlosses import causal_lm_backward
from asmtrain.schedule import lr_at
from asmtrain.stage import _check_heads
from asmtrain.ulysses import row_share
from ranks import finish_ranks, on_ranks, start_ranks
from test_engine import FULL, LORA, OPTIMIZER, ROWS, STEPS, _causal_lm_reference, _config, _model
from test_train import run_config

CASES = [(kind, zero_stage, False) for kind in ("full", "lora") for zero_stage in range(4)] + [
    ("lora", 3, True)
]


def _steps(world: Any, folder: Path, sharing: int, cases: Sequence[Any]) -> dict[Any, list[Any]]:
    """Loss and gradient norm of each step, and the last loss without gradients."""
    share, cache = row_share(world, sharing), TokenCache(folder)
    rows = RowBatches([cache], [1.0], rank=world.rank // sharing, world=world.size // sharing, **ROWS)
    results = {}
    for kind, zero_stage, recompute in cases:
        config = _config({"full": FULL, "lora": LORA}[kind], zero_stage=zero_stage)
        config = config.model_copy(
            update={"engine": config.engine.model_copy(update={"sequence_parallel": sharing})}
        )
        model = _model(config.stages[0].trainable)
        use_within_documents(model)
        if recompute:
            enable_recompute(model)
        engine = Engine(TokenLossModel(model), config, config.stages[0], world=world)
        figures: list[Any] = []
        for step in range(STEPS):
            taken = causal_lm_backward(engine, rows.step(step), share)
            figures.append((taken.loss, engine.step(lr_at(step, OPTIMIZER, STEPS))))
        engine.train(False)
        with torch.no_grad():
            figures.append((Validation(rows, ["one"], 12).measure(engine, share).loss, 0.0))
        engine.close()
        results[kind, zero_stage, recompute] = figures
    return results


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = _config(FULL, zero_stage=0).stages[0].data[0].model_copy(update={"corpus": tiny_corpus})
    return build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("ranks", "sharing", "cases"),
    [(2, 2, CASES), (4, 2, CASES[2:3]), (4, 4, [("lora", 3, False)])],  # at last fewer key heads than ranks
)
def test_ranks_that_share_rows_take_the_steps_of_one_process(
    ranks: int, sharing: int, cases: Sequence[Any], cache: Any
) -> None:
    found = on_ranks(ranks, _steps, cache.folder, sharing, cases)
    references = {kind: _causal_lm_reference(cache, {"full": FULL, "lora": LORA}[kind]) for kind, *_ in cases}
    for case, (*steps, (last_loss, _)) in found.items():
        assert steps == [pytest.approx(pair, rel=2e-5) for pair in references[case[0]]], case
        assert 0 < last_loss < steps[0][0], case


def test_a_run_with_shared_rows_gives_the_losses_of_one_rank(tiny_corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, tiny_corpus)
    for name, ranks in (("one", 1), ("two", 2)):
        settings = (
            f"run={tmp_path / name}",
            f"engine.sequence_parallel={ranks}",
            "stages.lora.trainable.dropout=0",
        )
        options = [word for setting in settings for word in ("--set", setting)]
        codes, said = finish_ranks(start_ranks(ranks, ["train", str(config), *options]))
        assert codes == [0] * ranks, said
    one, two = ([step["loss"] for step in read_steps(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_what_cannot_be_split_is_named() -> None:
    raw = yaml.safe_load(_config(FULL, zero_stage=2).model_dump_json())
    raw["engine"]["sequence_parallel"] = 3
    config = TrainConfig.model_validate(raw | {"stages": [raw["stages"][0] | {"context": 96}]})
    with pytest.raises(LaunchError, match=r"sequence_parallel is 3, which does not divide 4 ranks"):
        accumulation(config, config.stages[0], 4)
    with pytest.raises(LaunchError, match=r"rows_per_step is 12, which 5 groups of 3 ranks"):
        accumulation(config, config.stages[0], 15)
    with pytest.raises(ValueError, match="does not divide its context of 1024"):
        TrainConfig.model_validate(raw)


def test_heads_that_cannot_be_split_are_named() -> None:
    with pytest.raises(ConfigError, match="sequence_parallel is 3, which does not divide the 4 attention"):
        _check_heads(_model(FULL), 3)
