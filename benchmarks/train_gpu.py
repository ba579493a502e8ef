"""Code Llama 7B on one GPU: LoRA of rank 16 on all linears, bf16, packed rows of 4K and 16K tokens.

The weights are random and made on the device: nothing is downloaded, nothing installed. Rows hold documents
of lengths like functions' (log-normal, median 300 tokens, seeded), cut where the row ends; with CACHE, a
folder under a run's `cache`, a real corpus's. Each variant takes its steps in a process of its own, through
our engine and objective as `asmtrain train` does; what runs out of memory says so. The fastest at 4K is set
beside HF Trainer with peft on the same rows and weights, with documents kept apart by position ids.

MFU counts what LoRA needs (`asmtrain.flops`) at the documents' real lengths, over the data sheet's dense
rate in bf16. Prints a table, and as its last line one JSON object: mfu_4k, mfu_16k, tokens_per_s_4k,
tokens_per_s_16k, vs_hf_trainer_4k, loss, grad_norm (of the first step at 4K), variants.

    python benchmarks/train_gpu.py [CACHE] [--steps 6] [--micro-rows 2] [--save]
    python benchmarks/train_gpu.py --device cpu --tiny       the same code on a tiny shape, in a minute
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _saved import save
from rich.console import Console
from rich.table import Table

CODE_LLAMA = Path(__file__).parents[1] / "configs" / "train" / "codellama-7b.yaml"
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
}
LORA = {"kind": "lora", "rank": 16, "alpha": 32}
WARM_UP = 2
VARIANTS = [
    {"attention": "sdpa"},
    {"attention": "documents"},
    {"attention": "documents_varlen"},
    {"attention": "documents_varlen", "whole_logits": True},
    {"attention": "documents_varlen", "recompute": True},
    {"attention": "documents_varlen", "compile": True},
    {"attention": "documents_varlen", "compile": True, "recompute": True},
]

CPU_VARIANTS = [{"attention": "sdpa"}, {"attention": "documents", "recompute": True}]


def main() -> None:
    """Measure the variants, then the best at 16K and the other contender; or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, nargs="?", help="a folder of a run's cache: document lengths")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro-rows", type=int, default=2, help="rows of 4K at a time")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and short rows")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_gpu.json")
    parser.add_argument("--be", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check_machine(arguments.device)
    if arguments.be:
        print(json.dumps(theirs(arguments) if arguments.be.get("hf") else ours(arguments)))
        return
    short, long = (64, 256) if arguments.tiny else (4096, 16384)
    wanted = VARIANTS if arguments.device == "cuda" else CPU_VARIANTS
    rows = [measure(arguments, {**v, "context": short, "rows": arguments.micro_rows}) for v in wanted]
    best = max((row for row in rows if "error" not in row), key=lambda row: row["tokens_per_s"], default=None)
    if best is None:
        sys.exit(f"error: no variant ran: {rows[0]['error']}")
    far = {**best["variant"], "context": long, "rows": 1}
    at_long = measure(arguments, far)
    if "error" in at_long:
        at_long = measure(arguments, {**far, "recompute": True})
    hf = measure(arguments, {"hf": True, "context": short, "rows": arguments.micro_rows})
    if "error" in hf:
        hf = measure(
            arguments, {"hf": True, "recompute": True, "context": short, "rows": arguments.micro_rows}
        )
    show([*rows, at_long, hf])
    figures = {
        "mfu_4k": best.get("mfu"),
        "mfu_16k": at_long.get("mfu"),
        "tokens_per_s_4k": best["tokens_per_s"],
        "tokens_per_s_16k": at_long.get("tokens_per_s"),
        "vs_hf_trainer_4k": None if "error" in hf else round(best["tokens_per_s"] / hf["tokens_per_s"], 3),
        "loss": best["loss"],
        "grad_norm": best["grad_norm"],
        "device": best["device"],
        "rows": str(arguments.cache or "synthetic"),
        "variants": [*rows, at_long, hf],
    }
    if arguments.save:
        save("train_gpu", figures)
    print(json.dumps(figures))


def check_machine(device: str) -> None:
    """Say clearly what is missing; nothing is installed."""
    missing = [name for name in ("deepspeed", "peft", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(
            f"error: {', '.join(missing)} is not installed here, and our engine runs on it: pip install it"
        )
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no CUDA device; --device cpu --tiny runs the same code")


def measure(arguments: argparse.Namespace, variant: dict[str, Any]) -> dict[str, Any]:
    """One variant in a process of its own; its figures, or why there are none."""
    own = [sys.executable, __file__, "--be", json.dumps(variant), "--steps", str(arguments.steps)]
    own += ["--device", arguments.device] + ["--tiny"] * arguments.tiny
    own += [str(arguments.cache)] if arguments.cache else []
    done = subprocess.run(own, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "error" in line]
        figures = {"error": (lines or [f"exit code {done.returncode}"])[-1][:200]}
    else:
        figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"variant": variant, **figures}), flush=True)
    return {"variant": variant, **figures}


def document_lengths_of(cache: Path | None, context: int, rows: int) -> list[int]:
    """Lengths that fill `rows` rows of `context` tokens exactly."""
    import numpy as np

    drawn = np.random.default_rng(0).lognormal(np.log(300), 0.9, 1 << 14).astype(int).clip(8)
    if cache:
        from asmtrain.cache import TokenCache

        drawn = TokenCache(cache).lengths
    lengths, source = [], itertools.cycle(drawn.tolist())
    for _ in range(rows):
        left = context
        while left:
            lengths.append(min(next(source), left))
            left -= lengths[-1]
    return lengths


