"""Two ranks under DeepSpeed against plain PyTorch in one process: losses, gradients, states, weights.

Every combination runs in one pair of processes: starting them costs more than the steps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asmtrain.config import EmbeddingConfig, Full, Lora, OptimizerConfig, ShapeConfig, TrainConfig
from asmtrain.data import PairBatches, RowBatches, build_cache
from asmtrain.embedding import EmbeddingHead
from asmtrain.engine import Engine
from asmtrain.losses import info_nce, num_predicted, token_loss_sum
from asmtrain.model import (
    EmbeddingModel,
    TokenLossModel,
    attach_lora,
    enable_recompute,
    llama_config,
    load_model,
    new_model,
    set_trainable,
    write_weights,
)
from asmtrain.objectives import causal_lm_backward, causal_lm_loss, contrastive_backward, contrastive_loss
from asmtrain.schedule import lr_at
from ranks import on_ranks

SHAPE = ShapeConfig(
    vocab_size=1024, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
FULL = Full(kind="full")
LORA = Lora(kind="lora", rank=4, alpha=8, unfreeze=("lm_head",))
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=2, weight_decay=0.1, clip_norm=0.2)
EMBEDDING = EmbeddingConfig(pooling="mean", dim=16, max_tokens=48, functions_per_step=12)
STEPS = 4
# 12 rows over two ranks are micro-batches of 4 and 2 rows: uneven in rows, and more so in tokens.
ROWS = {"context": 96, "rows_per_step": 12, "micro_rows": 4, "seed": 0}
PAIRS = {"functions_per_step": 12, "micro_rows": 4, "max_tokens": 48, "seed": 0}


def _config(
    trainable: Full | Lora, *, zero_stage: int, dtype: str = "fp32", contrastive: bool = False
) -> Any:
    stage = {
        "name": "one",
        "objective": "contrastive" if contrastive else "causal_lm",
        "data": [{"corpus": "unused", "task": "completion"}],
        "trainable": trainable,
        "optimizer": OPTIMIZER,
        "steps": STEPS,
        "rows_per_step": 12,
        "micro_rows": 4,
        "embedding": EMBEDDING if contrastive else None,
    }
    return TrainConfig.model_validate(
        {
            "run": "unused",
            "model": {"shape": SHAPE, "dtype": dtype},
            "tokenizer": {"corpus": "unused"},
            "stages": [stage],
            "engine": {"zero_stage": zero_stage},
        }
    )


def _model(trainable: Full | Lora, *, dtype: str = "fp32", contrastive: bool = False) -> Any:
    model = new_model(llama_config(SHAPE), dtype=dtype, seed=1)
    torch.manual_seed(2)
    if isinstance(trainable, Lora):
        model = attach_lora(model, trainable, base="base")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: then half of the adapter's gradients are zero too
                nn.init.normal_(parameter, std=0.02)
    set_trainable(model, trainable, headless=contrastive)
    if not contrastive:
        return model
    return EmbeddingModel(model, EmbeddingHead(SHAPE.hidden_size, EMBEDDING.dim, pooling="mean"))


def _rows(cache: Any, rank: int = 0, world: int = 1) -> RowBatches:
    return RowBatches([cache], [1.0], rank=rank, world=world, **ROWS)


def _pairs(cache: Any, rank: int = 0, world: int = 1) -> PairBatches:
    return PairBatches(cache, rank=rank, world=world, **PAIRS)


# What must come out: plain PyTorch over all rows at once


def _reference(module: nn.Module, loss_of: Callable[[int], torch.Tensor]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    figures = []
    for step in range(STEPS):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, OPTIMIZER.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, OPTIMIZER, STEPS)
        optimizer.step()
        figures.append((float(loss.detach()), float(norm)))
    return figures


def _causal_lm_reference(cache: Any, trainable: Full | Lora) -> list[tuple[float, float]]:
    model, rows = _model(trainable), _rows(cache)

    def loss_of(step: int) -> torch.Tensor:
        batches = rows.step(step)
        total = torch.zeros(())
        for batch in batches:
            output = model(input_ids=batch.ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
            total = total + token_loss_sum(output.logits, batch.labels_BT)
        return total / sum(num_predicted(batch.labels_BT) for batch in batches)

    return _reference(model, loss_of)


def _contrastive_reference(cache: Any, trainable: Full | Lora) -> list[tuple[float, float]]:
    model = _model(trainable, contrastive=True)
    pairs = PairBatches(cache, **{**PAIRS, "micro_rows": 12})

    def loss_of(step: int) -> torch.Tensor:
        (batch,) = pairs.step(step)
        left = model(batch.left_ids_BT, batch.left_mask_BT)
        right = model(batch.right_ids_BT, batch.right_mask_BT)
        return info_nce(
            left,
            right,
            all_left_MD=left,
            all_right_MD=right,
            all_functions_M=batch.functions_B,
            all_left_bodies_M=batch.left_bodies_B,
            all_right_bodies_M=batch.right_bodies_B,
            offset=0,
            temperature=EMBEDDING.temperature,
        )

    return _reference(model, loss_of)


# What DeepSpeed gives


def _train(world: Any, cache: Any, case: tuple[str, str, int, str]) -> dict[str, Any]:
    """Four steps; then again from what was saved after two; and the weights, gathered."""
    objective, kind, zero_stage, dtype = case
    # Chunks of 32 tokens: 12 of them for four rows.
    logits = {"logits_at_once": 32 * SHAPE.vocab_size} if objective == "chunked" else {}
    trainable, contrastive = {"full": FULL, "lora": LORA}[kind], objective == "contrastive"
    config = _config(trainable, zero_stage=zero_stage, dtype=dtype, contrastive=contrastive)
    batches = (_pairs if contrastive else _rows)(cache, world.rank, world.size)

    def start(weights: dict[str, torch.Tensor] | None = None) -> Engine:
        model = _model(trainable, dtype=dtype, contrastive=contrastive)
        module = model if contrastive else TokenLossModel(model, **logits)
        if weights is not None:
            module.load_state_dict(weights, strict=False)
        return Engine(module, config, config.stages[0], world=world)

    def take(engine: Engine, step: int) -> tuple[float, float]:
        if contrastive:
            # Both ways: "full" keeps activations, "lora" encodes twice.
            loss, _ = contrastive_backward(
                engine, batches.step(step), EMBEDDING.temperature, recompute=kind == "lora"
            )
        else:
            loss, _ = causal_lm_backward(engine, batches.step(step))
        return loss, engine.step(lr_at(step, OPTIMIZER, STEPS))

    engine = start()
    names = [name for name, _ in engine.module.named_parameters()]
    first = [take(engine, step) for step in range(2)]
    weights, state = _everywhere(engine.gather(engine.module, names)), engine.optimizer_state()
    second = [take(engine, step) for step in range(2, STEPS)]
    engine.close()
    engine = start(weights)
    engine.load_optimizer_state(state)
    resumed = [take(engine, step) for step in range(2, STEPS)]
    engine.train(False)
    with torch.no_grad():
        if contrastive:
            loss = contrastive_loss(engine, batches.step(0), EMBEDDING.temperature)
        else:
            loss = causal_lm_loss(engine, batches.step(0))
    final = engine.gather(engine.module, names)
    engine.close()
    return {"figures": first + second, "resumed": resumed, "weights": final, "loss": loss}


def _everywhere(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rank 0's tensors, on every rank."""
    box: list[Any] = [tensors]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _train_all(world: Any, cache_folder: Path, cases: Sequence[tuple[str, str, int, str]]) -> dict[Any, Any]:
    from asmtrain.cache import TokenCache

    return {case: _train(world, TokenCache(cache_folder), case) for case in cases}


