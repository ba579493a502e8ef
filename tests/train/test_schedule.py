"""The learning rate at the points that matter."""

import pytest

from asmtrain.config import OptimizerConfig
from asmtrain.schedule import lr_at

COSINE = OptimizerConfig(lr=1.0, warmup_steps=10, schedule="cosine", min_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (54, 0.55), (99, 0.1), (500, 0.1)]
)
def test_warm_up_then_cosine(step: int, expected: float) -> None:
    assert lr_at(step, COSINE, 100) == pytest.approx(expected)


def test_never_rises_after_warm_up_nor_falls_before() -> None:
    rates = [lr_at(step, COSINE, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_constant_stays_after_warm_up() -> None:
    optimizer = OptimizerConfig(lr=3e-4, warmup_steps=2, schedule="constant")
    assert [lr_at(step, optimizer, 5) for step in range(5)] == [1.5e-4, 3e-4, 3e-4, 3e-4, 3e-4]


@pytest.mark.parametrize("total", [1, 2, 10])
@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 20])
def test_short_stages_stay_between_zero_and_lr(total: int, warmup_steps: int) -> None:
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=warmup_steps)
    assert all(0 < lr_at(step, optimizer, total) <= 1.0 for step in range(total))


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert lr_at(0, OptimizerConfig(lr=0.5), 100) == 0.5
