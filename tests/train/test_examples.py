"""Examples with answers: what each task shows and asks, and ids whose border is known to the token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from asmtrain import cache
from asmtrain.cache import build_cache
from asmtrain.config import DataConfig
from asmtrain.errors import ConfigError
from asmtrain.examples import Example, check_chat_template, encode, examples, tokenizer_texts
from asmtrain.tokens import load_tokenizer
from corpus_builder.asm import clean
from corpus_builder.record import FunctionRecord
from corpus_builder.shards import read_split

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def record(tiny_corpus: Path) -> FunctionRecord:
    return next(read_split(tiny_corpus, "train"))


def data(task: str, **settings: Any) -> DataConfig:
    return DataConfig(corpus=Path("unused"), task=task, **settings)


def text(record: FunctionRecord, variant: str) -> str:
    return clean(record.assembly[variant], variant.split(".")[0])


def encoder(tokenizer: Any) -> Tokenizer:
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    return plain


def encode_all(record: FunctionRecord, settings: DataConfig, tokenizer: Any) -> list[tuple[Example, Any]]:
    found = list(examples(record, settings))
    chat = settings.prompt == "chat"
    return list(zip(found, encode(found, tokenizer, encoder(tokenizer), chat=chat), strict=True))


# What is shown, and what is asked for


def test_source_to_assembly_gives_an_example_a_variant(record: FunctionRecord) -> None:
    found = list(examples(record, data("c_to_asm")))
    assert [item.variant for item in found] == sorted(record.assembly)
    for item in found:
        isa, compiler, level = item.variant.split(".")
        assert item.prompt == (
            f"Compile this C function for {isa}, {compiler} -O{level[1:]}.\n{record.source}\nAssembly:"
        )
        assert item.answer == text(record, item.variant)
        assert item.body_sha256 == record.meta.variants[item.variant].body_sha256


def test_assembly_to_source_shows_no_text_twice(record: FunctionRecord) -> None:
    found = list(examples(record, data("asm_to_c")))
    assert {item.answer for item in found} == {record.source + "\n"}
    shown = {text(record, variant).strip() for variant in record.assembly}
    assert len(found) == len(shown)
    assert {item.prompt.partition("\n")[2].removesuffix("\nC:") for item in found} == shown


def test_pairs_differ_in_one_thing_alone(record: FunctionRecord) -> None:
    variants = sorted(record.assembly)
    for task, place in (("transpile", 0), ("recompile", 2)):
        expected = []
        for shown in variants:
            for asked in variants:
                first, second = shown.split("."), asked.split(".")
                if [i for i in range(3) if first[i] != second[i]] == [place]:
                    expected.append((text(record, shown).strip(), asked))
        found = [
            (item.prompt.partition("\n")[2].removesuffix("\nAssembly:"), item.variant)
            for item in examples(record, data(task))
        ]
        assert sorted(found) == sorted(expected)


def test_answers_choose_among_the_variants(record: FunctionRecord) -> None:
    settings = data("recompile", variants=("*.gcc.o0", "*.gcc.o2"), answers=("*.o2",))
    found = list(examples(record, settings))
    assert found
    for item in found:
        isa, compiler, _ = item.variant.split(".")
        assert item.variant.endswith(".gcc.o2")
        assert f"from {isa}, {compiler} -O0 to {isa}, {compiler} -O2" in item.prompt


def test_a_new_tokenizer_learns_from_what_its_tasks_show(record: FunctionRecord) -> None:
    assert record.source in list(tokenizer_texts(record, {"c_to_asm"}))
    assert record.source not in list(tokenizer_texts(record, {"transpile", "retrieval"}))
    assert text(record, min(record.assembly)) in list(tokenizer_texts(record, {"transpile"}))


# Ids


@pytest.mark.parametrize("task", ["c_to_asm", "asm_to_c", "transpile", "recompile"])
def test_plain_ids_are_prompt_then_answer_then_end(
    record: FunctionRecord, tiny_tokenizer: Any, task: str
) -> None:
    for item, encoded in encode_all(record, data(task), tiny_tokenizer):
        assert not encoded.is_apart
        assert encoded.ids[0] == tiny_tokenizer.bos_token_id
        assert encoded.ids[-1] == tiny_tokenizer.eos_token_id
        prompt, answer = encoded.ids[1 : encoded.num_prompt], encoded.ids[encoded.num_prompt : -1]
        assert prompt == tiny_tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        assert tiny_tokenizer.decode(prompt) == item.prompt
        assert tiny_tokenizer.decode(answer) == "\n" + item.answer
        # No piece stands on the border: the whole is what the tokenizer makes of the whole text.
        assert encoded.ids == tiny_tokenizer(f"{item.prompt}\n{item.answer}")["input_ids"]


@pytest.mark.parametrize("task", ["c_to_asm", "asm_to_c"])
def test_an_end_token_written_in_the_source_ends_nothing(
    record: FunctionRecord, tiny_tokenizer: Any, task: str
) -> None:
    written = replace(record, source='int f(void) { return puts("<s></s>"); }')
    for entry in cache._examples(iter([written]), data(task), tiny_tokenizer):
        assert (
            entry.ids.count(tiny_tokenizer.eos_token_id) == entry.ids.count(tiny_tokenizer.bos_token_id) == 1
        )
        assert written.source in tiny_tokenizer.decode(entry.ids)


def merging_tokenizer(folder: Path) -> Any:
    """One without any split into words, that has merged `:` with the newline behind it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([":\n"] * 9, trainer)
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return load_tokenizer(folder)


