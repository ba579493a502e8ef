"""The memory estimate of `--dry-run` beside what training steps really hold, setting by setting.

Each setting trains a Llama of 37 million random weights for two steps, through DeepSpeed, on CPU ranks of its
own. Measured is the peak over the steps of the bytes that torch's allocator has handed out on rank 0
(torch.profiler, from before the model is made): tensors alone, as torch.cuda.max_memory_allocated would tell.
The resident set was rejected: it leaves out what was not touched yet, and adds libraries. Prints a table;
last line: one JSON object, `estimate_over_measured` is the ratio that is farthest from 1, `ratios` has all.

    python benchmarks/train_memory.py [--only TEXT] [--save]
"""

import argparse
import json
import os
import socket
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from _saved import save
from rich.console import Console
from rich.table import Table

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 8,
}
DOCUMENT = 256
# trainable, ZeRO stage, dtype, recompute, context, micro_rows, micro-steps, ranks
SETTINGS = [
    ("full", 0, "fp32", False, 512, 2, 1, 1),
    ("full", 0, "bf16", False, 512, 2, 1, 1),
    ("full", 1, "bf16", False, 1024, 1, 2, 2),
    ("full", 2, "fp32", False, 512, 2, 1, 1),
    ("full", 2, "fp32", False, 2048, 2, 1, 2),
    ("full", 2, "bf16", True, 1024, 2, 2, 1),
    ("full", 3, "fp32", False, 1024, 1, 1, 2),
    ("full", 3, "bf16", False, 1024, 2, 1, 1),
    ("lora", 0, "fp32", False, 1024, 2, 1, 1),
    ("lora", 1, "fp32", False, 1024, 2, 2, 1),
    ("lora", 2, "fp32", False, 2048, 1, 1, 2),
    ("lora", 2, "fp32", True, 2048, 2, 1, 1),
    ("lora", 2, "bf16", False, 1024, 2, 1, 1),
    ("lora", 3, "bf16", True, 2048, 2, 1, 2),
]


def main() -> None:
    """Measure each setting and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/memory.json")
    arguments = parser.parse_args()
    table = Table("setting", "estimate (MiB)", "measured (MiB)", "ratio")
    ratios = {}
    for setting in SETTINGS:
        name = name_of(setting)
        if arguments.only in name:
            estimated, measured = estimate(setting), measure(setting)
            ratios[name] = round(estimated / measured, 3)
            sizes = (f"{size / 2**20:,.0f}" for size in (estimated, measured))
            table.add_row(name, *sizes, f"{estimated / measured:.3f}")
            print(f"{name}: {estimated / 2**20:.0f} / {measured / 2**20:.0f} MiB", flush=True)
    Console(width=110).print(table)
    worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    figures = {"estimate_over_measured": worst, "ratios": ratios}
    if arguments.save:
        save("memory", figures)
    print(json.dumps(figures))


def name_of(setting: tuple[Any, ...]) -> str:
    """In words."""
    kind, zero_stage, dtype, recompute, context, micro_rows, micro_steps, ranks = setting
    recomputed = " recompute" if recompute else ""
    return f"{kind} ZeRO {zero_stage} {dtype}{recomputed} {micro_steps}x{micro_rows}x{context} ranks {ranks}"


def config_of(setting: tuple[Any, ...]) -> Any:
    """A run of one stage."""
    from asmtrain.config import TrainConfig

    kind, zero_stage, dtype, recompute, context, micro_rows, micro_steps, ranks = setting
    stage = {
        "name": "one",
        "objective": "causal_lm",
        "data": [{"corpus": "unused", "task": "completion"}],
        "trainable": {"kind": kind},
        "optimizer": {"lr": 1e-4},
        "steps": 2,
        "context": context,
        "rows_per_step": micro_rows * micro_steps * ranks,
        "micro_rows": micro_rows,
    }
    run = {
        "run": "unused",
        "model": {"shape": SHAPE, "dtype": dtype, "gradient_checkpointing": recompute},
        "tokenizer": {"corpus": "unused"},
        "stages": [stage],
        "engine": {"zero_stage": zero_stage},
    }
    return TrainConfig.model_validate(run)


def estimate(setting: tuple[Any, ...]) -> int:
    """What `--dry-run` tells."""
    from asmtrain.memory import activation_bytes, step_bytes
    from asmtrain.model import count_parameters, llama_config, meta_model

    config = config_of(setting)
    stage, dtype = config.stages[0], config.model.dtype
    model = meta_model(llama_config(config.model.shape), stage.trainable, dtype=dtype, headless=False)
    count = count_parameters(model)
    passes = {keep: activation_bytes(model, config, stage, keep_gradients=keep) for keep in (False, True)}
    return step_bytes(count, passes, config, stage, zero_stage=setting[1], world_size=setting[-1])


def measure(setting: tuple[Any, ...]) -> int:
    """Train on ranks of their own; returns rank 0's peak in bytes."""
    ranks = setting[-1]
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        torch.multiprocessing.spawn(train, args=(ranks, port, setting, Path(folder)), nprocs=ranks)
        return int((Path(folder) / "peak").read_text())


def train(rank: int, ranks: int, port: int, setting: tuple[Any, ...], folder: Path) -> None:
    """Two steps on one rank, under the profiler."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    from asmtrain import dist

    cpu = [torch.profiler.ProfilerActivity.CPU]
    with dist.joined() as world:
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            take_steps(config_of(setting), world)
        if world.is_main:
            (folder / "peak").write_text(str(peak_of(profile.profiler.kineto_results.events())))


def take_steps(config: Any, world: Any) -> None:
    """The stage's model, engine and objective on random tokens, in documents of 256."""
    from asmtrain.attention import use_within_documents
    from asmtrain.config import Lora
    from asmtrain.data import RowBatch
    from asmtrain.engine import Engine
    from asmtrain.model import (
        TokenLossModel,
        attach_lora,
        enable_recompute,
        llama_config,
        new_model,
        set_trainable,
    )
    from asmtrain.objectives import causal_lm_backward

    stage = config.stages[0]
    shape = (stage.micro_rows, stage.context)
    model: Any = new_model(llama_config(config.model.shape), dtype=config.model.dtype, seed=0)
    if isinstance(stage.trainable, Lora):
        model = attach_lora(model, stage.trainable, base="")
    set_trainable(model, stage.trainable, headless=False)
    if config.model.gradient_checkpointing:
        enable_recompute(model)
    use_within_documents(model)
    engine = Engine(TokenLossModel(model), config, stage, world=world)
    places_BT = torch.arange(stage.context).expand(shape)
    ids_BT = torch.randint(0, SHAPE["vocab_size"], shape)
    batch = RowBatch(ids_BT, places_BT % DOCUMENT, ids_BT, places_BT // DOCUMENT)
    with torch.profiler.record_function("steps"):
        for _ in range(stage.steps):
            causal_lm_backward(engine, [batch] * engine.accumulation)
            engine.step(1e-4)


def peak_of(events: list[Any]) -> int:
    """The most bytes that were allocated at a time once the steps had begun."""
    (begin,) = (event.start_ns() for event in events if event.name() == "steps")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    totals = accumulate(size for _, size in changes)
    return max(total for (at, _), total in zip(changes, totals, strict=True) if at >= begin)


if __name__ == "__main__":
    main()
