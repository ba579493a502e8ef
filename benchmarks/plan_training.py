"""How the cost of training grows with context, LoRA rank and ranks: measured small, projected to clusters.

`--measure` takes steps of a small LoRA on this machine, through the trainer's own engine and losses, on rows
that are one document each, and sets each growth beside what the arithmetic of `asmtrain.flops` gives.

The projection is for Code Llama 7B's shape with LoRA on every linear layer, a row a GPU and micro-step:

    compute   operations of a row / (MFU x the GPU's bf16 peak)
    ZeRO 2    a micro-step reduces the adapter's gradients (fp32), a step gathers its weights (bf16)
    ZeRO 3    a micro-step gathers all weights twice (bf16), forward and backward, and reduces as ZeRO 2
    link      what a GPU sends of B bytes to N is (N - 1) / N of B, over NVLink within a node of 8, over its
              share of the node's network beyond; each collective costs a latency for each doubling of N

The higher rate hides communication behind compute where it is shorter, the lower hides none: the truth lies
between. The MFU is an assumption until it is measured (benchmarks/train_gpu.py). Stragglers, evaluation and
checkpoints come on top. Last line: one JSON object.

    python benchmarks/plan_training.py [--tokens 1e9] [--mfu 0.4] [--gpu H200] [--network-gb 50]
    python benchmarks/plan_training.py --measure [--save]
"""

import argparse
import json
import math
import os
import pickle
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from _saved import save
from rich.console import Console
from rich.table import Table

from asmtrain import dist
from asmtrain.attention import use_within_documents
from asmtrain.config import Lora, ShapeConfig, TrainConfig, load_train_config
from asmtrain.data import RowBatch
from asmtrain.engine import Engine
from asmtrain.flops import TrainingFlops, peak_flops, training_flops
from asmtrain.model import TokenLossModel, attach_lora, llama_config, new_model, set_trainable
from asmtrain.objectives import causal_lm_backward

RESULTS = Path(__file__).with_name("results")
CODE_LLAMA_7B = Path(__file__).parents[1] / "configs" / "train" / "codellama-7b.yaml"
SMALL = ShapeConfig(
    vocab_size=2048, hidden_size=256, intermediate_size=688, num_layers=4, num_heads=4, num_kv_heads=4
)
CONTEXT, RANK = 1024, 16
CASES = {
    "context": [(context, RANK, 1) for context in (512, 1024, 2048, 4096)],
    "LoRA rank": [(CONTEXT, rank, 1) for rank in (4, 16, 64, 256)],
    "ranks": [(CONTEXT, RANK, ranks) for ranks in (1, 2)],
}
GPUS, NODE, CONTEXTS = (8, 64, 512), 8, (4096, 16384)
STEPS, WARM_UP = 7, 2


@dataclass(frozen=True)
class Plan:
    """One line of the projection; times are seconds of one micro-step that is a whole step."""

    gpus: int
    context: int
    zero_stage: int
    compute_s: float
    communication_s: float

    @property
    def least_s(self) -> float:
        """Communication hidden behind compute."""
        return max(self.compute_s, self.communication_s)

    @property
    def most_s(self) -> float:
        """None of it hidden."""
        return self.compute_s + self.communication_s


def main() -> None:
    """Measure or read, project, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the growth on this machine")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/plan_training.json")
    parser.add_argument("--tokens", type=float, default=1e9, help="of the training run")
    parser.add_argument("--rank", type=int, default=RANK, help="of the LoRA")
    parser.add_argument("--mfu", type=float, default=0.4, help="LoRA-exact share of the GPU's peak")
    parser.add_argument("--gpu", default="H200", help="a name that asmtrain.flops knows")
    parser.add_argument("--nvlink-gb", type=float, default=450, help="GB/s a GPU sends within a node")
    parser.add_argument("--network-gb", type=float, default=50, help="GB/s a GPU sends between nodes")
    parser.add_argument("--latency-us", type=float, default=20, help="of a collective, a doubling of GPUs")
    arguments = parser.parse_args()
    growth = measure() if arguments.measure else read_growth()
    show_growth(growth)
    plans = project(arguments)
    show_plans(plans, arguments)
    figures = {
        "growth": growth,
        "projection": [asdict(p) | {"least_s": p.least_s, "most_s": p.most_s} for p in plans],
        "assumed": {
            key: getattr(arguments, key) for key in ("mfu", "gpu", "rank", "nvlink_gb", "network_gb")
        },
    }
    if arguments.save:
        save("plan_training", figures)
    print(json.dumps(figures))


# Measured small


def measure() -> dict[str, list[dict[str, float]]]:
    """Each growth: what was varied, the step's seconds, and both as multiples of the first."""
    growth = {}
    for name, cases in CASES.items():
        lines = []
        for context, rank, ranks in cases:
            seconds, flops = timed(context, rank, ranks)
            varied = {"context": context, "LoRA rank": rank, "ranks": ranks}[name]
            lines.append({"value": varied, "seconds": seconds, "flops": flops})
        growth[name] = [
            line
            | {
                "measured": line["seconds"] / lines[0]["seconds"],
                "counted": line["flops"] / lines[0]["flops"],
            }
            for line in lines
        ]
    return growth


def read_growth() -> dict[str, list[dict[str, float]]]:
    """What was measured before."""
    path = RESULTS / "plan_training.json"
    if not path.exists():
        sys.exit(f"error: {path} is missing; run with --measure first")
    return dict(json.loads(path.read_text())["growth"])