EXACT = [
    (objective, kind, zero_stage, "fp32")
    for objective in ("causal_lm", "chunked", "contrastive")
    for kind in ("full", "lora")
    for zero_stage in range(4)
]
ROUNDED = [("causal_lm", "lora", zero_stage, "bf16") for zero_stage in range(4)]


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = _config(FULL, zero_stage=0).stages[0].data[0].model_copy(update={"corpus": tiny_corpus})
    return build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def results(cache: Any) -> dict[Any, Any]:
    return on_ranks(2, _train_all, cache.folder, EXACT + ROUNDED)


@pytest.fixture(scope="module")
def references(cache: Any) -> dict[Any, Any]:
    kinds = {"full": FULL, "lora": LORA}
    of = {"causal_lm": _causal_lm_reference, "contrastive": _contrastive_reference}
    figures = {(o, k): of[o](cache, kinds[k]) for o in of for k in kinds}
    return figures | {("chunked", kind): figures["causal_lm", kind] for kind in kinds}


def test_the_micro_batches_are_uneven(cache: Any) -> None:
    counts = [
        [num_predicted(batch.labels_BT) for batch in _rows(cache, rank, 2).step(0)] for rank in range(2)
    ]
    assert len({count for per_rank in counts for count in per_rank}) == 4
    assert sum(counts[0]) != sum(counts[1])


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_two_ranks_take_the_steps_of_one_process(
    case: tuple[str, str, int, str], results: Any, references: Any
) -> None:
    expected = references[case[:2]]
    assert expected[0][1] > OPTIMIZER.clip_norm, "clipping must take part in what is compared"
    for (loss, norm), (expected_loss, expected_norm) in zip(results[case]["figures"], expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=2e-6)
        assert norm == pytest.approx(expected_norm, rel=2e-4)


