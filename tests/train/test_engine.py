"""Two ranks under DeepSpeed against plain PyTorch in one process: losses, gradients, states, weights.

Every combination runs in one pair of processes: starting them costs more than the steps.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from asmtrain.config import EmbeddingConfig, Full, Lora, OptimizerConfig, ShapeConfig, TrainConfig
from asmtrain.contrast import contrastive_backward, contrastive_loss, step_loss
from asmtrain.data import RowBatches, build_cache
from asmtrain.embedding import new_head
from asmtrain.engine import Engine
from asmtrain.evaluation import Validation
from asmtrain.losses import num_predicted, token_loss_sum
from asmtrain.model import (
    EmbeddingModel,
    TokenLossModel,
    attach_lora,
    backbone,
    enable_recompute,
    extended,
    llama_config,
    load_adapter,
    load_model,
    merge_lora,
    new_model,
    result_names,
    set_attention,
    set_trainable,
    write_weights,
)
from asmtrain.pairs import PairBatches
from asmtrain.rowlosses import causal_lm_backward
from asmtrain.schedule import lr_at
from ranks import on_ranks
from test_losses import naive_info_nce

SHAPE = ShapeConfig(
    vocab_size=1024, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
FULL = Full(kind="full")
LORA = Lora(kind="lora", rank=4, alpha=8, unfreeze=("lm_head",))
KINDS: dict[str, Full | Lora] = {
    "full": FULL,
    "lora": LORA,
    "rslora": LORA.model_copy(update={"rslora": True}),
    "dora": LORA.model_copy(update={"dora": True, "unfreeze": ()}),
    "unfrozen": LORA.model_copy(update={"unfreeze": ("embed_tokens", "lm_head")}),
    "tokens": LORA.model_copy(update={"unfreeze": ()}),
}
NEW_TOKENS = 64
"""Of the kind "tokens": the last of the vocabulary, whose rows are trained beside the adapter."""
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=2, weight_decay=0.1, clip_norm=0.03)
_PLAIN = EmbeddingConfig(pooling="mean", dim=16, max_tokens=48, functions_per_step=12)
EMBEDDINGS = {
    "contrastive": _PLAIN.model_copy(update={"matryoshka": (8,)}),
    "contrastive_all": _PLAIN.model_copy(
        update={
            "pooling": "learned",
            "attention": "bidirectional",
            "members": 4,
            "variants": 3,
            "neighbours": 0.5,
            "false_negative_margin": 0.1,
            "token_dropout": 0.1,
        }
    ),
}
"""By objective of a case: two lengths of vectors, and all that members may have beside."""
STEPS = 4
# 12 rows over two ranks are micro-batches of 4 and 2 rows: uneven in rows, and more so in tokens.
ROWS = {"context": 96, "rows_per_step": 12, "micro_rows": 4, "seed": 0}
PAIRS = {"functions_per_step": 12, "micro_rows": 4, "max_tokens": 48, "seed": 0}


def _config(
    trainable: Full | Lora,
    *,
    zero_stage: int,
    dtype: str = "fp32",
    embedding: EmbeddingConfig | None = None,
) -> Any:
    stage = {
        "name": "one",
        "objective": "contrastive" if embedding else "causal_lm",
        "data": [{"corpus": "unused", "task": "completion"}],
        "trainable": trainable,
        "optimizer": OPTIMIZER,
        "steps": STEPS,
        "rows_per_step": 12,
        "micro_rows": 4,
        "embedding": embedding,
    }
    return TrainConfig.model_validate(
        {
            "run": "unused",
            "model": {"shape": SHAPE, "dtype": dtype},
            "tokenizer": {"corpus": "unused"},
            "stages": [stage],
            "engine": {"zero_stage": zero_stage % OFFLOAD, "offload_optimizer": zero_stage >= OFFLOAD},
            # DeepSpeed would keep every tensor of so small a model whole.
            "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
        }
    )


def _base(trainable: Full | Lora, dtype: str = "fp32") -> Any:
    config = llama_config(SHAPE)
    if trainable == KINDS["tokens"]:
        extended(config, NEW_TOKENS, first=SHAPE.vocab_size - NEW_TOKENS)
    return new_model(config, dtype=dtype, seed=1)


def _model(trainable: Full | Lora, *, dtype: str = "fp32", embedding: EmbeddingConfig | None = None) -> Any:
    model = _base(trainable, dtype)
    torch.manual_seed(2)
    if isinstance(trainable, Lora):
        model = attach_lora(model, trainable, base="base")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: then half of the adapter's gradients are zero too
                nn.init.normal_(parameter, std=0.02)
    set_trainable(model, trainable, headless=embedding is not None)
    set_attention(backbone(model).config, embedding)
    if embedding is None:
        return model
    return EmbeddingModel(model, new_head(SHAPE.hidden_size, embedding))


def _rows(cache: Any, rank: int = 0, world: int = 1) -> RowBatches:
    return RowBatches([cache], [1.0], rank=rank, world=world, **ROWS)


def _pairs(embedding: EmbeddingConfig, cache: Any, rank: int = 0, world: int = 1, **changes: Any) -> Any:
    settings = {key: getattr(embedding, key) for key in ("variants", "neighbours", "token_dropout")}
    return PairBatches([cache], [1.0], rank=rank, world=world, **{**PAIRS, **settings, **changes})


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


def _contrastive_reference(
    cache: Any, trainable: Full | Lora, embedding: EmbeddingConfig
) -> list[tuple[float, float]]:
    """Each text by itself, without padding; each length of vectors by the naive loss."""
    model = _model(trainable, embedding=embedding)
    pairs = _pairs(embedding, cache, micro_rows=12)

    def vector(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ids_1T = ids[mask == 1][None]
        return model(ids_1T, torch.ones_like(ids_1T))[0]

    def loss_of(step: int) -> torch.Tensor:
        (batch,) = pairs.step(step)
        texts = zip(batch.ids_BKT.flatten(0, 1), batch.mask_BKT.flatten(0, 1), strict=True)
        vectors = torch.stack([vector(*text) for text in texts]).view(12, embedding.variants, -1)
        losses = [
            naive_info_nce(
                nn.functional.normalize(part[share], dim=-1),
                batch.clusters_B[share],
                batch.bodies_BK[share],
                temperature=embedding.temperature,
                margin=embedding.false_negative_margin,
            )
            for share, part in _parts(vectors, batch.places_B, embedding)
        ]
        return torch.stack(losses).mean()

    return _reference(model, loss_of)


def _parts(
    vectors: torch.Tensor, places_B: torch.Tensor, embedding: EmbeddingConfig
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What enters the loss: functions, and the numbers of their vectors."""
    drawn = places_B.argsort()
    if embedding.members > 1:
        shares, slices = drawn.chunk(embedding.members), vectors.chunk(embedding.members, dim=-1)
        return list(zip(shares, slices, strict=True))
    return [(drawn, vectors[..., :length]) for length in (embedding.dim, *embedding.matryoshka)]


