"""The experiment this project grew from, step by step: does the last token stand for the whole function?

Its claims (none was measured): the embedding of a code model's last token stands for a function; tuning by
LoRA on assembly helps; so does unfreezing the language-model head, which keeps the backbone's embedding from
bending towards a frozen one. The rows, each judged by `eval retrieval`'s own harness on unseen projects:

    untrained        the base's shape with random weights
    as is            the base
    head frozen      the base tuned on AArch64 by LoRA on every linear layer
    head trained     the same with `unfreeze: [lm_head]`
    contrast         `head trained`, then the contrastive stage

Each but the last by the text's last token, as in the experiment, by the end token behind it and by the mean;
and as it is or centred, less the mean of training functions' vectors, since those of a language model all
point one way. Head frozen and trained have several seeds, and their difference a Student interval over them.

    python benchmarks/experiment.py [--base FOLDER] [--corpus CORPUS] [--run FOLDER] [--seeds 3] [--save]

FOLDER is a causal language model of Hugging Face such as Code Llama. Without it a small one is trained by
configs/train/experiment-base.yaml, mostly on C and x86-64. Started again, it goes on. Takes a quarter of an
hour on two cores. Prints a table, and as its last line one JSON object; `--save` keeps it in
results/experiment.json. Shapes: N texts, B of them, T tokens, D hidden size.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _commands import BIN, call
from _saved import save
from rich import box
from rich.table import Table
from scipy.stats import t as student
from transformers import AutoConfig, AutoModel

from asmtrain import terminal
from asmtrain.encoder import Vectors, embed_texts, load_encoder, map_batches
from asmtrain.tasks import baselines, leaks, probe, retrieval
from asmtrain.tokens import load_tokenizer

CONFIGS = Path("configs/train")
LANES = ("XO O0O3 aarch64", "XM all")
POOLS = (128, 1000)
POOLINGS = ("last", "end", "mean")
MAX_TOKENS = 512
"""As long as the rows that the language models learnt from; the end of a longer text is not seen."""
TEXTS_AT_ONCE = 8
NUM_CENTRING = 1000
"""Training bodies whose vectors' mean is taken off."""
TRAINED, FROZEN = "head trained", "head frozen"

Named = dict[tuple[str, int, str, bool], dict[str, Vectors]]
"""(Step, seed, pooling, whether centred) to body sha256 to vector."""


def main() -> None:
    """Train what is not there yet, embed, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="folder of a causal language model")
    parser.add_argument("--corpus", type=Path, default=Path("runs/demo/corpus"))
    parser.add_argument("--run", type=Path, default=Path("runs/experiment"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    models, losses = trained(arguments.base, arguments.corpus.resolve(), arguments.run, arguments.seeds)
    rows, cosines = judged(models, arguments.corpus, arguments.run, seeds=arguments.seeds)
    result = {
        "base": str(arguments.base.name) if arguments.base else "configs/train/experiment-base.yaml",
        "seeds": arguments.seeds,
        "max_tokens": MAX_TOKENS,
        "valid_loss": losses,
        "mean_cosine_of_training_functions": cosines,
        "head_trained_less_head_frozen": differences(rows),
        "rows": rows,
    }
    show(result)
    if arguments.save:
        save("experiment", result)
    print(json.dumps(result))


# Training.


def trained(
    base: Path | None, corpus: Path, home: Path, seeds: int
) -> tuple[dict[tuple[str, int], Path], dict[str, list[float]]]:
    """The language models by step and seed; and the validation losses on AArch64 of those tuned."""
    if base is None:
        base = train(CONFIGS / "experiment-base.yaml", 0, home / "base", corpus)
    models = {("as is", 0): base}
    losses: dict[str, list[float]] = {FROZEN: [], TRAINED: []}
    for seed in range(seeds):
        for step, unfreeze in ((FROZEN, []), (TRAINED, ["lm_head"])):
            run = home / f"{step.replace(' ', '-')}-{seed}"
            config = CONFIGS / "experiment.yaml"
            models[step, seed] = train(config, 0, run, corpus, path=base, seed=seed, unfreeze=unfreeze)
            losses[step].append(json.loads((run / "finished.json").read_bytes())["valid_loss"]["tune"])
    for pooling in ("lasttoken", "mean"):
        run = home / f"contrast-{pooling}"
        train(CONFIGS / "experiment.yaml", 1, run, corpus, path=models[TRAINED, 0], pooling=pooling)
    return models, losses


def train(
    path_of_config: Path,
    stage: int,
    run: Path,
    corpus: Path,
    *,
    path: Path | None = None,
    seed: int = 0,
    unfreeze: Sequence[str] | None = None,
    pooling: str | None = None,
) -> Path:
    """Run one stage of a config by itself and export it; returns the language model's folder."""
    config = yaml.safe_load(path_of_config.read_text())
    config["stages"] = [config["stages"][stage]]
    config |= {"run": str(run), "seed": seed}
    if path:
        config["model"]["path"] = str(path)
    if "tokenizer" in config:
        config["tokenizer"]["corpus"] = str(corpus)
    for part in config["stages"][0]["data"]:
        part["corpus"] = str(corpus)
    if unfreeze is not None:
        config["stages"][0]["trainable"]["unfreeze"] = list(unfreeze)
    if pooling:
        config["stages"][0]["embedding"]["pooling"] = pooling
    own = run.with_suffix(".yaml")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(yaml.safe_dump(config))
    if not (run / "export").exists():
        call("launch/train.sh", own.resolve())
        call(BIN / "asmtrain", "export", run)
    return run / "export" / "merged"


