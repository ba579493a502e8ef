"""Language models: weights to files and back, adapters, what is trained, what is counted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from asmtrain.config import EmbeddingConfig, Full, Lora, ModelConfig, ShapeConfig
from asmtrain.embedding import EmbeddingHead
from asmtrain.errors import ConfigError, ModelError
from asmtrain.model import (
    HEAD_FILE,
    EmbeddingModel,
    attach_lora,
    count_parameters,
    enable_recompute,
    extended,
    llama_config,
    load_adapter,
    load_head,
    load_model,
    merge_lora,
    meta_model,
    new_model,
    planned_config,
    result_names,
    set_trainable,
    write_weights,
)

SHAPE = ShapeConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2
)
FULL = Full(kind="full")
LORA = Lora(kind="lora", rank=2, alpha=4, unfreeze=("lm_head",))
IDS = torch.arange(20).view(2, 10)
KINDS = {
    "lora": LORA,
    "rslora": LORA.model_copy(update={"rslora": True}),
    "dora": LORA.model_copy(update={"dora": True}),
    "full rank": LORA.model_copy(update={"rank": 16, "targets": ("q_proj", "down_proj")}),
    "unfrozen": LORA.model_copy(update={"unfreeze": ("embed_tokens", "lm_head")}),
    "tokens": LORA.model_copy(update={"unfreeze": ()}),  # of a vocabulary that was extended by 8
}


def _model(dtype: Any = "fp32", shape: ShapeConfig = SHAPE) -> Any:
    return new_model(llama_config(shape), dtype=dtype, seed=0)


def _base(kind: str = "lora", dtype: Any = "fp32") -> Any:
    config = llama_config(SHAPE)
    return new_model(extended(config, 8, first=56) if kind == "tokens" else config, dtype=dtype, seed=0)


def _adapted(dtype: Any = "fp32", kind: str = "lora") -> Any:
    torch.manual_seed(0)
    model = attach_lora(_base(kind, dtype), KINDS[kind], base="base")
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_B", "modules_to_save", "trainable_tokens")):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= torch.rand(parameter.shape) + 0.5
    return model


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in result_names(model)}


def _trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _write(folder: Path, model: Any) -> Path:
    folder.mkdir()
    write_weights(folder, model, _tensors(model))
    return folder


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = _model(), _model()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = new_model(llama_config(SHAPE), dtype="fp32", seed=1)
    assert not torch.equal(other.lm_head.weight, first.lm_head.weight)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_comes_back_from_its_files(tmp_path: Path, dtype: Any) -> None:
    model = _model(dtype)
    loaded = load_model(str(_write(tmp_path / "model", model)), dtype=dtype)
    assert loaded.dtype == model.dtype
    assert torch.equal(model(IDS).logits, loaded(IDS).logits)


def test_a_tied_head_is_written_once_and_tied_again(tmp_path: Path) -> None:
    model = _model(shape=SHAPE.model_copy(update={"tie_embeddings": True}))
    folder = _write(tmp_path / "model", model)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = load_model(str(folder), dtype="fp32")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(model(IDS).logits, loaded(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_comes_back_onto_its_base(tmp_path: Path, dtype: Any, kind: str) -> None:
    model = _adapted(dtype, kind)
    folder = _write(tmp_path / "adapter", model)
    loaded = load_adapter(_base(kind, dtype), folder, KINDS[kind], base="base")
    assert {parameter.dtype for parameter in loaded.parameters()} == {model.dtype}
    assert torch.equal(model(IDS).logits, loaded(IDS).logits)
    assert not torch.equal(model(IDS).logits, _model(dtype)(IDS).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
def test_peft_itself_loads_an_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    model = _adapted()
    loaded = PeftModel.from_pretrained(_model(), _write(tmp_path / "adapter", model))
    assert torch.equal(model(IDS).logits, loaded(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_the_logits_and_leaves_no_adapter(kind: str) -> None:
    expected = _adapted(kind=kind)(IDS).logits
    merged = merge_lora(_adapted(kind=kind))
    assert set(merged.state_dict()) == set(_model().state_dict())
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-5)


def test_rank_stabilised_updates_are_scaled_by_the_root_of_the_rank() -> None:
    scales = [
        _adapted(kind=kind).base_model.model.model.layers[0].mlp.up_proj.scaling["default"]
        for kind in ("lora", "rslora")
    ]
    assert scales == [4 / 2, pytest.approx(4 / 2**0.5)]


def test_only_the_rows_of_new_tokens_are_trained_beside_the_adapter() -> None:
    model = _adapted(kind="tokens")
    set_trainable(model, KINDS["tokens"], headless=False)
    rows = {name for name in _trained(model) if "lora_" not in name}
    assert rows == {
        f"base_model.model.{module}.token_adapter.trainable_tokens_delta.default"
        for module in ("model.embed_tokens", "lm_head")
    }
    assert {tuple(model.get_parameter(name).shape) for name in rows} == {(8, SHAPE.hidden_size)}
    set_trainable(model, KINDS["tokens"], headless=True)
    assert not [name for name in _trained(model) if "lm_head" in name]


def test_what_a_stage_trains() -> None:
    model = _adapted()
    set_trainable(model, LORA, headless=False)
    trained = _trained(model)
    assert all("lora_" in name or "lm_head.modules_to_save" in name for name in trained)
    assert sum("lora_" in name for name in trained) == 2 * 7 * SHAPE.num_layers
    set_trainable(model, LORA, headless=True)
    assert trained - _trained(model) == {"base_model.model.lm_head.modules_to_save.default.weight"}
    plain = _model()
    set_trainable(plain, FULL, headless=True)
    assert {name for name, _ in plain.named_parameters()} - _trained(plain) == {"lm_head.weight"}
    tied = _model(shape=SHAPE.model_copy(update={"tie_embeddings": True}))
    set_trainable(tied, FULL, headless=True)
    assert all(parameter.requires_grad for parameter in tied.parameters())


@pytest.mark.parametrize("kind", ["full", *KINDS])
@pytest.mark.parametrize("headless", [False, True])
def test_the_count_is_that_of_the_real_model(kind: str, headless: bool) -> None:
    model = _adapted(kind=kind) if kind in KINDS else _model()
    trainable = KINDS.get(kind, FULL)
    set_trainable(model, trainable, headless=headless)
    count = count_parameters(meta_model(_base(kind).config, trainable, dtype="fp32", headless=headless))
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_code_llama_has_its_published_number_of_parameters() -> None:
    """6,738,415,616 of Llama 2 7B, and 16 more tokens at either end."""
    shape = ShapeConfig(
        vocab_size=32016,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
    )
    model = meta_model(llama_config(shape), FULL, dtype="bf16", headless=False)
    assert count_parameters(model).total == 6_738_415_616 + 2 * 16 * 4096


def test_recomputation_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = _adapted()
        set_trainable(model, LORA, headless=False)
        if recompute:
            enable_recompute(model)
        model.train()
        model(IDS, use_cache=False).logits.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_vectors_have_unit_length_and_ignore_padding() -> None:
    torch.manual_seed(0)
    model = EmbeddingModel(_model(), EmbeddingHead(SHAPE.hidden_size, 8, pooling="mean")).eval()
    mask = torch.ones_like(IDS)
    vectors = model(IDS, mask)
    assert vectors.shape == (2, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    padded = model(torch.nn.functional.pad(IDS, (0, 6)), torch.nn.functional.pad(mask, (0, 6)))
    torch.testing.assert_close(padded, vectors, rtol=0, atol=1e-6)


# Folders that hold no model


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", _model())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(str(folder), dtype="fp32")
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(str(folder), dtype="fp32")


def test_a_name_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no-such/model") as refused:
        load_model("no-such/model", dtype="fp32")
    assert "hub name within reach" in refused.value.remedy


def test_weights_that_are_cut_off_or_missing_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", _model())
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), dtype="fp32")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(str(folder), dtype="fp32")


def test_an_adapter_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "adapter", _adapted())
    without_head = LORA.model_copy(update={"unfreeze": ()})
    with pytest.raises(ModelError, match=r"1 tensors differ, first .*lm_head"):
        load_adapter(_model(), folder, without_head, base="base")
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(_model(), tmp_path, LORA, base="base")


def test_an_adapter_that_cannot_be_is_refused() -> None:
    tied = _model(shape=SHAPE.model_copy(update={"tie_embeddings": True}))
    with pytest.raises(ConfigError, match="tied embeddings"):
        attach_lora(tied, LORA, base="base")
    nowhere = LORA.model_copy(update={"targets": ("no_such_proj",)})
    with pytest.raises(ConfigError, match="no_such_proj"):
        attach_lora(_model(), nowhere, base="base")


def test_a_head_comes_back_and_an_absent_one_is_refused(tmp_path: Path) -> None:
    head = EmbeddingHead(16, 8, pooling="lasttoken")
    save_file(head.state_dict(), tmp_path / HEAD_FILE)
    settings = EmbeddingConfig(pooling="lasttoken", dim=8)
    loaded = load_head(tmp_path, settings, hidden_size=16, dtype="fp32")
    assert torch.equal(loaded.dense.weight, head.dense.weight)
    assert loaded.pooling == "lasttoken"
    with pytest.raises(ModelError, match="cannot be read"):
        load_head(tmp_path / "nowhere", settings, hidden_size=16, dtype="fp32")


def test_a_plan_needs_a_shape_or_a_local_config(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", _model())
    assert planned_config(ModelConfig(path=str(folder))).hidden_size == 16
    with pytest.raises(ModelError, match="is not on this machine") as refused:
        planned_config(ModelConfig(path="no-such/model"))
    assert "model.shape" in refused.value.remedy