# What DeepSpeed gives


Case = tuple[str, str, int, str]
"""Objective, what is trained, ZeRO stage (and `OFFLOAD`), dtype."""
OFFLOAD = 10
"""Added to a ZeRO stage: its optimizer states in CPU memory."""


class _Run:
    """A case on this rank."""

    def __init__(self, world: Any, cache: Any, case: Case) -> None:
        objective, kind, zero_stage, self.dtype = case
        # Chunks of 32 tokens: 12 of them for four rows.
        self.logits = {"logits_at_once": 32 * SHAPE.vocab_size} if objective == "chunked" else {}
        self.world, self.recompute, self.embedding = world, kind == "lora", EMBEDDINGS.get(objective)
        self.trainable = KINDS[kind]
        self.config = _config(
            self.trainable, zero_stage=zero_stage, dtype=self.dtype, embedding=self.embedding
        )
        batches_of = partial(_pairs, self.embedding) if self.embedding else _rows
        self.batches = batches_of(cache, world.rank, world.size)
        self.loss_of = partial(step_loss, embedding=self.embedding)

    def start(self, saved: Path | None = None) -> Engine:
        model = _model(self.trainable, dtype=self.dtype, embedding=self.embedding)
        module = model if self.embedding else TokenLossModel(model, **self.logits)
        if saved:
            module.load_state_dict(load_file(saved / "weights"), strict=False)
        engine = Engine(module, self.config, self.config.stages[0], world=self.world)
        if saved:
            own = f"rank-{self.world.rank}"
            engine.load_optimizer_state(sorted(saved.glob("rank-*"), key=lambda path: path.name != own))
        return engine

    def take(self, engine: Engine, step: int) -> tuple[float, float]:
        batches = self.batches.step(step)
        if self.embedding:
            # Both ways: "full" keeps activations, "lora" encodes twice.
            taken = contrastive_backward(engine, batches, self.loss_of, recompute=self.recompute)
        else:
            taken = causal_lm_backward(engine, batches)
        return taken.loss, engine.step(lr_at(step, OPTIMIZER, STEPS))

    def save(self, engine: Engine, folder: Path) -> None:
        weights = engine.gather(engine.module, _names(engine))
        if self.world.is_main:
            folder.mkdir(parents=True)
            save_file(weights, folder / "weights")
        torch.distributed.barrier()
        save_file(engine.optimizer_state(), folder / f"rank-{self.world.rank}")
        torch.distributed.barrier()

    def loss(self, engine: Engine) -> float:
        engine.train(False)
        with torch.no_grad():
            if self.embedding:
                return contrastive_loss(engine, self.batches.step(0), self.loss_of)
            return Validation(self.batches, ["one"], 12).measure(engine).loss


