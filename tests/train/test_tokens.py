"""Documents and tokenizers: lossless, short, constants whole, and an end token that is always there."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from asmtrain.errors import ModelError
from asmtrain.tokens import documents, load_tokenizer, train_tokenizer
from corpus_builder.asm import clean, constants, masked, num_instructions, view
from corpus_builder.shards import read_split

TASKS = ("completion", "retrieval")


def texts_of(corpus: Path, split: str) -> list[str]:
    records = list(read_split(corpus, split))
    return [item.text for task in TASKS for record in records for item in documents(record, task)]


def roundtrip(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)


def test_documents_are_the_task_forms_once_each(tiny_corpus: Path) -> None:
    record = next(read_split(tiny_corpus, "train"))
    for task, form in (("completion", clean), ("retrieval", view)):
        found = list(documents(record, task))
        expected = {form(text, name.split(".")[0]) for name, text in record.assembly.items()}
        assert {item.text for item in found} == expected
        assert len(found) == len(expected)
        assert all(item.body_sha256 == record.meta.variants[item.variant].body_sha256 for item in found)
        assert {item.key for item in found} == {record.key}


def test_documents_follow_the_globs(tiny_corpus: Path) -> None:
    record = next(read_split(tiny_corpus, "train"))
    found = {item.variant for item in documents(record, "retrieval", ("*.gcc.o0", "*.o2"))}
    assert found
    assert all(name.endswith((".gcc.o0", ".o2")) for name in found)


def test_numbers_can_be_hidden(tiny_corpus: Path) -> None:
    record = next(read_split(tiny_corpus, "train"))
    shown, hidden = (list(documents(record, "retrieval", hide_numbers=hide)) for hide in (False, True))
    assert any(constants(item.text) for item in shown)
    assert not any(constants(item.text) for item in hidden)
    assert {item.text for item in hidden} == {masked(item.text) for item in shown}
    events = [list(documents(record, "events", hide_numbers=hide)) for hide in (False, True)]
    assert {item.text for item in events[0]} != {item.text for item in events[1]}


def test_lossless_on_both_forms_and_on_raw_compiler_output(tiny_corpus: Path, tiny_tokenizer: Any) -> None:
    raw = [text for record in read_split(tiny_corpus, "test") for text in record.assembly.values()]
    for text in raw + texts_of(tiny_corpus, "test"):
        assert roundtrip(tiny_tokenizer, text) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text(alphabet="\n\t ,[](){}#$%*:!-+.x0129abLw_\u00e9\x00", max_size=60))
def test_lossless_on_any_text(tiny_tokenizer: Any, text: str) -> None:
    assert roundtrip(tiny_tokenizer, text) == text


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("\nldr w0, [sp, 12]", ["\nldr ", "w0, ", "[sp, ", "12", "]"]),
        ("\nldp x29, x30, [sp], 64", ["\nldp ", "x29, ", "x30, ", "[sp], ", "64"]),
        ("\nstp x29, x30, [sp, -32]!", ["\nstp ", "x29, ", "x30, ", "[sp, ", "-32", "]!"]),
        ("\nadd x0, x1, w2, sxtw 2", ["\nadd ", "x0, ", "x1, ", "w2, ", "sxtw ", "2"]),
        ("\nmovi v0.4s, 0x7f", ["\nmovi ", "v0.4s, ", "0x7f"]),
        ("\nfmov d0, -1.5e+1", ["\nfmov ", "d0, ", "-1.5e+1"]),
        ("\nb.ne L12", ["\nb.ne ", "L12"]),
        ("\nmovl $-12, -4(%rbp)", ["\nmovl $", "-12", ", ", "-4", "(%rbp)"]),
        ("\nleaq 8(%rax,%rbx,4), %rdi", ["\nleaq ", "8", "(%rax,", "%rbx,", "4", "), %rdi"]),
        ("\ncall *%rax", ["\ncall *", "%rax"]),
        ("\nL3:", ["\nL3:"]),
    ],
)
def test_pieces_are_those_of_assembly(tiny_tokenizer: Any, line: str, pieces: list[str]) -> None:
    split = tiny_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(line)
    assert [line[start:stop] for _, (start, stop) in split] == pieces


CONSTANT = re.compile(r"(?<![\w.%$@-])-?\d+(?![\w.])")


def test_nothing_stands_beside_a_constant(tiny_corpus: Path, tiny_tokenizer: Any) -> None:
    split = tiny_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for text in texts_of(tiny_corpus, "test"):
        pieces = {span for _, span in split(text)}
        assert all(match.span() in pieces for match in CONSTANT.finditer(text))


def test_frequent_constants_and_registers_are_whole_tokens(tiny_corpus: Path, tiny_tokenizer: Any) -> None:
    vocabulary = tiny_tokenizer.get_vocab()
    constants = [item for text in texts_of(tiny_corpus, "train") for item in CONSTANT.findall(text)]
    assert sum(item in vocabulary for item in constants) / len(constants) > 0.9
    pieces = {tiny_tokenizer.decode([number]).strip("[](), ") for number in vocabulary.values()}
    assert {"sp", "w0", "x0", "%eax", "%rbp", "%rdi"} <= pieces


def test_tokens_per_instruction_against_the_gpt2_split(tiny_corpus: Path) -> None:
    train, test = texts_of(tiny_corpus, "train"), texts_of(tiny_corpus, "test")
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.train_from_iterator(train, trainers.BpeTrainer(vocab_size=1024, show_progress=False))
    ours = train_tokenizer(train, vocab_size=1024).backend_tokenizer
    instructions = sum(map(num_instructions, test))
    per_instruction = {
        name: sum(len(item.ids) for item in backend.encode_batch(test, add_special_tokens=False))
        / instructions
        for name, backend in (("ours", ours), ("gpt2", plain))
    }
    print(per_instruction)
    assert per_instruction["ours"] < 6
    assert per_instruction["ours"] < per_instruction["gpt2"] / 1.5


def test_training_is_deterministic(tiny_corpus: Path) -> None:
    texts = texts_of(tiny_corpus, "valid")
    first, second = (train_tokenizer(texts, vocab_size=600).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("max_length", [3, 16, 10_000])
def test_end_token_survives_truncation(tiny_corpus: Path, tiny_tokenizer: Any, max_length: int) -> None:
    for text in texts_of(tiny_corpus, "test")[:20]:
        ids = tiny_tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        assert ids[0] == tiny_tokenizer.bos_token_id
        assert ids[-1] == tiny_tokenizer.eos_token_id
        assert len(ids) <= max_length


def test_saved_tokenizer_loads_the_same(tiny_corpus: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    texts = texts_of(tiny_corpus, "test")[:20]
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert [loaded(text)["input_ids"] for text in texts] == [
            tiny_tokenizer(text)["input_ids"] for text in texts
        ]
        assert loaded.pad_token_id == tiny_tokenizer.pad_token_id


def test_llama_tokenizer_gets_an_end_token_that_stays(
    tiny_corpus: Path, llama_tokenizer_folder: Path, tmp_path: Path
) -> None:
    original = AutoTokenizer.from_pretrained(llama_tokenizer_folder)
    loaded = load_tokenizer(llama_tokenizer_folder)
    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts_of(tiny_corpus, "test")[:20]:
        plain = [number for number in original(text)["input_ids"] if number != original.bos_token_id]
        assert plain[-1] != original.eos_token_id  # why load_tokenizer exists
        for tokenizer in (loaded, again):
            assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *plain, tokenizer.eos_token_id]
            assert tokenizer(text, truncation=True, max_length=9)["input_ids"][-1] == tokenizer.eos_token_id
            assert roundtrip(tokenizer, text) == text
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id != loaded.eos_token_id


def test_a_folder_without_tokenizer_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


def test_raw_output_of_every_level_of_a_large_unit_is_lossless(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Strings, floats, jump tables and directives of a whole unit, not only of functions."""
    source = tmp_path / "unit.c"
    source.write_text(
        'const char *s = "caf\\303\\251 \\t\\"x\\"\\n </t>"; double d[] = {1.5, -2e300};\n'
        "int f(int k) { switch (k) { case 0: return 7; case 1: return 9; case 2: return 4;"
        " case 3: return 5; case 4: return 77; case 5: return 12; }"
        " return __builtin_popcount(k) + (int)d[k & 1] + s[k & 3]; }\n"
    )
    for level in ("-O0", "-O2", "-Os"):
        run = subprocess.run(
            ["gcc", level, "-g", "-S", str(source), "-o", "-"], capture_output=True, check=True
        )
        text = run.stdout.decode()
        assert roundtrip(tiny_tokenizer, text) == text
