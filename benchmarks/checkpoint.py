"""How long a training loop waits for a checkpoint: `python benchmarks/checkpoint.py [--save]`.

A random Llama of 100 million parameters, all trained in fp32 at ZeRO 2 on one rank, saved three times; no
corpus is needed. Printed: how long the loop waits for its copy, and how long the writing takes after that.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from _saved import save

from asmtrain import dist
from asmtrain.config import ShapeConfig, TrainConfig
from asmtrain.engine import Engine
from asmtrain.model import llama_config, new_model
from asmtrain.saving import save_checkpoint
from asmtrain.stage import Stage
from asmtrain.ulysses import WHOLE

SHAPE = ShapeConfig(
    vocab_size=32016, hidden_size=640, intermediate_size=1728, num_layers=12, num_heads=10, num_kv_heads=10
)
STAGE = {
    "name": "one",
    "objective": "causal_lm",
    "data": [{"corpus": "unused", "task": "completion"}],
    "trainable": {"kind": "full"},
    "optimizer": {"lr": 1e-3},
    "steps": 10,
    "rows_per_step": 1,
    "micro_rows": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, dist.joined() as world:
        config = TrainConfig.model_validate(
            {"run": folder, "model": {"shape": SHAPE}, "tokenizer": {"corpus": "unused"}, "stages": [STAGE]}
        )
        model = new_model(llama_config(SHAPE), dtype="fp32", seed=0)
        engine = Engine(model, config, config.stages[0], world=world)
        stage = Stage(config, 0, world, None, model, None, "base", {}, engine, WHOLE)
        engine.backward(engine(input_ids=torch.arange(16)[None], use_cache=False).logits.mean())
        engine.step(1e-3)
        waits, writes = zip(*(_saved(stage, step) for step in range(1, 4)), strict=True)
        size = sum(path.stat().st_size for path in Path(folder).glob("checkpoints/*3/**/*") if path.is_file())
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size_bytes": size,
        "loop_waits_s": round(sorted(waits)[1], 3),
        "writing_takes_s": round(sorted(writes)[1], 3),
    }
    shares = sorted(wait / (wait + write) for wait, write in zip(waits, writes, strict=True))
    figures["wait_share"] = round(shares[1], 3)
    if arguments.save:
        save("checkpoint", figures)
    print(json.dumps(figures))


def _saved(stage: Stage, step: int) -> tuple[float, float]:
    started = time.perf_counter()
    save_checkpoint(stage, step)
    copied = time.perf_counter()
    stage.writer.wait()
    return copied - started, time.perf_counter() - copied


if __name__ == "__main__":
    main()
