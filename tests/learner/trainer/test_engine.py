import pytest

from learner.trainer.engine import learning_rate


def test_the_rate_rises_linearly_to_its_peak_and_stays_there() -> None:
    rates = [learning_rate(step, peak=1e-6, warmup_steps=4) for step in range(6)]
    assert rates == pytest.approx([0.25e-6, 0.5e-6, 0.75e-6, 1e-6, 1e-6, 1e-6])


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    assert learning_rate(0, peak=3e-4, warmup_steps=0) == 3e-4
