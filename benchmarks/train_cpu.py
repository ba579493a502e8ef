"""The trainer beside Hugging Face's Trainer with peft and DeepSpeed: same model, rows, ranks and optimizer.

Both train a LoRA of a small random Llama on the same packed rows (documents isolated by position ids), on two
CPU ranks at ZeRO 2 through the deepspeed launcher, round after round. Prints tokens a second (median over
steps but the first two), the seconds from the command to the end of the first step, and both first losses,
which must be equal. Last line: one JSON object; `vs_hf_trainer` is our tokens/s over theirs (median of the
rounds), `data_share` the largest share of a step that our loop waited for its batch.

    python benchmarks/train_cpu.py [CORPUS] [--context 2048] [--steps 8] [--rounds 3] [--save]
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _saved import save
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]
RANKS, ROWS_PER_STEP, RANK_OF_LORA, LEARNING_RATE = 2, 4, 16, 1e-3
WARM_UP = 2
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
}


def main() -> None:
    """Measure and print; or, as a rank of the other contender, train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    corpus = Path("runs/demo/corpus")
    parser.add_argument("corpus", type=Path, nargs="?", default=corpus, help="a corpus folder (make demo's)")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_cpu.json")
    parser.add_argument("--as-rank-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank_in:
        train_with_hugging_face(arguments.as_rank_in, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder, arguments)
        fill = write_rows(folder, config, arguments.steps)
        rounds = [
            (train_ours(folder, config), train_theirs(folder, arguments)) for _ in range(arguments.rounds)
        ]
    show(rounds)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in rounds]
    figures = {
        "vs_hf_trainer": round(statistics.median(ratios), 3),
        "data_share": round(max(ours["data_share"] for ours, _ in rounds), 4),
        "packing_efficiency": round(fill, 4),
        "context": arguments.context,
        "first_losses": [each["first_loss"] for each in rounds[0]],
        "first_step_s": [
            round(statistics.median(pair[side]["first_step_s"] for pair in rounds), 1) for side in (0, 1)
        ],
    }
    if arguments.save:
        save("train_cpu", figures)
    print(json.dumps(figures))


