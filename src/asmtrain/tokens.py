r"""Tokens: function records in, documents out; and the tokenizer that turns documents into ids.

A tokenizer trained here is a byte-level BPE (lossless on any text) whose pieces never cross the borders
that assembly has. A piece is one of
  - a line's start: newline, mnemonic and the space or `$` behind it (`\nldr `, `\nmovl $`), or a label;
  - a constant with its sign (`12`, `-4`, `0x1f`), nothing beside it: one number is one token in every
    instruction set, which is what retrieval lives on;
  - a register or symbol with the punctuation around it (`w0, `, `[sp, `, `(%rbp)`).
Cost: what a function costs to train on is its tokens; pieces like these need less than half as many as the
GPT-2 word split (benchmarks/tokenizer.py).

Every tokenizer, Code Llama's too, writes BOS and EOS through its post-processor, so that EOS survives
truncation and the last token of a function always stands for its end.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from asmtrain.config import DocumentTask
from asmtrain.errors import ModelError
from asmtrain.events import EVENTS, NUM_WORDS, event_text
from corpus_builder.asm import clean, masked, view
from corpus_builder.record import FunctionRecord, Variant

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

_CONSTANT = r"-?(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])"
_PIECES = "|".join(
    (
        r"(?:\A|\n)[ \t]*[A-Za-z_.][\w.]*(?::|[ \t]\*?\$?)?",
        _CONSTANT,
        r"(?:\)?,[ \t]?)?[\[({]?[ \t]?[%*:]?[A-Za-z_][\w.$@:]*(?:[ \t]|[\])}]*!?(?:,[ \t]?)?)",
        r"[\])}]*!?,?[ \t]?[\[({]?\$?",
    )
)


@dataclass(frozen=True)
class Document:
    """One function in one variant, as a model reads it."""

    key: str
    variant: str
    body_sha256: str
    text: str
    project: str
    assembly: str
    """What the text was made from: the text itself, or the view whose events it tells."""


def documents(
    record: FunctionRecord,
    task: DocumentTask,
    variants: Sequence[str] = ("*",),
    *,
    hide_numbers: bool = False,
) -> Iterator[Document]:
    """A record's documents, in the order of variant names; those whose text an earlier one has are left out.

    `completion` shows clean assembly, `retrieval` what a stripped binary shows, `events` what that does, the
    last two without numbers if those are to be hidden; `variants` are globs.
    """
    seen = set()
    for name in sorted(record.assembly):
        body = record.meta.variants[name].body_sha256
        is_wanted = any(fnmatchcase(name, pattern) for pattern in variants)
        if not is_wanted or (task != "completion" and body in seen):
            continue
        assembly = assembly_of(record, name, task, hide_numbers=hide_numbers)
        text = as_read(assembly, task)
        if text not in seen:
            seen |= {text, body}
            yield Document(record.key, name, body, text, record.meta.project, assembly)


def assembly_of(record: FunctionRecord, variant: str, task: DocumentTask, *, hide_numbers: bool) -> str:
    """`Document.assembly` of one variant."""
    write = clean if task == "completion" else view
    assembly = write(record.assembly[variant], Variant.parse(variant).isa)
    return masked(assembly) if hide_numbers else assembly


def task_of(config: Any) -> str:
    """The task whose texts a model reads, by its config: `events`, or views as they are.

    Raises:
        ModelError: it reads events that are told in another version's words.
    """
    reads = str(getattr(config, "reads", "retrieval"))
    if reads.startswith("events") and reads != EVENTS:
        raise ModelError(
            f"the model reads {reads!r}, and this version of asmtrain tells {EVENTS!r}",
            remedy="train and export it again, or use the version that made it",
        )
    return reads.partition(".")[0]


def as_read(view_text: str, task: str) -> str:
    """What a model of this task reads of a view: the view itself, or the events in it."""
    return event_text(view_text) if task == "events" else view_text


def event_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of `events`: a token a word, the same for every corpus."""
    words = [PAD, BOS, EOS, *(f"e{number}" for number in range(NUM_WORDS))]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_end_tokens(backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer for assembly, learnt from these texts; equal texts give an equal tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _with_end_tokens(backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder or hub name, made to write BOS and EOS and able to pad.

    Raises:
        ModelError: there is none, it has no EOS token, or it is not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer can be loaded from {path}: {str(error).splitlines()[0]}",
            remedy="give a folder that holds tokenizer.json, or a hub name this machine can reach",
        ) from None
    if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {path} has no EOS token or no tokenizer.json",
            remedy="convert it to a fast tokenizer with an EOS token",
        )
    return _with_end_tokens(
        tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token,
        chat_template=tokenizer.chat_template,
    )


def _with_end_tokens(backend: Tokenizer, **special: str | None) -> PreTrainedTokenizerFast:
    """A plain fast tokenizer around this backend, padding and cutting on the right.

    Plain, because the classes of some models, Llama's among them, write their own post-processor on load.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token is not None},
    )
    first = [tokenizer.bos_token] if tokenizer.bos_token else []
    names = [*first, tokenizer.eos_token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", tokenizer.eos_token],
        pair=[*first, "$A", "$B", tokenizer.eos_token],
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names],
    )
    return tokenizer
