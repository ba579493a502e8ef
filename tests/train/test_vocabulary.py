"""Extended vocabularies: shorter, lossless on assembly and C, new rows the mean of their pieces, trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from asmtrain import checkpoint, export
from asmtrain.errors import ConfigError, ModelError
from asmtrain.model import llama_config, new_model
from asmtrain.tokens import documents, load_tokenizer
from asmtrain.vocabulary import extend_tokenizer, new_token_pieces, num_ids, write_extended_base
from corpus_builder.shards import read_split
from ranks import finish_ranks, start_ranks
from runs import SHAPE
from test_train import run_config

KINDS = ("llama", "old llama", "byte-level")


def texts_of(corpus: Path, split: str) -> list[str]:
    records = list(read_split(corpus, split))
    return [item.text for record in records for item in documents(record, "completion")]


def sources_of(corpus: Path) -> list[str]:
    return [record.source for split in ("train", "test") for record in read_split(corpus, split)]


@pytest.fixture(scope="module")
def folders(tiny_corpus: Path, llama_tokenizer_folder: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """Tokenizers as pre-trained models have them: Llama's in two forms, and a byte-level one."""
    made = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    load_tokenizer(llama_tokenizer_folder).save_pretrained(made["llama"])
    content = json.loads((made["llama"] / "tokenizer.json").read_text())
    # As Llama 2's own file has it: spaces by a normalizer, and a space before the text.
    content["pre_tokenizer"] = None
    content["normalizer"] = json.loads(
        normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        ).__getstate__()
    )
    content["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    load_tokenizer(made["llama"]).save_pretrained(made["old llama"])
    (made["old llama"] / "tokenizer.json").write_text(json.dumps(content))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(sources_of(tiny_corpus), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    # Added behind the model's own ids, as many models have them.
    tokenizer.add_special_tokens({"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    tokenizer.save_pretrained(made["byte-level"])
    return made


@pytest.fixture(scope="module")
def extended(folders: dict[str, Path], tiny_corpus: Path, tmp_path_factory: Any) -> dict[str, Path]:
    made = {}
    for kind, folder in folders.items():
        made[kind] = tmp_path_factory.mktemp("extended")
        load_tokenizer(folder).save_pretrained(made[kind])
        assert extend_tokenizer(made[kind], texts_of(tiny_corpus, "train"), num_tokens=120) == 120
    return made


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def roundtrip(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_get_shorter_and_stay_whole(
    kind: str, folders: dict[str, Path], extended: dict[str, Path], tiny_corpus: Path
) -> None:
    before, after = load_tokenizer(folders[kind]), load_tokenizer(extended[kind])
    unseen = texts_of(tiny_corpus, "test")
    lengths = [sum(map(len, ids_of(tokenizer, unseen))) for tokenizer in (before, after)]
    assert lengths[1] < lengths[0] * 0.95
    for text in unseen + sources_of(tiny_corpus):
        assert roundtrip(before, text) == text
        assert roundtrip(after, text) == text
    again = AutoTokenizer.from_pretrained(extended[kind])
    assert ids_of(again, unseen[:5]) == ids_of(after, unseen[:5])


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text(alphabet="\n\t ,[](){}#$%*:!-+.x0129abLwldrstp\u00e9\x00", max_size=60))
def test_any_text_stays_what_it_was(folders: dict[str, Path], extended: dict[str, Path], text: str) -> None:
    for kind in KINDS:
        before, after = load_tokenizer(folders[kind]), load_tokenizer(extended[kind])
        assert roundtrip(after, text) == roundtrip(before, text)


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_are_made_of_old_ones(
    kind: str, folders: dict[str, Path], extended: dict[str, Path], tiny_corpus: Path
) -> None:
    """Each new id in an encoding stands for the old ids that the old tokenizer gave in its place."""
    before, after = load_tokenizer(folders[kind]), load_tokenizer(extended[kind])
    first = num_ids(before)
    pieces = new_token_pieces(extended[kind], first=first)
    assert len(pieces) == 120
    assert all(len(ids) > 1 and max(ids) < first for ids in pieces)
    assert num_ids(after) == len(after) == first + 120
    unseen = texts_of(tiny_corpus, "test") + sources_of(tiny_corpus)
    for old, new in zip(ids_of(before, unseen), ids_of(after, unseen), strict=True):
        assert [piece for id in new for piece in (pieces[id - first] if id >= first else [id])] == old
    assert {name: before.get_vocab()[name] for name in before.all_special_tokens} == {
        name: after.get_vocab()[name] for name in after.all_special_tokens
    }


def test_what_is_learnt_is_assembly_and_no_constant_is_tied(extended: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(extended["llama"])
    new = [tokenizer.decode([id]) for id in range(len(tokenizer) - 120, len(tokenizer))]
    assert any(token.startswith("\n") and token[1:].isalpha() for token in new), "newline and mnemonic"
    assert any(token.strip().startswith(("[sp", "x0,", "w0,", "(%r", "%eax")) for token in new)
    for token in new:
        digits = token.strip().lstrip("-")
        assert not (digits[:1].isdigit() and digits[-1] in ",])"), token


def test_learning_is_deterministic(
    folders: dict[str, Path], extended: dict[str, Path], tiny_corpus: Path, tmp_path: Path
) -> None:
    load_tokenizer(folders["llama"]).save_pretrained(tmp_path)
    extend_tokenizer(tmp_path, texts_of(tiny_corpus, "train"), num_tokens=120)
    assert (tmp_path / "tokenizer.json").read_bytes() == (extended["llama"] / "tokenizer.json").read_bytes()


def test_what_cannot_be_extended_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    load_tokenizer(folders["llama"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no two tokens"):
        extend_tokenizer(tmp_path, ["x"], num_tokens=5)
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="WordLevel, not a BPE"):
        extend_tokenizer(tmp_path, ["x"], num_tokens=5)


def write_model(folder: Path, tokenizer: Path, *, vocab_size: int, tied: bool = False) -> Any:
    changes = {"vocab_size": vocab_size, "tie_embeddings": tied}
    model = new_model(llama_config(SHAPE.model_copy(update=changes)), dtype="fp32", seed=0)
    model.save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("spare", [0, 7, 200])
def test_new_rows_are_the_mean_of_their_pieces(
    folders: dict[str, Path], extended: dict[str, Path], tmp_path: Path, tied: bool, spare: int
) -> None:
    """A model may have spare rows behind its tokenizer's, fewer or more than the new tokens need."""
    tokenizer = load_tokenizer(folders["llama"])
    first = num_ids(tokenizer)
    old = write_model(tmp_path / "model", folders["llama"], vocab_size=first + spare, tied=tied)
    base = tmp_path / "base"
    base.mkdir()
    write_extended_base(str(tmp_path / "model"), extended["llama"], base, first=first, dtype="fp32")
    new = AutoModelForCausalLM.from_pretrained(base)
    assert new.config.vocab_size == max(first + 120, first + spare)
    assert new.config.assembly_tokens == [first, first + 120]
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    assert before.keys() == after.keys()
    pieces = new_token_pieces(extended["llama"], first=first)
    for name, tensor in after.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensor, before[name])
            continue
        assert torch.equal(tensor[:first], before[name][:first])
        assert torch.equal(tensor[first + 120 :], before[name][first + 120 :])
        means = torch.stack([before[name][ids].mean(0) for ids in pieces])
        torch.testing.assert_close(tensor[first : first + 120], means)


def test_a_model_with_fewer_rows_than_tokens_is_refused(
    folders: dict[str, Path], extended: dict[str, Path], tmp_path: Path
) -> None:
    first = num_ids(load_tokenizer(folders["llama"]))
    write_model(tmp_path, folders["llama"], vocab_size=first - 1)
    with pytest.raises(ModelError, match=f"has {first} tokens, the model only {first - 1}"):
        write_extended_base(str(tmp_path), extended["llama"], tmp_path / "x", first=first, dtype="fp32")


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_run_extends_trains_and_exports(
    folders: dict[str, Path], tiny_corpus: Path, tmp_path: Path, zero_stage: int
) -> None:
    """LoRA, then every weight: from a pre-trained folder to exports that libraries load."""
    first = num_ids(load_tokenizer(folders["llama"]))
    write_model(tmp_path / "model", folders["llama"], vocab_size=first)
    plain = yaml.safe_load(run_config(tmp_path, tiny_corpus).read_text())
    lora = {**plain["stages"][1], "trainable": {"kind": "lora", "rank": 4, "alpha": 8}, "steps": 3}
    config = run_config(
        tmp_path,
        tiny_corpus,
        model={"path": str(tmp_path / "model"), "assembly_tokens": 100},
        tokenizer=None,
        stages=[lora, {**plain["stages"][2], "steps": 2}],
        engine={"zero_stage": zero_stage},
        deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0}} if zero_stage == 3 else {},
    )
    codes, said = finish_ranks(start_ranks(2, ["train", str(config)]))
    assert codes == [0, 0], said
    assert "has got 100 tokens of assembly" in said[0]
    run = tmp_path / "run"
    export.run(run, options=export.Options(probe=True))
    merged = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    base = AutoModelForCausalLM.from_pretrained(run / "base")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "merged")
    assert len(tokenizer) == merged.config.vocab_size == first + 100
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = base.get_parameter(name), merged.get_parameter(name)
        assert torch.equal(new[:first], old[:first]), "old rows stay"
        assert not torch.equal(new[first:], old[first:]), "new rows are trained"
    settings = json.loads((run / "export" / "adapter" / "adapter_config.json").read_bytes())
    assert Path(settings["base_model_name_or_path"]) == (run / "base").resolve()
    assert AutoConfig.from_pretrained(run / "export" / "embedding").vocab_size == first + 100
    assert checkpoint.damage(run / "base") is None
