"""What a tokenizer is worth: tokens a function, and what a model finds that learnt from them.

    assembly         this project's: mnemonics, registers and constants whole (`asmtrain.tokens`)
    gpt2_split       a byte-level BPE with GPT-2's word split, of equal size, from the same training functions
    llama            the one in FOLDER (`--llama`), such as Code Llama's; or a gguf file, see vocabulary.py
    llama_extended   the same with `assembly_tokens: 1000`, learnt from the same functions
    llama_long       no other tokenizer: as `llama`, but texts are cut later, by as much as they are longer

All are measured on the test split's functions, in the form that retrieval sees. Then with each a model of
the demo's shape, from random weights, takes the same number of contrastive steps on the same functions in the
same order, and searches the test split as `eval retrieval` does: Recall@1, MRR@10, and what the steps took.
Prints tables, and as its last line one JSON object; `--save` keeps it in results/tokenizer.json, and the
tables in docs/embedding.md.

    python benchmarks/tokenizer.py [CORPUS] [--llama FOLDER] [--steps 100] [--save]
"""

import argparse
import itertools
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from _commands import BIN, call
from _report import markdown, report
from _saved import save
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vocabulary import original

from asmtrain.config import ShapeConfig
from asmtrain.model import llama_config, new_model
from asmtrain.tokens import BOS, EOS, PAD, Document, documents, load_tokenizer, train_tokenizer
from asmtrain.vocabulary import extend_tokenizer, num_ids
from corpus_builder.asm import num_instructions
from corpus_builder.shards import read_split

PAGE = Path("docs/embedding.md")
CONFIG = Path("configs/train/demo.yaml")
LANES = ("XO O0O3 aarch64", "XM all")
NEW_TOKENS = 1000
LONG = "llama_long"
_CONSTANT = re.compile(r"(?<![\w.%$@-])-?\d+(?![\w.])")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("runs/demo/corpus"))
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--functions", type=int, default=2000, help="functions of each split")
    parser.add_argument("--llama", type=Path, help="folder of a Llama tokenizer, or a gguf file")
    parser.add_argument("--steps", type=int, default=100, help="contrastive steps with each; 0 for none")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    train, test = (read(arguments.corpus, split, arguments.functions) for split in ("train", "test"))
    with tempfile.TemporaryDirectory(prefix="asmtrain-tokenizer-") as name:
        home = Path(name)
        folders = tokenizers([item.text for item in train], arguments.vocab_size, arguments.llama, home)
        contenders = {name: load_tokenizer(folder) for name, folder in folders.items()}
        figures = {
            name: {"vocabulary": num_ids(item)} | measure(item.backend_tokenizer, test)
            for name, item in contenders.items()
        }
        if arguments.steps:
            found = retrieved(contenders, figures, home, arguments.corpus.resolve(), arguments.steps)
    result = {
        "vocab_size": arguments.vocab_size,
        "train_documents": len(train),
        "test_documents": len(test),
        **figures,
        "times_shorter": ratio(figures, "gpt2_split", "assembly"),
    }
    tables = {"tokens": token_table(figures)}
    if arguments.steps:
        result |= {"steps": arguments.steps, "retrieval": found}
        tables["tokens-found"] = found_table(found)
    print(*tables.values(), sep="\n")
    if arguments.save:
        save("tokenizer", result)
        report(PAGE, tables)
    print(json.dumps(result))


def read(corpus: Path, split: str, num_functions: int) -> list[Document]:
    """The documents of the first functions of a split."""
    records = itertools.islice(read_split(corpus, split), num_functions)
    return [item for record in records for item in documents(record, "retrieval")]


def ratio(figures: dict[str, dict[str, Any]], longer: str, shorter: str) -> float:
    """How many times as many tokens a function has."""
    return round(figures[longer]["tokens_per_function"] / figures[shorter]["tokens_per_function"], 3)


# Tokenizers.


def tokenizers(texts: list[str], vocab_size: int, llama: Path | None, home: Path) -> dict[str, Path]:
    """A folder a tokenizer."""
    made = {
        "assembly": train_tokenizer(texts, vocab_size=vocab_size),
        "gpt2_split": gpt2_split(texts, vocab_size),
    }
    if llama:
        made |= {"llama": original(llama), "llama_extended": original(llama)}
    folders = {name: home / name for name in made}
    for name, tokenizer in made.items():
        tokenizer.save_pretrained(folders[name])
    if llama:
        extend_tokenizer(folders["llama_extended"], texts, num_tokens=NEW_TOKENS)
    return folders