def write_config(folder: Path, arguments: argparse.Namespace) -> Path:
    """One LoRA stage on a base that both contenders load."""
    stage = {
        "name": "lora",
        "objective": "causal_lm",
        "data": [{"corpus": str(arguments.corpus.resolve()), "task": "completion"}],
        "trainable": {"kind": "lora", "rank": RANK_OF_LORA, "alpha": 2 * RANK_OF_LORA},
        "optimizer": {"lr": LEARNING_RATE, "weight_decay": 0.0},
        "steps": arguments.steps,
        "context": arguments.context,
        "rows_per_step": ROWS_PER_STEP,
        "micro_rows": 1,
    }
    config = {
        "run": str(folder / "run"),
        "model": {"dtype": "fp32", "shape": SHAPE},
        "tokenizer": {"corpus": str(arguments.corpus.resolve()), "max_functions": 400},
        "engine": {"zero_stage": 2},
        "checkpoint": {"every_steps": 1_000_000},
        "stages": [stage],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_rows(folder: Path, path: Path, steps: int) -> float:
    """The run's tokenizer, base and token cache, and its rows as arrays; returns the share of real tokens."""
    from asmtrain.config import load_train_config
    from asmtrain.data import RowBatches, build_cache
    from asmtrain.stage import prepare_run
    from asmtrain.tokens import load_tokenizer

    config = load_train_config(path, [])
    prepare_run(config, RANKS)
    stage = config.stages[0]
    tokenizer = load_tokenizer(config.run / "tokenizer")
    caches = [build_cache(part, "train", tokenizer, config.run / "cache") for part in stage.data]
    batches = RowBatches(
        caches, [1.0], context=stage.context, rows_per_step=ROWS_PER_STEP, micro_rows=1, seed=config.seed
    )
    rows = [row for step in range(steps) for row in batches.step(step)]
    names = {"input_ids": "ids_BT", "position_ids": "position_ids_BT", "labels": "labels_BT"}
    arrays = {name: np.concatenate([getattr(row, own) for row in rows]) for name, own in names.items()}
    np.savez(folder / "rows.npz", real=[int((row.document_ids_BT >= 0).sum()) for row in rows], **arrays)
    shutil.copytree(config.run, folder / "prepared")
    return batches.fill


def train_ours(folder: Path, config: Path) -> dict[str, float]:
    """A fresh run through launch/train.sh."""
    run = folder / "run"
    shutil.rmtree(run)
    shutil.copytree(folder / "prepared", run)
    log = run / "metrics.jsonl"
    started = time.time()
    first_step = threading.Thread(target=wait_for, args=(log, firsts := []), daemon=True)
    first_step.start()
    launch([REPOSITORY / "launch" / "train.sh", config], RANKS=str(RANKS))
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    measured = steps[WARM_UP:]
    return {
        "tokens_per_s": statistics.median(step["num_tokens"] / step["seconds"] for step in measured),
        "data_share": max(step["data_s"] / step["seconds"] for step in measured),
        "first_loss": steps[0]["loss"],
        "first_step_s": firsts[0] - started,
    }


def wait_for(file: Path, seen: list[float]) -> None:
    """Note when a file appears."""
    while not file.exists():
        time.sleep(0.05)
    seen.append(time.time())


def train_theirs(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """This script as two ranks under the same launcher."""
    own = [__file__, arguments.corpus, "--as-rank-in", folder, "--steps", arguments.steps]
    port = str(20000 + os.getpid() % 20000)
    started = time.time()
    launch(["deepspeed", "--num_accelerators", str(RANKS), "--master_port", port, "--no_local_rank", *own])
    steps = json.loads((folder / "theirs.json").read_text())
    ends = [step["at"] for step in steps[WARM_UP - 1 :]]
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    real = np.load(folder / "rows.npz")["real"].reshape(-1, ROWS_PER_STEP).sum(axis=1)[WARM_UP:]
    return {
        "tokens_per_s": statistics.median(real / np.asarray(seconds)),
        "first_loss": steps[0]["loss"],
        "first_step_s": steps[0]["at"] - started,
    }


def launch(argv: list[Any], **variables: str) -> None:
    """Run to the end with one thread a rank; says what went wrong."""
    threads = str(max(1, (os.cpu_count() or 1) // RANKS))
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads, **variables}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run([str(word) for word in argv], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"error: {argv[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def train_with_hugging_face(folder: Path, steps: int) -> None:
    """One rank of the other contender: Trainer, peft and DeepSpeed as their documentation joins them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    times: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *given: Any, **named: Any) -> None:
            times.append({"at": time.time()})

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **named: Any) -> None:
            if "loss" in logs:
                times[-1]["loss"] = logs["loss"]

    rows = dict(np.load(folder / "rows.npz"))
    names = ("input_ids", "position_ids", "labels")
    dataset = [
        {name: torch.from_numpy(rows[name][at]) for name in names} for at in range(len(rows["labels"]))
    ]
    model = AutoModelForCausalLM.from_pretrained(folder / "prepared" / "base", dtype=torch.float32)
    lora = LoraConfig(
        r=RANK_OF_LORA, lora_alpha=2 * RANK_OF_LORA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adam = {"lr": LEARNING_RATE, "weight_decay": 0.0, "torch_adam": True}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": ROWS_PER_STEP // RANKS,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": {"stage": 2},
    }
    options = TrainingArguments(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=ROWS_PER_STEP // RANKS,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        deepspeed=settings,
        disable_tqdm=True,
    )
    Trainer(get_peft_model(model, lora), options, train_dataset=dataset, callbacks=[Clock()]).train()
    if int(os.environ["RANK"]) == 0:
        (folder / "theirs.json").write_text(json.dumps(times))


def show(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    """A line for each round."""
    table = Table(
        "round", "ours (tokens/s)", "HF Trainer (tokens/s)", "ratio", "first losses", "first step (s)"
    )
    for number, (ours, theirs) in enumerate(rounds, 1):
        pairs = [f"{ours[key]:.5g} {theirs[key]:.5g}" for key in ("first_loss", "first_step_s")]
        rates = ours["tokens_per_s"], theirs["tokens_per_s"]
        table.add_row(str(number), *(f"{rate:,.0f}" for rate in rates), f"{rates[0] / rates[1]:.2f}", *pairs)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