def test_a_tokenizer_that_merges_over_the_border_gets_the_two_apart(
    record: FunctionRecord, tmp_path: Path
) -> None:
    tokenizer = merging_tokenizer(tmp_path)
    for item, encoded in encode_all(record, data("c_to_asm"), tokenizer):
        assert encoded.is_apart
        apart = [
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (item.prompt, f"\n{item.answer}")
        ]
        assert encoded.ids == [tokenizer.bos_token_id, *apart[0], *apart[1], tokenizer.eos_token_id]
        assert encoded.num_prompt == 1 + len(apart[0])
        whole = tokenizer(f"{item.prompt}\n{item.answer}")["input_ids"]
        assert encoded.ids != whole, "this is what would have been learnt"


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
def test_chat_ids_are_the_templates_with_the_answer_behind(
    record: FunctionRecord, llama_tokenizer_folder: Path, template: str
) -> None:
    tokenizer = load_tokenizer(llama_tokenizer_folder)
    tokenizer.chat_template = template
    for item, encoded in encode_all(record, data("c_to_asm", prompt="chat"), tokenizer):
        asked = [{"role": "user", "content": item.prompt}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        expected = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert encoded.ids[: encoded.num_prompt] == expected
        answer = tokenizer.decode(encoded.ids[encoded.num_prompt : -1])
        assert answer.removesuffix("<|im_end|>\n").strip() == item.answer.strip()
        assert encoded.ids[-1] == tokenizer.eos_token_id
        assert encoded.ids.count(tokenizer.eos_token_id) == 1, "the template's own is not doubled"


def test_a_template_survives_loading_and_names_its_cache(
    tiny_corpus: Path, llama_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folders = set()
    for template in (LLAMA, CHATML):
        tokenizer = load_tokenizer(llama_tokenizer_folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        loaded = load_tokenizer(tmp_path / "tokenizer")
        assert loaded.chat_template == template
        for prompt in ("chat", "plain"):
            settings = DataConfig(corpus=tiny_corpus, task="c_to_asm", prompt=prompt, max_functions=4)
            folders.add(build_cache(settings, "valid", loaded, tmp_path).folder)
    assert len(folders) == 3, "without chat, the template makes no difference"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "cannot write a prompt"),
        ("{% for m in messages %}", "cannot write a prompt"),
        ("{{ raise_exception('only system messages') }}", "only system messages"),
        (CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"), "no answer behind its prompt"),
        ("{{ messages[0].content }}", "no answer behind its prompt"),
    ],
)
def test_a_template_that_does_not_serve_is_refused(
    tiny_tokenizer: Any, template: str | None, said: str
) -> None:
    tokenizer = load_copy(tiny_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=said) as refused:
        check_chat_template(tokenizer)
    assert "model.chat_template" in refused.value.remedy


def load_copy(tokenizer: Any) -> Any:
    from copy import deepcopy

    return deepcopy(tokenizer)
