"""Examples: function records in, prompts with their answers out; and their ids, with the border between them.

This is the one place that says what a task with an answer shows and what it asks for. Training learns the
answer and the end token behind it; a generation is asked with the very same prompt.

Invariant: the prompt's tokens are those of the prompt alone, which is what a model sees before it answers. A
tokenizer may merge characters over the border (`:` and a newline into one token); such an example's prompt
and answer are tokenised apart, and marked. Cost: the tokenizer, twice over each prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import permutations
from typing import Any, get_args

from jinja2 import TemplateError
from tokenizers import Tokenizer

from asmtrain.config import DataConfig, ExampleTask
from asmtrain.errors import ConfigError
from asmtrain.tokens import documents
from corpus_builder.asm import clean
from corpus_builder.record import FunctionRecord, Variant

EXAMPLE_TASKS: tuple[str, ...] = get_args(ExampleTask)


@dataclass(frozen=True)
class Example:
    """One question about one function, and its answer."""

    key: str
    variant: str
    """The assembly asked for; for `asm_to_c` the one shown."""
    body_sha256: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Encoded:
    """An example's ids: the prompt's, then the answer's, the last of them the end token."""

    ids: list[int]
    num_prompt: int
    is_apart: bool
    """Whether prompt and answer were tokenised each by itself, since the tokenizer merges over the border."""


def examples(record: FunctionRecord, data: DataConfig) -> Iterator[Example]:
    """A record's examples, in the order of variant names; of equal ones the first.

    `c_to_asm` and `asm_to_c` give one example a variant; `transpile` one for each two instruction sets of the
    same compiler and level, `recompile` one for each two levels of the same toolchain, both ways round.
    """
    names = [name for name in sorted(record.assembly) if _matches(name, data.variants)]
    texts = {name: clean(record.assembly[name], Variant.parse(name).isa) for name in names}
    seen = set()
    for example in _all_examples(record, data, texts):
        if (example.prompt, example.answer) not in seen:
            seen.add((example.prompt, example.answer))
            yield example


def _all_examples(record: FunctionRecord, data: DataConfig, texts: dict[str, str]) -> Iterator[Example]:
    def example(variant: str, prompt: str, answer: str) -> Example:
        return Example(record.key, variant, record.meta.variants[variant].body_sha256, prompt, answer)

    if data.task == "c_to_asm":
        for name, text in texts.items():
            prompt = f"Compile this C function for {_target(name)}.\n{record.source.strip()}\nAssembly:"
            yield example(name, prompt, text)
    elif data.task == "asm_to_c":
        for name, text in texts.items():
            isa = Variant.parse(name).isa
            prompt = f"Decompile this {isa} function to C.\n{text.strip()}\nC:"
            yield example(name, prompt, record.source.strip() + "\n")
    else:
        for shown, asked in permutations(texts, 2):
            if _are_paired(shown, asked, data.task) and _matches(asked, data.answers):
                goal = f"from {_target(shown)} to {_target(asked)}"
                prompt = f"Translate this function {goal}.\n{texts[shown].strip()}\nAssembly:"
                yield example(asked, prompt, texts[asked])


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _target(name: str) -> str:
    """`aarch64, gcc12 -O2` for `aarch64.gcc12.o2`."""
    isa, compiler, level = Variant.parse(name)
    return f"{isa}, {compiler} -O{level[1:]}"


def _are_paired(shown: str, asked: str, task: str) -> bool:
    """Whether two variants differ in what the task changes, and in nothing else."""
    first, second = Variant.parse(shown), Variant.parse(asked)
    changed = {"transpile": "isa", "recompile": "level"}[task]
    return all(
        (a != b) == (name == changed) for name, a, b in zip(Variant._fields, first, second, strict=True)
    )


def tokenizer_texts(record: FunctionRecord, tasks: Iterable[str]) -> Iterator[str]:
    """What a new tokenizer learns from: the documents of these tasks, and the source where one shows it."""
    tasks = set(tasks)
    if "completion" in tasks or tasks & set(EXAMPLE_TASKS):
        yield from (item.text for item in documents(record, "completion"))
    if "retrieval" in tasks:
        yield from (item.text for item in documents(record, "retrieval"))
    if tasks & {"c_to_asm", "asm_to_c"}:
        yield record.source


# Ids


def encode(
    batch: Sequence[Example], tokenizer: Any, encoder: Tokenizer, *, chat: bool = False
) -> list[Encoded]:
    """Ids of examples, by `encoder`, the tokenizer's backend without truncation.

    Plain: BOS, prompt, newline, answer, EOS. With `chat`, the tokenizer's template writes everything but EOS,
    which ends the answer whether or not the template has it.
    """
    texts = [_chat(item, tokenizer) if chat else (item.prompt, f"\n{item.answer}") for item in batch]
    first = [] if chat or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = _ids(encoder, [prompt for prompt, _ in texts])
    wholes = _ids(encoder, [prompt + answer for prompt, answer in texts])
    merged = [
        whole[: len(prompt)] != prompt or len(whole) == len(prompt)
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]
    answers = iter(_ids(encoder, [answer for (_, answer), apart in zip(texts, merged, strict=True) if apart]))
    return [
        Encoded(
            [*first, *(prompt + next(answers) if apart else whole), tokenizer.eos_token_id],
            len(first) + len(prompt),
            apart,
        )
        for prompt, whole, apart in zip(prompts, wholes, merged, strict=True)
    ]


def _ids(encoder: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [item.ids for item in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def _chat(example: Example, tokenizer: Any) -> tuple[str, str]:
    """Prompt and answer as the tokenizer's template writes them, the answer without its end token.

    Raises:
        ConfigError: there is no template, it fails, or an answer does not stand behind its prompt.
    """
    asked = [{"role": "user", "content": example.prompt}]
    answered = [*asked, {"role": "assistant", "content": example.answer}]
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the chat template cannot write a prompt and its answer: {str(error).splitlines()[0]}",
            remedy="give another in model.chat_template, or set `prompt: plain` in the stage's data",
        ) from None
    if not whole.startswith(prompt) or example.answer.strip() not in whole[len(prompt) :]:
        raise ConfigError(
            f"the chat template writes no answer behind its prompt: the prompt ends in {prompt[-40:]!r}, "
            f"the whole in {whole[-40:]!r}",
            remedy="give one in model.chat_template whose text with add_generation_prompt begins the whole",
        )
    answer = whole[len(prompt) :]
    if answer.rstrip().endswith(tokenizer.eos_token):
        answer = answer.rstrip().removesuffix(tokenizer.eos_token)
    return prompt, answer


def check_chat_template(tokenizer: Any) -> None:
    """Raise ConfigError where the tokenizer's chat template cannot write a prompt and its answer."""
    _chat(Example("", "", "", "question", "answer"), tokenizer)
