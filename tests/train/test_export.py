"""Exports against the models that the trainer holds, through the libraries that users load them with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from asmtrain import checkpoint, export
from asmtrain.cli import main
from asmtrain.encoder import embed_texts, load_encoder, untrained_twin
from asmtrain.errors import CheckpointError, ExportError, ModelError
from asmtrain.model import EmbeddingModel
from asmtrain.tokens import documents
from corpus_builder.shards import read_split
from runs import make_run

PROBE = export.Options(probe=True)
EXPORTED = {"fp32": "float32", "bf16": "bfloat16"}


@pytest.fixture(scope="module")
def run(exported_run: Path) -> Path:
    return exported_run


@pytest.fixture(scope="module")
def views(tiny_corpus: Path) -> list[str]:
    records = list(read_split(tiny_corpus, "test"))[:4]
    texts = [item.text for record in records for item in documents(record, "retrieval")]
    return [*texts, "\n".join(texts)]  # the last is far beyond max_tokens


def trainer_vectors(run: Path, texts: list[str]) -> np.ndarray:
    """Each text alone through the trainer's own model, adapter unmerged."""
    model, head = checkpoint.load_stage_result(checkpoint.stage_folder(run, 2, "embed"))
    assert head is not None
    embedding = EmbeddingModel(model, head).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer")
    vectors = []
    with torch.inference_mode():
        for text in texts:
            ids_1T = torch.tensor([tokenizer(text, truncation=True, max_length=48)["input_ids"]])
            vectors.append(embedding(ids_1T, torch.ones_like(ids_1T))[0].float().numpy())
    return np.stack(vectors)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits.float()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 on transformers 5