def _names(engine: Engine) -> list[str]:
    return [name for name, _ in engine.module.named_parameters()]


def _train(world: Any, cache: Any, case: Case, folder: Path) -> dict[str, Any]:
    """Four steps; then again from what was saved after two; and the weights, gathered."""
    run = _Run(world, cache, case)
    engine = run.start()
    first = [run.take(engine, step) for step in range(2)]
    run.save(engine, folder)
    second = [run.take(engine, step) for step in range(2, STEPS)]
    engine.close()
    engine = run.start(folder)
    resumed = [run.take(engine, step) for step in range(2, STEPS)]
    loss, final = run.loss(engine), engine.gather(engine.module, _names(engine))
    engine.close()
    return {"figures": first + second, "resumed": resumed, "weights": final, "loss": loss}


def _train_all(world: Any, cache_folder: Path, cases: Sequence[Case], saved: Path) -> dict[Case, Any]:
    from asmtrain.cache import TokenCache

    cache = TokenCache(cache_folder)
    return {case: _train(world, cache, case, saved / _folder(case)) for case in cases}


def _folder(case: Case) -> str:
    return "-".join(map(str, case))


def _go_on(
    world: Any, cache_folder: Path, saved: Path, moves: Sequence[tuple[Case, Case]]
) -> dict[tuple[Case, Case], list[tuple[float, float]]]:
    """The last two steps of cases, from what other cases saved after two."""
    from asmtrain.cache import TokenCache

    taken = {}
    for before, now in moves:
        run = _Run(world, TokenCache(cache_folder), now)
        engine = run.start(saved / _folder(before))
        taken[before, now] = [run.take(engine, step) for step in range(2, STEPS)]
        engine.close()
    return taken


EXACT = [
    (objective, kind, zero_stage, "fp32")
    for objective in ("causal_lm", "chunked", "contrastive", "contrastive_all")
    for kind in ("full", "lora")
    for zero_stage in range(4)
]
EXACT += [("causal_lm", kind, zero_stage, "fp32") for kind in ("rslora", "dora") for zero_stage in (0, 3)]
EXACT += [
    ("causal_lm", kind, zero_stage, "fp32") for kind in ("unfrozen", "tokens") for zero_stage in range(4)
]
ROUNDED = [("causal_lm", kind, stage, "bf16") for kind in ("lora", "unfrozen") for stage in range(4)]
ROUNDED += [("causal_lm", kind, zero_stage, "bf16") for kind in ("dora", "tokens") for zero_stage in (0, 3)]
ADAPTERS = [case for case in EXACT + ROUNDED if case[0] == "causal_lm" and case[1] != "full"]
OFFLOADED = [
    ("causal_lm", kind, OFFLOAD + zero_stage, dtype)
    for kind, dtype in (("full", "fp32"), ("lora", "bf16"))
    for zero_stage in (2, 3)
]


