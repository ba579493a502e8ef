"""Shared by the trainer's tests: a tiny corpus of C functions that are really compiled, and its tokenizer."""

import json
from pathlib import Path

import pytest

from corpus_builder.shards import read_split
from tiny import make_tiny_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 48 train, 12 valid and 12 test functions, in two train shards, at five levels."""
    return make_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_corpus: Path):
    """A tokenizer of 1,024 entries, learnt from the tiny corpus in both forms."""
    from asmtrain.tokens import documents, train_tokenizer

    records = list(read_split(tiny_corpus, "train"))
    texts = [
        item.text for task in ("completion", "retrieval") for r in records for item in documents(r, task)
    ]
    return train_tokenizer(texts, vocab_size=1024)


@pytest.fixture(scope="session")
def llama_tokenizer_folder(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in Code Llama's format: BPE with byte fallback, no EOS, no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizerFast

    from asmtrain.tokens import documents

    records = list(read_split(tiny_corpus, "valid"))
    texts = [
        item.text for task in ("completion", "retrieval") for r in records for item in documents(r, task)
    ]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    merges = json.loads(backend.to_str())["model"]["merges"]
    folder = tmp_path_factory.mktemp("llama")
    LlamaTokenizerFast(vocab=backend.get_vocab(), merges=[tuple(pair) for pair in merges]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def exported_run(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random stages (`runs.make_run`) with its three exports in `export/`."""
    from asmtrain import export
    from runs import make_run

    run = make_run(tmp_path_factory.mktemp("run"), tiny_tokenizer)
    assert export.run(run, options=export.Options(probe=True)) == 0
    return run


@pytest.fixture(scope="session")
def model(exported_run: Path) -> Path:
    """Its embedding."""
    return exported_run / "export" / "embedding"
