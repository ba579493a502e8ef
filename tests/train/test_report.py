"""A run's page: every stage, curve, result and key is in it, nothing is fetched; a bad folder is one line."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from asmtrain import cli, report
from asmtrain.errors import CheckpointError
from asmtrain.metrics import StepFigures
from runs import make_run


@pytest.fixture
def run(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A run of three stages with 40 steps each, and a line that a kill cut short."""
    folder = make_run(tmp_path / "<a run>", tiny_tokenizer)
    lines = [
        {"global_step": 40 * index + step}
        | asdict(StepFigures(name, step, 8 - step / 10, 1e-3, 1.5, 900, 0.3))
        for index, name in enumerate(("pretrain", "lora", "embed"))
        for step in range(1, 41)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"global_step": 121, "sta')
    return folder


def test_the_page_holds_stages_curves_config_and_results(run: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    rows = [
        {"task": "O0-O3", "pool": 100, "recall_at_1": 0.6912},
        {"task": "a<b", "pool": 32, "recall_at_1": 1.0},
        {"task": "of small functions", "pool": 32, "recall_at_1": 1.0, "bucket": "<20"},
    ]
    (evaluation / "retrieval.json").write_text(json.dumps(rows))
    page = report.run(run, tmp_path / "page.html", [evaluation]).read_text()
    for name in ("pretrain", "lora", "embed"):
        assert f"<h2>{name}</h2>" in page
    assert page.count("<svg") == 3
    assert "0.691" in page
    assert "a&lt;b" in page
    assert "of small functions" not in page
    assert "&lt;a run&gt;" in page
    assert "<a run>" not in page
    assert "seed: 0" in page
    assert "Not finished" in page
    assert not re.search(r'(src|href)="?http', page)


def test_evaluations_are_a_curve_and_a_table_of_isas_and_levels(run: Path) -> None:
    plain = report.run(run).read_text()
    assert "perplexity" not in plain
    lines = [
        {"global_step": step, "stage": "pretrain", "step": step, "loss": 3.0, "perplexity": cells}
        for step, cells in (
            (20, {"aarch64.o0": 9.0}),
            (40, {"x86_64.o2": 7.25, "aarch64.o0": 5.5, "aarch64.o2": 6.125}),
        )
    ]
    lines.append({"global_step": 120, "stage": "embed", "step": 40, "loss": 1.0, "perplexity": {}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "evaluations.jsonl").write_text(text + '{"global_step": 1')
    page = report.run(run).read_text()
    assert page.count("validation perplexity a token") == 1
    assert "pretrain: validation perplexity a token after 40 steps" in page
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", page[page.index("validation perplexity") :])
    assert cells[:9] == ["ISA", "o0", "o2", "aarch64", "5.500", "6.125", "x86_64", "", "7.250"]
    curves = page.split("<svg")[1:]
    assert [curve.count("1f5fa8") > plain.count("1f5fa8") for curve in curves] == [True, False, True]


def test_figures_are_those_of_the_steps(run: Path) -> None:
    steps = [step | {"tokens_per_s": 3000.0} for step in report.read_steps(run) if step["stage"] == "lora"]
    shown = report.summary(steps, 3.5)
    assert (shown.steps, shown.first_loss, shown.valid_loss, shown.num_tokens) == (40, 7.9, 3.5, 36_000)
    assert shown.last_loss == pytest.approx((4.0 + 4.1) / 2)
    assert shown.seconds == pytest.approx(12.0)


def test_the_command_writes_the_page_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").exists()


def test_a_folder_without_steps_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has taken a step") as caught:
        report.run(tmp_path)
    assert "`run`" in caught.value.remedy
    with pytest.raises(CheckpointError, match="holds no results"):
        report.evaluation_tables(tmp_path)