@pytest.fixture(scope="module")
def cache(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = _config(FULL, zero_stage=0).stages[0].data[0].model_copy(update={"corpus": tiny_corpus})
    return build_cache(data, "train", tiny_tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases save on two ranks after two steps."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def results(cache: Any, saved: Path) -> dict[Any, Any]:
    return on_ranks(2, _train_all, cache.folder, EXACT + ROUNDED + OFFLOADED, saved)


@pytest.fixture(scope="module")
def references(cache: Any) -> dict[Any, Any]:
    of = {"causal_lm": _causal_lm_reference} | {
        objective: partial(_contrastive_reference, embedding=embedding)
        for objective, embedding in EMBEDDINGS.items()
    }
    figures = {(o, k): of[o](cache, KINDS[k]) for o, k in {case[:2] for case in EXACT} if o in of}
    return figures | {("chunked", kind): figures["causal_lm", kind] for kind in ("full", "lora")}


def test_the_micro_batches_are_uneven(cache: Any) -> None:
    counts = [
        [num_predicted(batch.labels_BT) for batch in _rows(cache, rank, 2).step(0)] for rank in range(2)
    ]
    assert len({count for per_rank in counts for count in per_rank}) == 4
    assert sum(counts[0]) != sum(counts[1])


@pytest.mark.parametrize("case", EXACT + [case for case in OFFLOADED if case[3] == "fp32"], ids=str)
def test_two_ranks_take_the_steps_of_one_process(
    case: tuple[str, str, int, str], results: Any, references: Any
) -> None:
    expected = references[case[:2]]
    assert expected[0][1] > OPTIMIZER.clip_norm, "clipping must take part in what is compared"
    for (loss, norm), (expected_loss, expected_norm) in zip(results[case]["figures"], expected, strict=True):
        # Texts of several lengths are padded and masked, and by themselves not: another kernel's rounding.
        assert loss == pytest.approx(expected_loss, rel=2e-5 if case[0] == "contrastive_all" else 2e-6)
        assert norm == pytest.approx(expected_norm, rel=2e-4)


@pytest.mark.parametrize("case", ROUNDED + [case for case in OFFLOADED if case[3] == "bf16"], ids=str)
def test_bf16_follows_fp32(case: tuple[str, str, int, str], results: Any, references: Any) -> None:
    for (loss, _), (expected_loss, _) in zip(results[case]["figures"], references[case[:2]], strict=True):
        assert loss == pytest.approx(expected_loss, rel=5e-3)
    assert {tensor.dtype for tensor in results[case]["weights"].values()} == {torch.bfloat16}


@pytest.mark.parametrize("case", EXACT + ROUNDED + OFFLOADED, ids=str)
def test_saved_state_goes_on_bit_for_bit(case: tuple[str, str, int, str], results: Any) -> None:
    assert results[case]["resumed"] == results[case]["figures"][2:]


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_gathered_weights_are_whole_and_equal(case: tuple[str, str, int, str], results: Any) -> None:
    expected = results[(*case[:2], 0, "fp32")]["weights"]
    assert set(results[case]["weights"]) == set(expected)
    for name, tensor in results[case]["weights"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_what_is_trained_moves_and_nothing_else(case: tuple[str, str, int, str], results: Any) -> None:
    _, kind, _, dtype = case
    before, after = _model(KINDS[kind], dtype=dtype), results[case]["weights"]
    moved = {name for name, old in before.named_parameters() if not torch.equal(old, after[f"lm.{name}"])}
    assert moved == {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    beside = {name.rpartition("model.")[2] for name in moved if "lora_" not in name}
    parts = {
        "unfrozen": ("modules_to_save.default.weight", {"embed_tokens", "lm_head"}),
        "tokens": ("token_adapter.trainable_tokens_delta.default", {"embed_tokens", "lm_head"}),
        "dora": ("", set()),
    }
    ending, modules = parts.get(kind, ("modules_to_save.default.weight", {"lm_head"}))
    assert beside == {f"{module}.{ending}" for module in modules}


@pytest.mark.parametrize("case", ADAPTERS, ids=str)
def test_a_result_reloads_and_merges_to_the_logits_that_were_trained(
    case: tuple[str, str, int, str], results: Any, tmp_path: Path
) -> None:
    _, kind, _, dtype = case
    trainable, ids = KINDS[kind], torch.arange(900, 1000).view(2, 50)
    model = _model(trainable, dtype=dtype)
    TokenLossModel(model).load_state_dict(results[case]["weights"], strict=False)
    expected = model(input_ids=ids).logits
    parameters = dict(model.named_parameters())
    write_weights(tmp_path, model, {name: parameters[name].detach() for name in result_names(model)})
    loaded = load_adapter(_base(trainable, dtype), tmp_path, trainable, base="base")
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    merged = merge_lora(loaded)(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=0, atol=2e-6 if dtype == "fp32" else 0.02)
    assert (expected - _base(trainable, dtype)(input_ids=ids).logits).abs().max() > 0.03


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_loss_without_gradients_is_the_same_loss(case: tuple[str, str, int, str], results: Any) -> None:
    figures = results[case]["figures"]
    assert results[case]["loss"] < figures[0][0]  # of step 0's rows, after four steps
    assert results[case]["loss"] == pytest.approx(results[(*case[:2], 0, "fp32")]["loss"], rel=1e-5)


def _stage_changed(case: Case, zero_stage: int) -> Case:
    return (*case[:2], zero_stage, case[3])


FULL_LM = [case for case in EXACT if case[:2] == ("causal_lm", "full")]
FEWER = [(case, case) for case in FULL_LM + ROUNDED]
CHANGED = [
    (case, _stage_changed(case, stage))
    for case in (FULL_LM[0], FULL_LM[2], FULL_LM[3], ROUNDED[1], ROUNDED[2])
    for stage in (0, 1, 2, 3, OFFLOAD + 2, OFFLOAD + 3)
    if stage != case[2]
]


@pytest.fixture(scope="module")
def moved(results: Any, cache: Any, saved: Path) -> dict[Any, Any]:
    """Steps 2 and 3 by number of ranks, what was saved on two of them, and how it went on."""
    return {
        (size, *move): steps
        for size, moves in ((1, FEWER + CHANGED[:4]), (2, CHANGED))
        for move, steps in on_ranks(size, _go_on, cache.folder, saved, moves).items()
    }


@pytest.mark.parametrize(
    ("size", "before", "now"), [(1, *m) for m in FEWER + CHANGED[:4]] + [(2, *m) for m in CHANGED], ids=str
)
def test_another_layout_goes_on_as_if_undisturbed(
    size: int, before: Case, now: Case, moved: Any, results: Any
) -> None:
    """On fewer ranks, at another ZeRO stage, or both."""
    exact = before[3] == "fp32"
    for (loss, norm), (expected_loss, expected_norm) in zip(
        moved[size, before, now], results[before]["figures"][2:], strict=True
    ):
        assert loss == pytest.approx(expected_loss, rel=2e-6 if exact else 2e-3)
        assert norm == pytest.approx(expected_norm, rel=2e-4 if exact else 2e-2)


def _saved_alone(
    world: Any, cache_folder: Path, cases: Sequence[Case], saved: Path
) -> dict[Case, list[tuple[float, float]]]:
    trained = _train_all(world, cache_folder, cases, saved)
    return {case: result["figures"] for case, result in trained.items()}


def test_more_ranks_go_on_as_if_undisturbed(cache: Any, tmp_path: Path) -> None:
    figures = on_ranks(1, _saved_alone, cache.folder, FULL_LM + ROUNDED, tmp_path)
    for (case, _), taken in on_ranks(2, _go_on, cache.folder, tmp_path, FEWER).items():
        exact = case[3] == "fp32"
        for (loss, _), (expected, _) in zip(taken, figures[case][2:], strict=True):
            assert loss == pytest.approx(expected, rel=2e-6 if exact else 2e-3), case


def test_each_element_is_saved_once(results: Any, saved: Path) -> None:
    for case in EXACT + ROUNDED + OFFLOADED:
        weights = load_file(saved / _folder(case) / "weights")
        counts: dict[str, int] = {}
        for file in sorted((saved / _folder(case)).glob("rank-*")):
            for key, tensor in load_file(file).items():
                name, _, rest = key.rpartition("@")
                start, _, field = rest.partition(".")
                if field == "weights":
                    counts[name] = counts.get(name, 0) + tensor.numel()
                    stored = weights[name].flatten()[int(start) : int(start) + tensor.numel()]
                    assert torch.equal(stored, tensor.to(stored.dtype)), (case, key)
        assert counts.items() <= {name: tensor.numel() for name, tensor in weights.items()}.items()
        assert len(counts) > 10, case


def test_a_checkpoint_of_an_earlier_version_is_refused(cache: Any, results: Any, saved: Path) -> None:
    folder = saved / "earlier"
    shutil.copytree(saved / _folder(FULL_LM[2]), folder)
    for file in folder.glob("rank-*"):
        save_file({"0.weights": torch.ones(3), "0.step": torch.ones(())}, file)
    with pytest.raises(Exception, match=r"CheckpointError: checkpoint .* holds no whole state of "):
        on_ranks(1, _go_on, cache.folder, saved, [(("earlier",), FULL_LM[2])])


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