# Vectors.


def judged(
    models: Mapping[tuple[str, int], Path], corpus: Path, home: Path, *, seeds: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """A row a lane, pool, step and pooling; and the mean cosine of vectors as they are."""
    seen = {leak.key for leak in leaks.leaks(corpus, "test", corpus)}
    tasks, texts = retrieval.prepare(corpus, split="test", seed=0, lanes=LANES, without=seen)
    centring = probe.sample(corpus, "train", NUM_CENTRING, seed=0).texts
    vectors: Named = {}
    cosines: dict[str, dict[str, float]] = {}
    folders = {("untrained", 0): models["as is", 0], **models}
    for (step, seed), folder in folders.items():
        states = pooled(folder, [*texts.values(), *centring], is_random=step == "untrained")
        for pooling, states_ND in states.items():
            own_ND, others_ND = states_ND[: len(texts)], states_ND[len(texts) :]
            cosine = float((unit(others_ND).mean(axis=0) ** 2).sum())
            if seed == 0:
                cosines.setdefault(step, {})[pooling] = cosine
            for is_centred in (False, True):
                moved_ND = own_ND - others_ND.mean(axis=0) if is_centred else own_ND
                vectors[step, seed, pooling, is_centred] = dict(zip(texts, unit(moved_ND), strict=True))
    for pooling, name in (("end", "lasttoken"), ("mean", "mean")):
        encoder = load_encoder(home / f"contrast-{name}" / "export" / "embedding")
        embedded = embed_texts(encoder, list(texts.values()))
        vectors["contrast", 0, pooling, False] = dict(zip(texts, embedded, strict=True))
    return list(rows_of(tasks, texts, vectors)), cosines


def pooled(folder: Path, texts: Sequence[str], *, is_random: bool) -> dict[str, Vectors]:
    """(N, D) last hidden states of a language model, by pooling."""
    if is_random:
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    else:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)  # it writes BOS and EOS
    ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
    batches = [order[at : at + TEXTS_AT_ONCE] for at in range(0, len(order), TEXTS_AT_ONCE)]
    found = {name: np.zeros((len(texts), model.config.hidden_size), np.float32) for name in POOLINGS}

    def work(batch: list[int]) -> tuple[list[int], list[torch.Tensor]]:
        ids_BT = torch.zeros(len(batch), len(ids[batch[0]]), dtype=torch.long)
        for row, at in enumerate(batch):
            ids_BT[row, : len(ids[at])] = torch.tensor(ids[at])
        # Padding stands behind the text, and attention looks back only: no mask is needed.
        hidden_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return batch, [hidden_BTD[row, : len(ids[at])] for row, at in enumerate(batch)]

    for batch, states in map_batches(work, batches, torch.device("cpu")):
        for at, hidden_TD in zip(batch, states, strict=True):
            found["last"][at] = hidden_TD[-2]
            found["end"][at] = hidden_TD[-1]
            found["mean"][at] = hidden_TD[:-1].mean(dim=0)
    return found


