"""A model that reads events: trained on real ranks, exported, distilled; and the one that is shipped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from asmtrain import export
from asmtrain.config import load_train_config
from asmtrain.encoder import default_model, embed_texts, load_encoder
from asmtrain.errors import ConfigError, ModelError
from asmtrain.events import NUM_WORDS, event_text
from ranks import finish_ranks, start_ranks

VIEWS = [
    "sub sp, sp, 32\nstr x0, [sp, 24]\nldr w1, [x0, 12]\ncmp w1, 255\nmov w0, 5\nbl CALL\nret\n",
    "movl 12(%rdi), %eax\ncmpl $255, %eax\nmovl $5, %edi\ncall CALL\nret\n",
    "lw a5, 40(a0)\nandi a5, a5, 3\nslli a5, a5, 4\nret\n",
]


def config_of(folder: Path, corpus: Path, *, hidden: int = 32, **embedding: Any) -> Path:
    shape = {"vocab_size": NUM_WORDS + 3, "hidden_size": hidden, "intermediate_size": 8, "num_layers": 0}
    shape |= {"num_heads": 2, "num_kv_heads": 2, "tie_embeddings": True}
    settings = {
        "pooling": "learned",
        "dim": 16,
        "members": 2,
        "max_tokens": 512,
        "functions_per_step": 12,
    }
    stage = {
        "name": "embed",
        "objective": "contrastive",
        "data": [{"corpus": str(corpus), "task": "events"}],
        "trainable": {"kind": "full"},
        "optimizer": {"lr": 5.0e-3},
        "steps": 12,
        "micro_rows": 4,
        "eval_rows": 8,
        "embedding": settings | embedding,
    }
    config = {"run": str(folder / "run"), "model": {"shape": shape}, "stages": [stage]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | {"engine": {"zero_stage": 2}}))
    return path


def trained(config: Path) -> Path:
    """The exported embedding of a run on two ranks, which is probed against the trainer's model."""
    codes, said = finish_ranks(start_ranks(2, ["train", str(config)]))
    assert codes == [0, 0], said
    run = config.parent / "run"
    export.run(run, options=export.Options(probe=True))
    return run / "export" / "embedding"


def test_it_trains_and_is_exported_and_teaches(tiny_corpus: Path, tmp_path: Path) -> None:
    folder = trained(config_of(tmp_path / "large", tiny_corpus))
    library = SentenceTransformer(str(folder), device="cpu")
    expected = library.encode([event_text(view) for view in VIEWS])
    found = embed_texts(load_encoder(folder), VIEWS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    weight = load_encoder(folder).head.dense.weight.reshape(2, 2, 8, 2, 16)  # copy, member x member's inputs
    assert not weight[:, 0, :, 1].any()
    assert not weight[:, 1, :, 0].any()
    assert weight[:, 0, :, 0].all()
    assert weight[:, 1, :, 1].all()
    taught = config_of(
        tmp_path / "small", tiny_corpus, hidden=8, dim=8, distill={"teacher": str(folder), "weight": 0.9}
    )
    assert embed_texts(load_encoder(trained(taught)), VIEWS).shape == (3, 8)


def test_a_model_of_other_events_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(default_model(), tmp_path / "older")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reads": "events"}))
    with pytest.raises(ModelError, match="reads 'events'"):
        load_encoder(folder)


def test_the_shipped_model_finds_a_function_on_another_instruction_set() -> None:
    folder = default_model()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 20e6
    vectors = embed_texts(load_encoder(folder), VIEWS)
    assert vectors.shape == (3, 256)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > max(similar[0, 2], similar[1, 2])


def test_events_are_for_contrast_alone(tiny_corpus: Path, tmp_path: Path) -> None:
    path = config_of(tmp_path, tiny_corpus)
    config = yaml.safe_load(path.read_text())
    config["stages"][0] |= {"objective": "causal_lm"}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="no order to predict"):
        load_train_config(path)
    config["stages"][0]["objective"] = "contrastive"
    config["stages"][0]["data"].append({"corpus": str(tiny_corpus), "task": "retrieval"})
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="a vocabulary of its own; this run also reads retrieval"):
        load_train_config(path)