def timed(context: int, rank: int, ranks: int) -> tuple[float, float]:
    """Median seconds of a step of one row a rank, and the operations of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, 20000 + os.getpid() % 20000, folder, context, rank)
        torch.multiprocessing.spawn(take_steps, args=given, nprocs=ranks)
        seconds, flops = pickle.loads((Path(folder) / "result").read_bytes())
    return seconds, flops


def take_steps(local: int, ranks: int, port: int, folder: str, context: int, rank: int) -> None:
    """One rank: a few steps at ZeRO 2, one thread."""
    named = {"RANK": local, "LOCAL_RANK": local, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in named.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    config = config_of(SMALL, context, rank, ranks)
    model = adapted(SMALL, context, rank)
    flops = training_flops(model, headless=False).of_documents([context])
    use_within_documents(model)
    with dist.joined() as world:
        engine = Engine(TokenLossModel(model), config, config.stages[0], world=world)
        seconds = []
        for step in range(STEPS):
            started = time.perf_counter()
            causal_lm_backward(engine, [one_document(context, seed=step * ranks + local)])
            engine.step(1e-3)
            seconds.append(time.perf_counter() - started)
        if world.is_main:
            (Path(folder) / "result").write_bytes(pickle.dumps((statistics.median(seconds[WARM_UP:]), flops)))


def config_of(shape: ShapeConfig, context: int, rank: int, ranks: int) -> TrainConfig:
    """A stage of one row a rank and step."""
    stage = {
        "name": "lora",
        "objective": "causal_lm",
        "data": [{"corpus": "unused", "task": "completion"}],
        "trainable": {"kind": "lora", "rank": rank},
        "optimizer": {"lr": 1e-3},
        "steps": STEPS,
        "context": context,
        "rows_per_step": ranks,
        "micro_rows": 1,
    }
    return TrainConfig.model_validate(
        {"run": "unused", "model": {"shape": shape}, "tokenizer": {"corpus": "unused"}, "stages": [stage]}
    )


def adapted(shape: ShapeConfig, context: int, rank: int) -> Any:
    """A Llama with LoRA on every linear layer."""
    lora = Lora(kind="lora", rank=rank)
    model = attach_lora(
        new_model(llama_config(shape, max_positions=context), dtype="fp32", seed=0), lora, base=""
    )
    set_trainable(model, lora, headless=False)
    return model


def one_document(context: int, *, seed: int) -> RowBatch:
    """A row of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, SMALL.vocab_size, (1, context), generator=generator)
    return RowBatch(ids_BT, torch.arange(context)[None], ids_BT, torch.zeros_like(ids_BT))


# Projected


def project(arguments: argparse.Namespace) -> list[Plan]:
    """Every number of GPUs, context and ZeRO stage."""
    peak = peak_flops(arguments.gpu)
    if peak is None:
        sys.exit(f"error: the peak of {arguments.gpu!r} is not known; see asmtrain/flops.py")
    shape = load_train_config(CODE_LLAMA_7B).model.shape
    assert shape is not None
    with torch.device("meta"):
        model = adapted(shape, max(CONTEXTS), arguments.rank)
    flops = training_flops(model, headless=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return [
        Plan(
            gpus,
            context,
            zero_stage,
            compute_s(flops, context, arguments.mfu * peak),
            communication_s(gpus, zero_stage, trained=trained, total=total, arguments=arguments),
        )
        for context in CONTEXTS
        for zero_stage in (2, 3)
        for gpus in GPUS
    ]


def compute_s(flops: TrainingFlops, context: int, rate: float) -> float:
    """A row that is one document, the most that packed rows can cost."""
    return flops.of_documents([context]) / rate


def communication_s(
    gpus: int, zero_stage: int, *, trained: int, total: int, arguments: argparse.Namespace
) -> float:
    """Seconds that a micro-step which is a step spends in collectives, if nothing hides them."""
    gb_per_s = arguments.nvlink_gb if gpus <= NODE else arguments.network_gb
    sizes = [4 * trained, 2 * trained]  # gradients are reduced, updated weights gathered
    if zero_stage == 3:
        sizes = [4 * trained, 2 * total, 2 * total]
    latency_s = arguments.latency_us * 1e-6 * math.ceil(math.log2(gpus))
    return sum(size * (gpus - 1) / gpus / (gb_per_s * 1e9) + latency_s for size in sizes)


# Shown


def show_growth(growth: dict[str, list[dict[str, float]]]) -> None:
    """Measured beside counted."""
    table = Table("varied", "value", "seconds a step", "measured", "operations counted")
    for name, lines in growth.items():
        for line in lines:
            times = (f"{line[key]:.2f}" for key in ("measured", "counted"))
            table.add_row(name, f"{line['value']:,}", f"{line['seconds']:.3f}", *times)
    Console(width=100).print(table)


def show_plans(plans: list[Plan], arguments: argparse.Namespace) -> None:
    """A line a plan."""
    title = f"Code Llama 7B, LoRA rank {arguments.rank}, {arguments.gpu}, MFU {arguments.mfu:.0%} assumed"
    hours = f"hours for {arguments.tokens:.0e} tokens"
    table = Table(
        "context", "ZeRO", "GPUs", "compute (s)", "communication (s)", "tokens/s", hours, title=title
    )
    for plan in plans:
        rates = [plan.gpus * plan.context / seconds for seconds in (plan.most_s, plan.least_s)]
        table.add_row(
            *(f"{value:,}" for value in (plan.context, plan.zero_stage, plan.gpus)),
            f"{plan.compute_s:.3f}",
            f"{plan.communication_s:.3f}",
            " to ".join(f"{rate:,.0f}" for rate in rates),
            " to ".join(f"{arguments.tokens / rate / 3600:.2f}" for rate in reversed(rates)),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
