"""Memory that an export takes above what its imports take, beside the largest shard that it reads.

Makes a run of one LoRA stage on a base of about 8 shards of random bf16 weights, then exports it with
`asmtrain export` in a process of its own, whose peak counts (pages of mapped files included). Prints a
line, and as its last line one JSON object; `--save` keeps it in results/export_memory.json.

    python benchmarks/export_memory.py [--shard-mb 64] [--save]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _saved import save

from asmtrain import checkpoint, export
from asmtrain.checkpoint import StageResult
from asmtrain.config import Lora, ShapeConfig
from asmtrain.model import attach_lora, llama_config, load_model, new_model, result_names
from asmtrain.tokens import train_tokenizer

HIDDEN, FEED_FORWARD = 512, 1408
LORA = Lora(kind="lora", rank=16, alpha=32)


def main() -> None:
    """Make the run, export it in another process, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard-mb", type=int, default=64, help="size of a shard, 10**6 bytes")
    parser.add_argument("--folder", type=Path, help="for 16 shards, instead of a temporary one")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        print(json.dumps(measure(arguments.export, arguments.shard_mb * 10**6)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run = Path(folder)
        make_run(run, arguments.shard_mb * 10**6)
        sizes = [path.stat().st_size for path in (run / "base").glob("*.safetensors")]
        command = [sys.executable, __file__, "--export", folder, "--shard-mb", str(arguments.shard_mb)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    figures = {
        "shards": len(sizes),
        "model_mb": round(sum(sizes) / 1e6, 1),
        "largest_shard_mb": round(max(sizes) / 1e6, 1),
        **{name: round(value / 1e6, 1) for name, value in measured.items()},
        "peak_over_largest_shard": round((measured["peak_mb"] - measured["imports_mb"]) / max(sizes), 3),
    }
    print(
        f"a model of {figures['model_mb']} MB in {figures['shards']} shards: the export took"
        f" {figures['peak_over_largest_shard']} times the largest shard"
    )
    if arguments.save:
        save("export_memory", figures)
    print(json.dumps(figures))


def make_run(run: Path, shard_bytes: int) -> None:
    """A base of about 8 shards, and a LoRA stage on it."""
    layer_bytes = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FEED_FORWARD)
    shape = ShapeConfig(
        vocab_size=4096,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_layers=8 * shard_bytes // layer_bytes,
        num_heads=8,
        num_kv_heads=8,
    )
    new_model(llama_config(shape), dtype="bf16", seed=0).save_pretrained(
        run / "base", max_shard_size=shard_bytes
    )
    train_tokenizer(["mov x0, 1\nret\n"] * 2, vocab_size=300).save_pretrained(run / "tokenizer")
    (run / "config.yaml").write_text("seed: 0\n")
    model: Any = attach_lora(load_model(str(run / "base"), dtype="bf16"), LORA, base="base")
    parameters = dict(model.named_parameters())
    tensors = {name: torch.randn(parameters[name].shape).mul(0.01).bfloat16() for name in result_names(model)}
    result = StageResult(
        name="lora",
        index=0,
        step=1,
        objective="causal_lm",
        trainable=LORA,
        embedding=None,
        dtype="bf16",
        base="base",
        corpora={},
    )
    with checkpoint.atomic_folder(checkpoint.stage_folder(run, 0, "lora")) as draft:
        checkpoint.write_result(draft, result, model=model, files=checkpoint.result_files(model, tensors, {}))


def measure(run: Path, shard_bytes: int) -> dict[str, int]:
    """Export; resident bytes before it and at the highest."""
    torch.set_num_threads(1)
    from transformers import LlamaForCausalLM  # noqa: F401 (its import is no part of the export)

    before = resident("VmRSS")
    export.run(run, options=export.Options(shard_bytes=shard_bytes))
    return {"imports_mb": before, "peak_mb": resident("VmHWM")}


def resident(kind: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or the most so far (VmHWM)."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