def test_merged_and_adapter_give_the_trainers_logits(run: Path) -> None:
    ids = torch.arange(3, 99)[None]
    trained, _ = checkpoint.load_stage_result(checkpoint.stage_folder(run, 1, "lora"))
    expected = logits_of(trained, ids)
    base_path = checkpoint.stage_folder(run, 0, "pretrain")
    merged = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    torch.testing.assert_close(logits_of(merged, ids), expected, atol=1e-5, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(base_path)
    assert (logits_of(base, ids) - expected).abs().max() > 0.01  # the adapter does something
    adapted = PeftModel.from_pretrained(base, run / "export" / "adapter")
    assert torch.equal(logits_of(adapted, ids), expected)
    settings = json.loads((run / "export" / "adapter" / "adapter_config.json").read_bytes())
    assert Path(settings["base_model_name_or_path"]) == base_path.resolve()


def test_embedding_gives_the_trainers_vectors(run: Path, views: list[str]) -> None:
    folder = run / "export" / "embedding"
    expected = trainer_vectors(run, views)
    library = SentenceTransformer(str(folder), device="cpu").encode(views)
    np.testing.assert_allclose(library, expected, atol=1e-6)
    np.testing.assert_allclose(embed_texts(load_encoder(folder), views), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    assert np.abs(expected - expected[0]).max() > 0.01


def test_layout_is_the_one_old_releases_load(run: Path) -> None:
    folder = run / "export" / "embedding"
    modules = json.loads((folder / "modules.json").read_bytes())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert {module["type"].rpartition(".")[0] for module in modules} == {"sentence_transformers.models"}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    assert [key for key, value in pooling.items() if value is True and "mode" in key] == [
        "pooling_mode_lasttoken"
    ]


def test_tokenizers_end_functions_but_not_prompts(run: Path, views: list[str]) -> None:
    embedding = AutoTokenizer.from_pretrained(run / "export" / "embedding")
    merged = AutoTokenizer.from_pretrained(run / "export" / "merged")
    for text in (views[0], views[-1]):
        cut = embedding(text, truncation=True)["input_ids"]
        assert cut[-1] == embedding.eos_token_id
        assert len(cut) <= 48
        ids = merged(text)["input_ids"]
        assert ids[0] == merged.bos_token_id
        assert merged.eos_token_id not in ids


def test_provenance_tells_where_each_export_came_from(run: Path) -> None:
    for name, stage in (("merged", "lora"), ("adapter", "lora"), ("embedding", "embed")):
        folder = run / "export" / name
        content = json.loads((folder / "provenance.json").read_bytes())
        assert content["stage"]["name"] == stage
        assert content["corpora"] == {"corpus": "0" * 64}
        assert content["config"]["seed"] == 0
        assert {"python", "torch", "transformers", "peft"} <= content["tools"].keys()
        assert all(len(digest) == 64 for digest in content["stage_files"].values())
        assert "adapter_model.safetensors" in content["stage_files"]
        bound = content["verified"].pop("bound")
        differences = [value for key, value in content["verified"].items() if "difference" in key]
        assert differences
        assert max(differences) <= bound
        assert checkpoint.damage(folder) is None
    assert content["commit"]


def test_exporting_twice_gives_equal_files(run: Path, tmp_path: Path) -> None:
    export.run(run, tmp_path, PROBE)
    for name in ("merged", "adapter", "embedding"):
        first, second = (
            json.loads((top / name / "manifest.json").read_bytes()) for top in (run / "export", tmp_path)
        )
        assert first == second


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_bf16_keeps_its_dtype_and_says_what_rounding_cost(
    tiny_tokenizer: Any, views: list[str], tmp_path: Path, pooling: str
) -> None:
    run = make_run(tmp_path, tiny_tokenizer, dtype="bf16", pooling=pooling, scale=0.004)
    export.run(run, options=PROBE)
    merged = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    verified = json.loads((run / "export" / "merged" / "provenance.json").read_bytes())["verified"]
    assert 0 < verified["weights_moved"] < 0.9  # an update below a weight's last bit is lost
    assert verified["update_kept"] == pytest.approx(1, abs=0.3)
    library = SentenceTransformer(str(run / "export" / "embedding"), device="cpu").encode(views)
    np.testing.assert_allclose(np.float32(library), trainer_vectors(run, views), atol=2e-2)


@pytest.mark.parametrize(
    "settings", [{"pooling": "learned"}, {"pooling": "mean", "attention": "bidirectional"}], ids=str
)
def test_other_forms_of_vectors_are_exported_as_they_were_trained(
    tiny_tokenizer: Any, views: list[str], tmp_path: Path, settings: dict[str, str]
) -> None:
    run = make_run(tmp_path, tiny_tokenizer, **settings)
    export.run(run, options=PROBE)
    folder = run / "export" / "embedding"
    expected = trainer_vectors(run, views)
    library = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(library.encode(views), expected, atol=1e-6)
    np.testing.assert_allclose(library.encode(views, batch_size=1), expected, atol=1e-6)
    np.testing.assert_allclose(embed_texts(load_encoder(folder), views), expected, atol=1e-6)
    cut = expected[:, :5] / np.linalg.norm(expected[:, :5], axis=1, keepdims=True)
    short = library.encode(views, truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_allclose(short, cut, atol=2e-6)
    encoder = load_encoder(folder, dim=5)
    np.testing.assert_allclose(embed_texts(encoder, views), cut, atol=2e-6)
    assert (encoder.dim, encoder.sha256 != load_encoder(folder).sha256) == (5, True)
    with pytest.raises(ModelError, match="16 numbers and cannot be cut to 17"):
        load_encoder(folder, dim=17)


def test_bidirectional_attention_is_of_the_embedding_alone(
    tiny_tokenizer: Any, views: list[str], tmp_path: Path
) -> None:
    run = make_run(tmp_path, tiny_tokenizer, attention="bidirectional", pooling="mean")
    export.run(run, options=PROBE)
    both_ways = json.loads((run / "export" / "embedding" / "config.json").read_bytes())
    assert both_ways["is_causal"] is False
    assert "is_causal" not in json.loads((run / "export" / "merged" / "config.json").read_bytes())
    expected = embed_texts(load_encoder(run / "export" / "embedding"), views)
    (run / "export" / "embedding" / "config.json").write_text(json.dumps(both_ways | {"is_causal": True}))
    causal = embed_texts(load_encoder(run / "export" / "embedding"), views)
    assert np.abs(causal - expected).max() > 0.01


@pytest.mark.parametrize(("trained", "asked"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_dtype_that_is_asked_for(tiny_tokenizer: Any, tmp_path: Path, trained: str, asked: Any) -> None:
    run = make_run(tmp_path, tiny_tokenizer, dtype=trained)
    export.run(run, options=export.Options(dtype=asked, probe=True))
    for name in ("merged", "embedding"):
        stored = load_file(run / "export" / name / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, EXPORTED[asked])}
        assert json.loads((run / "export" / name / "config.json").read_bytes())["dtype"] == EXPORTED[asked]


def test_a_checkpoint_exports_like_a_stage(run: Path, tmp_path: Path) -> None:
    stage = checkpoint.stage_folder(run, 1, "lora")
    saved = run / "checkpoints" / "02-lora-step000001"
    saved.mkdir(parents=True)
    (saved / "weights").symlink_to(stage)
    export.run(saved, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]
    ours, theirs = (load_file(top / "merged" / "model.safetensors") for top in (tmp_path, run / "export"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stage_that_trained_everything_has_no_adapter(run: Path, tmp_path: Path) -> None:
    export.run(checkpoint.stage_folder(run, 0, "pretrain"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_refused_and_the_old_export_stays(
    tiny_tokenizer: Any, tmp_path: Path, value: float
) -> None:
    run = make_run(tmp_path, tiny_tokenizer)
    export.run(run)
    before = (run / "export" / "merged" / "manifest.json").read_bytes()
    path = checkpoint.stage_folder(run, 1, "lora") / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if "lora_B" in key)
    tensors[name][0, 0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="NaN or infinity"):
        export.run(run)
    assert (run / "export" / "merged" / "manifest.json").read_bytes() == before
    assert checkpoint.damage(run / "export" / "merged") is None


@pytest.mark.parametrize("cut", [0, 3])
def test_partitioned_tensors_are_refused(tiny_tokenizer: Any, tmp_path: Path, cut: int) -> None:
    """As ZeRO-3 leaves those it partitions: without rows, or with one rank's."""
    run = make_run(tmp_path, tiny_tokenizer)
    for stage, file, name in (
        ("01-pretrain", "model.safetensors", "model.layers.1.mlp.up_proj.weight"),
        ("02-lora", "adapter_model.safetensors", "base_model.model.lm_head.weight"),
    ):
        path = run / "stages" / stage / file
        whole = load_file(path)
        save_file(whole | {name: whole[name][:cut].clone()}, path, metadata={"format": "pt"})
        with pytest.raises(ExportError, match=f"{name} is empty or partial"):
            export.run(run / "stages" / stage, tmp_path / "export")
        save_file(whole, path, metadata={"format": "pt"})
    assert not (tmp_path / "export" / "merged").exists()


def test_an_export_beyond_the_bound_is_not_published(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, tiny_tokenizer)
    monkeypatch.setitem(export.LOGIT_BOUND, "fp32", 1e-12)
    with pytest.raises(ExportError, match="differs from the trained model"):
        export.run(run, options=PROBE)
    assert not (run / "export" / "merged").exists()


def test_nothing_trained_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to export"):
        export.run(tmp_path)


@pytest.mark.parametrize("size", ["0", "much", "-5GB", "5TB"])
def test_a_shard_size_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path), f"--shard-size={size}"])
    assert left.value.code == 2
    assert f"'{size}' is no size; give one such as 5GB" in capsys.readouterr().err


def test_an_encoder_needs_a_whole_embedding_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an embedding model"):
        load_encoder(run / "export" / "merged")
    with pytest.raises(ModelError, match="is not an embedding model"):
        load_encoder(tmp_path)


def test_the_untrained_twin_differs_in_weights_alone(run: Path, views: list[str]) -> None:
    folder = run / "export" / "embedding"
    trained, twin, again, other = (
        load_encoder(folder),
        *(untrained_twin(folder, seed=seed) for seed in (1, 1, 2)),
    )
    shapes = [
        {name: value.shape for name, value in item.backbone.named_parameters()} for item in (trained, twin)
    ]
    assert shapes[0] == shapes[1]
    vectors = [embed_texts(item, views[:3]) for item in (trained, twin, again, other)]
    assert np.array_equal(vectors[1], vectors[2])
    assert np.abs(vectors[1] - vectors[0]).max() > 0.01
    assert np.abs(vectors[1] - vectors[3]).max() > 0.01
    assert len({item.sha256 for item in (trained, twin, again, other)}) == 3


def test_batching_changes_no_vector(run: Path, views: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(run / "export" / "embedding")
    together = embed_texts(encoder, views)
    alone = np.concatenate([embed_texts(encoder, [text]) for text in views])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    done: list[int] = []
    monkeypatch.setattr("asmtrain.encoder.TOKENS_PER_BATCH", {"cpu": 100, "cuda": 100})
    np.testing.assert_allclose(embed_texts(encoder, views, progress=done.append), alone, atol=1e-6)
    assert sum(done) == len(views)
    assert max(done) * 20 < 100 + 48
    assert embed_texts(encoder, []).shape == (0, 16)