def gpt2_split(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2 splits words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def measure(tokenizer: Tokenizer, test: list[Document]) -> dict[str, Any]:
    """Tokens an instruction (all, and per ISA and level), share of constants that are one token, speed."""
    started = time.perf_counter()
    encoded = tokenizer.encode_batch([item.text for item in test], add_special_tokens=False)
    seconds = time.perf_counter() - started
    tokens = [len(item.ids) for item in encoded]
    instructions = [num_instructions(item.text) for item in test]
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(test):
        isa, _, level = item.variant.split(".")
        groups.setdefault(f"{isa}.{level}", []).append(number)
    per_group = {
        name: round(sum(tokens[i] for i in members) / sum(instructions[i] for i in members), 3)
        for name, members in sorted(groups.items())
    }
    return {
        "tokens_per_instruction": round(sum(tokens) / sum(instructions), 3),
        "tokens_per_function": round(sum(tokens) / len(test), 1),
        "whole_constants": round(whole_constants(test, encoded), 4),
        "tokens_per_second": round(sum(tokens) / seconds),
        "by_variant": per_group,
    }


def whole_constants(test: list[Document], encoded: list[Any]) -> float:
    """Share of the constants in the texts that are one token, with at most the space before them."""
    num_whole = num_constants = 0
    for item, encoding in zip(test, encoded, strict=True):
        offsets = {(start + (item.text[start:stop][:1] == " "), stop) for start, stop in encoding.offsets}
        spans = [match.span() for match in _CONSTANT.finditer(item.text)]
        num_constants += len(spans)
        num_whole += sum(span in offsets for span in spans)
    return num_whole / num_constants


# What is found.


def retrieved(
    contenders: dict[str, Any], figures: dict[str, Any], home: Path, corpus: Path, steps: int
) -> list[dict[str, Any]]:
    """A row a contender and lane."""
    settings = yaml.safe_load(CONFIG.read_text())
    usual = settings["stages"][-1]["embedding"]["max_tokens"]
    limits = dict.fromkeys(contenders, usual)
    if "llama" in contenders:
        limits[LONG] = round(usual * ratio(figures, "llama", "assembly"))
    rows = []
    for name, max_tokens in limits.items():
        tokenizer = contenders["llama" if name == LONG else name]
        run = home / "runs" / name
        started = begin(tokenizer, settings["model"]["shape"], run / "start")
        config = settings | {
            "run": str(run),
            "model": {"path": str(started)},
            "stages": [settings["stages"][-1]],
        }
        config.pop("tokenizer")
        config["stages"][0] |= {"steps": steps, "data": [{"corpus": str(corpus), "task": "retrieval"}]}
        config["stages"][0]["embedding"]["max_tokens"] = max_tokens
        rows += searched(name, config, corpus)
    return rows


def begin(tokenizer: Any, shape: dict[str, Any], folder: Path) -> Path:
    """A model of random weights with this tokenizer."""
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    own = ShapeConfig(**shape | {"vocab_size": num_ids(tokenizer)})
    new_model(llama_config(own, **ids), dtype="fp32", seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def searched(name: str, config: dict[str, Any], corpus: Path) -> list[dict[str, Any]]:
    """Train, export and search; the rows over all queries."""
    run = Path(config["run"])
    own = run / "wanted.yaml"
    own.write_text(yaml.safe_dump(config | {"run": str(run / "train")}))
    call("launch/train.sh", own)
    call(BIN / "asmtrain", "export", run / "train", "--output", run / "export")
    model = run / "export" / "embedding"
    command = ("eval", "retrieval", "--model", model, "--corpus", corpus, "--output", run, "--no-bag")
    call(BIN / "asmtrain", *command, "--lanes", *LANES)
    taken = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    cost = {
        "max_tokens": config["stages"][0]["embedding"]["max_tokens"],
        "tokens_per_step": round(sum(step["num_tokens"] for step in taken) / len(taken)),
        "train_seconds": round(sum(step["seconds"] for step in taken), 1),
    }
    kept = ("task", "isa", "pool", "recall_at_1", "mrr_at_10", "ci95", "num_queries")
    rows = json.loads((run / "retrieval.json").read_bytes())["rows"]
    return [
        {"tokenizer": name} | cost | {key: row[key] for key in kept}
        for row in rows
        if (row["model"], row["bucket"]) == ("trained", "all")
    ]


def token_table(figures: dict[str, dict[str, Any]]) -> str:
    """Markdown: how many tokens."""
    headings = ("vocabulary", "tokens an instruction", "tokens a function", "constants whole", "tokens/s")
    cells = [
        [
            name,
            row["vocabulary"],
            f"{row['tokens_per_instruction']:.2f}",
            f"{row['tokens_per_function']:.0f}",
            f"{row['whole_constants']:.1%}",
            row["tokens_per_second"],
        ]
        for name, row in figures.items()
    ]
    return markdown(["tokenizer", *headings], cells)


def found_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: Recall@1 (MRR@10) of each lane's largest pool, and what the steps took."""
    largest = {(row["tokenizer"], f"{row['task']} {row['isa']}"): row for row in rows}  # the last of each
    lanes = list(dict.fromkeys(lane for _, lane in largest))
    cells = []
    for name in dict.fromkeys(row["tokenizer"] for row in rows):
        own = [largest[name, lane] for lane in lanes]
        found = [f"{row['recall_at_1']:.3f} ({row['mrr_at_10']:.3f})" for row in own]
        cells.append([name, own[0]["max_tokens"], own[0]["tokens_per_step"], own[0]["train_seconds"], *found])
    pools = [f"{lane} among {largest[cells[0][0], lane]['pool']:,}" for lane in lanes]
    return markdown(["tokenizer", "cut at", "tokens a step", "training s", *pools], cells)


if __name__ == "__main__":
    main()
