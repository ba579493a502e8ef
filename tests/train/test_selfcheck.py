"""`asmtrain selfcheck resume`: the proof on a tiny config, and that a difference is found and named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asmtrain.config import load_train_config
from asmtrain.selfcheck import compare
from test_train import run_config


def test_a_killed_run_of_a_users_config_is_proven_equal(tiny_corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, tiny_corpus)
    settings = yaml.safe_load(config.read_text())
    settings["stages"] = settings["stages"][1:2]  # LoRA with dropout
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "asmtrain.cli", "selfcheck", "resume", config, "--steps", "6", "--ranks", "2"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("straight: undisturbed, after 6 steps", "killed: to its end, after 6 steps"):
        assert line in done.stdout
    assert "killed: killed while it writes a checkpoint, after " in done.stdout
    assert ["lora", "6", "equal", "equal"] in [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.endswith("equal bit for bit: a run of this config may be killed at any time\n")
    assert not list(tmp_path.glob("asmtrain-selfcheck-*"))
    assert not (tmp_path / "run").exists(), "the user's run folder is not touched"


@pytest.mark.parametrize("difference", ["loss", "steps", "weights"])
def test_a_difference_is_found_and_the_first_step_named(tmp_path: Path, difference: str) -> None:
    corpus = tmp_path / "corpus"
    configs = []
    for name in ("straight", "killed"):
        config = load_train_config(run_config(tmp_path / name, corpus))
        configs.append(config)
        differs = name == "killed"
        lines = [
            {
                "global_step": step,
                "stage": "pretrain",
                "step": step,
                "loss": 1 / step,
                "seconds": 1.0,
                "data_s": 0,
            }
            for step in range(1, 5 if differs and difference == "steps" else 6)
        ]
        if differs and difference == "loss":
            lines[2]["loss"] += 1e-16
            lines[3]["loss"] += 1.0
        for number, stage in enumerate(("01-pretrain", "02-lora", "03-embed")):
            folder = config.run / "stages" / stage
            folder.mkdir(parents=True)
            changed = differs and difference == "weights" and number == 0
            (folder / "manifest.json").write_text(json.dumps({"model.safetensors": "b" if changed else "a"}))
        (config.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, *others = compare(*configs)
    assert [verdict.equal for verdict in others] == [True, True]
    assert not first.equal
    assert (
        first.first_difference
        == {
            "loss": f"step 3: loss {1 / 3!r} undisturbed, {1 / 3 + 1e-16!r} killed",
            "steps": "5 steps undisturbed, 4 killed",
            "weights": "",
        }[difference]
    )
    assert first.weights_equal == (difference != "weights")