def batch_of(variant: dict[str, Any], arguments: argparse.Namespace, device: Any) -> tuple[Any, list[int]]:
    """A packed micro-batch of random tokens on the device, and its documents' lengths."""
    import torch

    from asmtrain.data import RowBatch

    shape = (variant["rows"], variant["context"])
    lengths = document_lengths_of(arguments.cache, variant["context"], variant["rows"])
    positions_BT = torch.cat([torch.arange(length) for length in lengths]).view(shape)
    documents_BT = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).view(shape)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, shape_of(arguments)["vocab_size"], shape, generator=generator)
    labels_BT = ids_BT.masked_fill(positions_BT == 0, -100)
    sides = (ids_BT, positions_BT, labels_BT, documents_BT)
    return RowBatch(*(side.to(device) for side in sides)), lengths


def shape_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the model."""
    from asmtrain.config import load_train_config

    shape = load_train_config(CODE_LLAMA).model.shape
    assert shape is not None
    return TINY if arguments.tiny else shape.model_dump()


def model_on(device: Any, arguments: argparse.Namespace) -> Any:
    """The base with random weights, made where they will stand, with its adapter."""
    import torch
    from transformers import LlamaForCausalLM

    from asmtrain.config import Lora, ShapeConfig
    from asmtrain.model import attach_lora, llama_config, set_trainable

    lora = Lora.model_validate(LORA)
    config = llama_config(ShapeConfig(**shape_of(arguments)), max_positions=16384)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    with device:
        model = attach_lora(model.to(torch.bfloat16), lora, base="random")
    set_trainable(model, lora, headless=False)
    return model


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of our engine and objective."""
    import torch

    from asmtrain import dist
    from asmtrain.attention import use_within_documents
    from asmtrain.config import TrainConfig
    from asmtrain.engine import Engine
    from asmtrain.model import TokenLossModel, compile_blocks, enable_recompute
    from asmtrain.objectives import causal_lm_backward

    variant = arguments.be
    config = TrainConfig.model_validate(run_config(arguments))
    with dist.joined() as world:
        model = model_on(world.device, arguments)
        use_within_documents(model, variant["attention"])
        if variant.get("recompute"):
            enable_recompute(model)
        if variant.get("compile"):
            compile_blocks(model)
        logits = {"logits_at_once": 1 << 62} if variant.get("whole_logits") else {}
        engine = Engine(TokenLossModel(model, **logits), config, config.stages[0], world=world)
        batch, lengths = batch_of(variant, arguments, world.device)
        losses, norms, seconds = [], [], []
        for _ in range(arguments.steps):
            started = time.perf_counter()
            losses.append(causal_lm_backward(engine, [batch])[0])
            norms.append(engine.step(1e-4))  # a number: the device is done
            seconds.append(time.perf_counter() - started)
        engine.close()
        assert all(torch.tensor([*losses, *norms]).isfinite())
        return figures_of(model, lengths, seconds) | {"loss": losses[0], "grad_norm": norms[0]}


def run_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """A run of one stage, as a config would say it."""
    variant = arguments.be
    stage = {
        "name": "lora",
        "objective": "causal_lm",
        "data": [{"corpus": "unused", "task": "completion"}],
        "trainable": LORA,
        "optimizer": {"lr": 1e-4},
        "steps": arguments.steps,
        "context": variant["context"],
        "rows_per_step": variant["rows"],
        "micro_rows": variant["rows"],
    }
    return {
        "run": "unused",
        "model": {"shape": shape_of(arguments), "dtype": "bf16"},
        "tokenizer": {"corpus": "unused"},
        "stages": [stage],
        "engine": {"zero_stage": 2},
    }


def figures_of(model: Any, lengths: list[int], seconds: list[float]) -> dict[str, Any]:
    """Rate, MFU and memory from a variant's steps after the first ones."""
    import torch

    from asmtrain.flops import peak_flops, training_flops

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    step_s, peak = statistics.median(seconds[WARM_UP:]), peak_flops(device)
    flops = training_flops(model, headless=False).of_documents(lengths)
    peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "tokens_per_s": round(sum(lengths) / step_s, 1),
        "mfu": round(flops / step_s / peak, 4) if peak else None,
        "peak_gib": round(peak_bytes / 2**30, 2) if peak_bytes else None,
        "device": device,
    }


def theirs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of HF Trainer with peft, as their documentation joins them, on one device."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    variant, seconds, logged = arguments.be, [], []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **named: Any) -> None:
            logged.append(logs)

    device = torch.device(arguments.device)
    model = model_on(device, arguments)
    batch, lengths = batch_of(variant, arguments, torch.device("cpu"))
    sides = {"input_ids": batch.ids_BT, "position_ids": batch.position_ids_BT, "labels": batch.labels_BT}
    row = [{name: side[at] for name, side in sides.items()} for at in range(variant["rows"])]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=variant["rows"],
            max_steps=arguments.steps,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=arguments.device == "cpu",
            bf16=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            gradient_checkpointing=bool(variant.get("recompute")),
            disable_tqdm=True,
        )
        Trainer(model, options, train_dataset=row * arguments.steps, callbacks=[Clock()]).train()
    first = logged[0]
    figures = figures_of(model, lengths, seconds)
    return figures | {"loss": float(first["loss"]), "grad_norm": float(first["grad_norm"])}


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each variant."""
    names = ("tokens_per_s", "mfu", "peak_gib", "loss", "grad_norm", "error")
    table = Table("variant", *names)
    for row in rows:
        words = " ".join(f"{key}={value}" for key, value in row["variant"].items())
        table.add_row(words, *(str(row.get(name, "")) for name in names))
    Console(width=160).print(table)


if __name__ == "__main__":
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
    main()
