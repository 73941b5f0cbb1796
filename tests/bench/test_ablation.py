"""The arms of the ablation, and the figures of its table that no run's metrics have."""

from pathlib import Path

import pytest

from bench.ablation.arms import ALGORITHMS, DEMO, LAGS, SUITES, Arm, settings_of, words
from bench.ablation.table import later_advantages
from dcpo_async.comparison.runs import ComparedRun
from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from tests.learner.small_run import make_config, make_intake, train


def config_of(arm: Arm) -> RunConfig:
    return load_config(DEMO, words(settings_of(arm, steps=120, others={})))


@pytest.mark.parametrize("arm", [*ALGORITHMS[1:], *LAGS[1:]], ids=lambda arm: arm.name)
def test_an_arm_differs_from_the_first_of_its_suite_in_algorithm_and_lag_alone(arm: Arm) -> None:
    (first, *_) = next(suite for suite in SUITES.values() if arm in suite)
    own, other = config_of(arm), config_of(first)
    assert own != other
    same = {"algorithm": other.algorithm, "lag": other.lag}
    assert own.model_copy(update=same) == other


def test_every_prompt_is_visited_six_times_and_settings_of_all_arms_come_last() -> None:
    config = config_of(ALGORITHMS[0])
    assert config.training.groups_per_step * 120 == 6 * 320
    assert settings_of(ALGORITHMS[3], 120, {"algorithm.epsilon_low": 0.5})["algorithm.epsilon_low"] == 0.5


def test_arms_of_lag_have_the_lag_and_the_correction_of_their_names() -> None:
    for arm in LAGS:
        config = config_of(arm)
        words_of_name = arm.name.split()
        assert config.lag.max_lag == int(words_of_name[1])
        assert ("proximal" in words_of_name) == (config.algorithm.old == "proximal")
        assert words_of_name[-1] in (config.algorithm.correction, words_of_name[1])


def test_later_advantages_are_those_of_second_and_later_visits(tmp_path: Path) -> None:
    config = make_config(tmp_path, groups_per_step=2, max_lag=0)
    intake = make_intake(config, num_prompts=2)
    train(intake, [(1.0, 0.0), (1.0, 0.0)], [(1.0, 1.0), (1.0, 0.0)])
    intake.ledger.close()
    run = ComparedRun("DCPO", tmp_path, "run", True, config, (), (), ())
    found = later_advantages(run)
    # Equal rewards after (1, 0): (1 - 3/4) / (1/2), and half of it; mixed ones keep sqrt(1/2) of the group.
    assert found is not None
    mixed = abs(float(0.5**0.5 + 0.5 / (1 / 3) ** 0.5) / 2)
    assert found.mean == pytest.approx((2 * 0.25 + 2 * mixed) / 4)
    assert found.share_of_equal == pytest.approx(0.5 / (0.5 + 2 * mixed))