@pytest.mark.parametrize("case", ROUNDED, ids=str)
def test_bf16_follows_fp32(case: tuple[str, str, int, str], results: Any, references: Any) -> None:
    for (loss, _), (expected_loss, _) in zip(results[case]["figures"], references[case[:2]], strict=True):
        assert loss == pytest.approx(expected_loss, rel=5e-3)
    assert {tensor.dtype for tensor in results[case]["weights"].values()} == {torch.bfloat16}


@pytest.mark.parametrize("case", EXACT + ROUNDED, ids=str)
def test_saved_state_goes_on_bit_for_bit(case: tuple[str, str, int, str], results: Any) -> None:
    assert results[case]["resumed"] == results[case]["figures"][2:]


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_gathered_weights_are_whole_and_equal(case: tuple[str, str, int, str], results: Any) -> None:
    expected = results[(*case[:2], 0, "fp32")]["weights"]
    assert set(results[case]["weights"]) == set(expected)
    for name, tensor in results[case]["weights"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_loss_without_gradients_is_the_same_loss(case: tuple[str, str, int, str], results: Any) -> None:
    figures = results[case]["figures"]
    assert results[case]["loss"] < figures[0][0]  # of step 0's rows, after four steps
    assert results[case]["loss"] == pytest.approx(results[(*case[:2], 0, "fp32")]["loss"], rel=1e-5)


def _layer_passes(world: Any, folder: Path) -> int:
    """How often a step runs a layer of a loaded model that is to recompute its activations."""
    config = _config(FULL, zero_stage=2)
    model = load_model(str(folder), dtype="fp32")
    enable_recompute(model)
    engine = Engine(model, config, config.stages[0], world=world)
    passes: list[None] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(None))
    engine.backward(engine(input_ids=torch.arange(24).view(2, 12), use_cache=False).logits.mean())
    return len(passes)


def test_a_loaded_model_recomputes_where_it_is_told_to(tmp_path: Path) -> None:
    """transformers loads models in evaluation mode, in which it would not."""
    model = _model(FULL)
    write_weights(tmp_path, model, dict(model.named_parameters()))
    assert on_ranks(1, _layer_passes, tmp_path) == 2
