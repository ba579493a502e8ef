"""MFU in a step's figures: where the peak is known, and nowhere else."""

import json
from pathlib import Path

import pytest

from asmtrain.config import load_train_config
from asmtrain.metrics import Metrics, StepFigures
from test_train import run_config


@pytest.mark.parametrize("rate", [None, 2e-4])
def test_a_step_tells_its_mfu_where_the_peak_is_known(
    rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_train_config(run_config(tmp_path, tmp_path / "corpus"))
    metrics = Metrics(config, 0, 0, mfu_per_rate=rate)
    metrics.step(StepFigures("pretrain", 1, 2.0, 1e-3, 0.5, num_tokens=4000, seconds=2.0))
    metrics.close()
    (line,) = (config.run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line).get("mfu") == (rate and pytest.approx(0.4))
    assert ("MFU 40.0%" in capsys.readouterr().out) == (rate is not None)
