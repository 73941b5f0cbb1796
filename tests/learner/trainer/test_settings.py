"""The learning rate is a function of the step alone."""

import math
from itertools import pairwise

import pytest

from dcpo_async.config import TrainingSettings
from learner.trainer.settings import learning_rate


def rates(steps: range, **settings: object) -> list[float]:
    training = TrainingSettings(learning_rate=1e-6, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, training) for step in steps]


def test_the_rate_rises_linearly_to_its_peak_and_stays_there() -> None:
    assert rates(range(6), warmup_steps=4) == pytest.approx([0.25e-6, 0.5e-6, 0.75e-6, 1e-6, 1e-6, 1e-6])


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    assert rates(range(1), warmup_steps=0) == [1e-6]


def test_a_line_ends_at_its_share_of_the_peak_and_stays_there() -> None:
    found = rates(range(8), warmup_steps=2, schedule="linear", schedule_steps=6, final_rate_share=0.2)
    assert found == pytest.approx([0.5e-6, 1e-6, 1e-6, 0.8e-6, 0.6e-6, 0.4e-6, 0.2e-6, 0.2e-6])


def test_half_a_cosine_is_half_way_in_its_middle_and_flat_at_its_ends() -> None:
    found = rates(range(13), warmup_steps=0, schedule="cosine", max_steps=12, final_rate_share=0.0)
    assert found[6] == pytest.approx(0.5e-6)
    assert found[3] == pytest.approx(0.5e-6 * (1 + math.cos(math.pi / 4)))
    assert found[12] == pytest.approx(0.0, abs=1e-20)
    assert all(later < before for before, later in pairwise(found))


def test_the_end_of_the_run_is_that_of_the_schedule_unless_it_has_its_own() -> None:
    own = rates(range(20), warmup_steps=0, schedule="linear", max_steps=100, schedule_steps=20)
    whole = rates(range(20), warmup_steps=0, schedule="linear", max_steps=20)
    assert own == whole
