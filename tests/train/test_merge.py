"""Streamed merges against peft's own, tensor by tensor; what a loader such as vLLM's looks for; memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from asmtrain import checkpoint, export, weights
from asmtrain.checkpoint import StageResult
from asmtrain.config import Full, Lora, ShapeConfig
from asmtrain.errors import ExportError
from asmtrain.merge import write_merged
from asmtrain.model import attach_lora, extended, llama_config, merge_lora, new_model, result_names
from runs import make_run

SHAPE = ShapeConfig(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
)
LORA = Lora(kind="lora", rank=4, alpha=8)
KINDS: dict[str, Full | Lora] = {
    "full": Full(kind="full"),
    "lora": LORA,
    "rslora": LORA.model_copy(update={"rslora": True, "rank": 32}),
    "dora": LORA.model_copy(update={"dora": True, "targets": ("q_proj", "down_proj")}),
    "unfrozen": LORA.model_copy(update={"unfreeze": ("embed_tokens", "lm_head")}),
    "tokens": LORA,
    "tokens beside a trained head": LORA.model_copy(update={"unfreeze": ("lm_head",)}),
}


def make_stage(run: Path, kind: str, *, tied: bool = False, dtype: str = "fp32") -> Any:
    """A run's one LoRA stage of random weights on its base, or its one full stage; returns the model."""
    config = llama_config(SHAPE.model_copy(update={"tie_embeddings": tied}))
    if "tokens" in kind:
        extended(config, 28, first=100)
    model = new_model(config, dtype=dtype, seed=0)
    trainable = KINDS[kind]
    (run / "config.yaml").write_text("seed: 0\n")
    if isinstance(trainable, Lora):
        model.save_pretrained(run / "base")
        model = attach_lora(model, trainable, base="base")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand(parameter.shape) + 0.5
        elif "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data = (torch.randn(parameter.shape) * 0.05).to(parameter.dtype)
    result = StageResult(
        name="one",
        index=0,
        step=1,
        objective="causal_lm",
        trainable=trainable,
        embedding=None,
        dtype=dtype,
        base="base",
        corpora={},
    )
    parameters = dict(model.named_parameters())
    tensors = {name: parameters[name].detach().clone() for name in result_names(model)}
    folder = checkpoint.stage_folder(run, 0, "one")
    with checkpoint.atomic_folder(folder) as draft:
        checkpoint.write_result(draft, result, model=model, files=checkpoint.result_files(model, tensors, {}))
    return model


def merged_by_peft(model: Any) -> dict[str, torch.Tensor]:
    lm = merge_lora(model) if hasattr(model, "peft_config") else model
    return {name: parameter.detach() for name, parameter in lm.named_parameters()}


def stage_of(run: Path) -> Path:
    return checkpoint.stage_folder(run, 0, "one")


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        (kind, tied)
        for kind, trainable in KINDS.items()
        for tied in (False, True)
        if not (tied and getattr(trainable, "unfreeze", ()))
    ],
    ids=str,
)
def test_each_tensor_is_what_peft_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool
) -> None:
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 7 * 32)  # blocks whose borders fit nothing
    expected = merged_by_peft(make_stage(tmp_path, kind, tied=tied))
    output = tmp_path / "merged"
    output.mkdir()
    figures = write_merged(stage_of(tmp_path), output, shard_bytes=40_000)
    index = json.loads((output / "model.safetensors.index.json").read_bytes())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        part = load_file(output / file)
        assert all(index["weight_map"][name] == file for name in part)
        assert sum(tensor.nbytes for tensor in part.values()) <= 40_000
        found |= part
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert figures["update_kept"] == pytest.approx(1, abs=1e-5)
    loaded, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not hasattr(loaded.config, "assembly_tokens")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fp32_keeps_what_bf16_rounds_away(tmp_path: Path, kind: str) -> None:
    model = make_stage(tmp_path, kind, dtype="bf16")
    exact = merged_by_peft(model.float())
    kept = {}
    for dtype in ("bf16", "fp32"):
        output = tmp_path / dtype
        output.mkdir()
        kept[dtype] = write_merged(stage_of(tmp_path), output, dtype=dtype, shard_bytes=10**9)
        for name, tensor in load_file(output / "model.safetensors").items():
            if dtype == "fp32":
                torch.testing.assert_close(tensor, exact[name], rtol=0, atol=1e-6)
            else:  # rounded once, to the nearest
                torch.testing.assert_close(tensor, exact[name].bfloat16(), rtol=2**-7, atol=1e-6)
    assert kept["fp32"]["update_kept"] == pytest.approx(1, abs=1e-6)
    assert kept["bf16"]["weights_moved"] < kept["fp32"]["weights_moved"]


def test_the_layout_is_the_one_that_vllm_loads(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """What vLLM 0.11's default loader reads: config, an index or one file, tokenizer, plain names."""
    run = make_run(tmp_path, tiny_tokenizer, dtype="bf16")
    for size, names in ((10**9, ["model.safetensors"]), (60_000, None)):
        export.run(run, options=export.Options(shard_bytes=size))
        folder = run / "export" / "merged"
        config = json.loads((folder / "config.json").read_bytes())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["model_type"] == "llama"
        assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
        assert config["vocab_size"] >= len(AutoTokenizer.from_pretrained(folder))
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        if names:
            assert files == names
            assert not index.exists()
        else:
            assert len(files) > 2
            assert files == sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        stored = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
        assert not [name for name in stored if "lora" in name or "base_layer" in name or "base_model" in name]
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
        assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= {
            path.name for path in folder.iterdir()
        }
        assert AutoConfig.from_pretrained(folder).architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("kind", ["lora", "dora", "tokens"])
def test_an_adapter_of_another_form_is_refused(tmp_path: Path, kind: str) -> None:
    make_stage(tmp_path, kind)
    path = stage_of(tmp_path) / "adapter_model.safetensors"
    whole = load_file(path)
    parts = {"lora": "lora_A", "dora": "magnitude", "tokens": "trainable_tokens"}
    name = next(name for name in whole if parts[kind] in name)
    output = tmp_path / "merged"
    output.mkdir()
    for changed, message in (
        ({**whole, name: whole[name][:1].clone()}, "empty or partial"),
        ({key: value for key, value in whole.items() if key != name}, "missing"),
        ({**whole, f"{name}.more": whole[name].clone()}, "none of its config's"),
        ({**whole, name: whole[name] * float("nan")}, "NaN or infinity"),
    ):
        save_file(changed, path)
        with pytest.raises(ExportError, match=message):
            write_merged(stage_of(tmp_path), output, shard_bytes=10**9)


def test_a_file_that_reads_back_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_stage(tmp_path, "full")
    written = weights._write

    def damaged(path: Path, *rest: Any) -> Any:
        sums = written(path, *rest)
        with open(path, "r+b") as stream:
            stream.seek(-3, 2)
            stream.write(b"\x11")
        return sums

    monkeypatch.setattr(weights, "_write", damaged)
    with pytest.raises(ExportError, match="was not read back as written"):
        write_merged(stage_of(tmp_path), tmp_path, shard_bytes=10**9)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The benchmark's own measurement, smaller: 8 shards of 48 MB, and less than two of them in memory."""
    script = Path(__file__).parents[2] / "benchmarks" / "export_memory.py"
    done = subprocess.run(
        [sys.executable, script, "--shard-mb", "48", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["shards"] >= 8
    assert figures["peak_over_largest_shard"] < 2