def unit(vectors_ND: Vectors) -> Vectors:
    """Vectors of length 1."""
    units_ND: Vectors = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    return units_ND


# Figures.


def rows_of(
    tasks: Sequence[retrieval.Task], texts: Mapping[str, str], vectors: Named
) -> Iterator[dict[str, Any]]:
    """Rows of the harness over all queries, those of several seeds as their mean."""
    table = baselines.text_table(texts)
    keys = {"|".join(map(str, key)): key for key in vectors}
    named = {name: vectors[key] for name, key in keys.items()}
    for task in tasks:
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in retrieval.evaluate(task, table, named, seed=0):
            if row["pool"] in POOLS and row["bucket"] == "all":
                step, _, pooling, is_centred = keys.get(row["model"], (row["model"], 0, None, None))
                groups.setdefault((row["pool"], step, pooling, is_centred), []).append(row)
        for (pool, step, pooling, is_centred), group in groups.items():
            recalls = [row["recall_at_1"] for row in group]
            yield {"task": task.lane.task, "isa": task.lane.isa, "pool": pool, "step": step} | {
                "pooling": pooling,
                "centred": is_centred,
                "recall_at_1": float(np.mean(recalls)),
                "recall_at_1_by_seed": recalls,
                "mrr_at_10": float(np.mean([row["mrr_at_10"] for row in group])),
                "ci95_of_first": group[0]["ci95"],
                "num_queries": group[0]["num_queries"],
            }


def differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Recall@1 of the trained head less the frozen one's: mean over seeds, with its 95 % interval."""
    place = ("task", "isa", "pool", "pooling", "centred")
    by_step = {(row["step"], *(row[name] for name in place)): row["recall_at_1_by_seed"] for row in rows}
    found = []
    for (step, *where), recalls in by_step.items():
        if step == TRAINED:
            each = np.subtract(recalls, by_step[FROZEN, *where])
            mean, num = float(each.mean()), len(each)
            half = float(student.ppf(0.975, num - 1) * each.std(ddof=1) / num**0.5) if num > 1 else None
            interval = None if half is None else [mean - half, mean + half]
            found.append(dict(zip(place, where, strict=True)) | {"difference": mean, "ci95": interval})
    return found


def show(result: Mapping[str, Any]) -> None:
    """The table: a line a step and pooling, a column a lane and pool."""
    columns = [(task.rpartition(" ")[0], pool) for task in LANES for pool in POOLS]
    headings = ("step", "pooling", *(f"{task} {pool}" for task, pool in columns))
    table = Table(*headings, title="Recall@1 MRR@10", box=box.SIMPLE_HEAD)
    lines: dict[tuple[Any, ...], dict[tuple[str, int], str]] = {}
    for row in result["rows"]:
        cells = lines.setdefault((row["step"], row["pooling"], row["centred"]), {})
        cells[row["task"], row["pool"]] = f"{row['recall_at_1']:.3f} {row['mrr_at_10']:.3f}"
    for (step, pooling, is_centred), cells in lines.items():
        label = f"{pooling}, centred" if is_centred else pooling or ""
        table.add_row(step, label, *(cells.get(column, "") for column in columns))
    terminal.console().print(table)
    headings = ("difference of Recall@1", "pooling", "head trained - frozen", "95 % over seeds")
    table = Table(*headings, box=box.SIMPLE_HEAD)
    for row in result["head_trained_less_head_frozen"]:
        label = f"{row['pooling']}, centred" if row["centred"] else row["pooling"]
        bounds = ", ".join(f"{bound:+.3f}" for bound in row["ci95"] or ())
        table.add_row(f"{row['task']} {row['isa']} {row['pool']}", label, f"{row['difference']:+.3f}", bounds)
    terminal.console().print(table)


if __name__ == "__main__":
    main()
