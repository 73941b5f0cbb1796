"""From stored groups to samples: weights, lags and metrics by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.protocol.messages import Envelope
from dcpo_async.records import FinishReason, Group, Response, VersionSegment
from learner.coordinator.shards import (
    StepGroup,
    looked_at,
    omitted_share,
    sample_cost,
    shard_message,
    split_by_cost,
    step_metrics,
    step_samples,
    token_lags,
)
from learner.trainer.coordinator_link import samples_of
from tests.learner.small_run import make_config

VERSION_STEPS = {3: 5, 4: 6}


def response(length: int, finish_reason: FinishReason = "stop") -> Response:
    return Response(
        token_ids=np.arange(length, dtype=np.int32),
        behavior_logprobs=np.full(length, -0.5, dtype=np.float32),
        segments=(VersionSegment(3, length),) if length else (),
        finish_reason=finish_reason,
        text="",
    )


def step_group(
    position: int, *responses: Response, visit: int = 1, rewards: tuple[float, ...] = (1.0, 0.0)
) -> StepGroup:
    return StepGroup(
        group=Group(position, 1, responses, rewards, ("equal",) * len(rewards)),
        prompt_token_ids=np.array([7, 8, position], dtype=np.int32),
        advantages=tuple(reward - 0.5 for reward in rewards),
        visit=visit,
        old_logprobs=(None,) * len(responses),
    )


def test_the_lag_of_a_token_is_counted_from_the_step_of_its_weights() -> None:
    lags = token_lags([VersionSegment(3, 2), VersionSegment(4, 1)], 7, VERSION_STEPS)
    assert lags.tolist() == [2, 2, 1]
    assert lags.dtype == np.int32


def test_an_empty_response_has_no_lags() -> None:
    assert token_lags([], 7, VERSION_STEPS).tolist() == []


def test_a_tokens_weight_has_its_response_length_the_group_size_and_all_groups_of_the_step(tmp_path: Path) -> None:
    groups = [step_group(4, response(2), response(5)), step_group(9, response(1), response(0))]
    samples = step_samples(groups, 7, make_config(tmp_path), VERSION_STEPS)
    assert [sample.token_weight for sample in samples] == [1 / (2 * 2 * 2), 1 / (5 * 2 * 2), 1 / (1 * 2 * 2), 0.0]
    assert [(sample.position, sample.index, sample.advantage) for sample in samples] == [
        (4, 0, 0.5),
        (4, 1, -0.5),
        (9, 0, 0.5),
        (9, 1, -0.5),
    ]
    assert samples[2].prompt_token_ids.tolist() == [7, 8, 9]
    assert samples[0].old_logprobs is samples[0].behavior_logprobs


def test_the_papers_sum_leaves_out_the_group_size(tmp_path: Path) -> None:
    config = make_config(tmp_path, algorithm={"otm_scale": "sum"})
    samples = step_samples([step_group(0, response(2), response(5))], 7, config, VERSION_STEPS)
    assert [sample.token_weight for sample in samples] == [1 / 2, 1 / 5]


@pytest.mark.parametrize(("mask_truncated", "weight"), [(False, 1 / (4 * 2)), (True, 0.0)])
def test_truncated_responses_weigh_nothing_only_if_masked(tmp_path: Path, mask_truncated: bool, weight: float) -> None:
    config = make_config(tmp_path, algorithm={"mask_truncated": mask_truncated})
    samples = step_samples([step_group(0, response(4, "length"), response(2))], 7, config, VERSION_STEPS)
    assert [sample.token_weight for sample in samples] == [weight, 1 / (2 * 2)]


def test_the_control_experiment_trains_with_advantages_of_zero(tmp_path: Path) -> None:
    config = make_config(tmp_path, algorithm={"zero_advantages": True})
    samples = step_samples([step_group(0, response(1), response(1))], 7, config, VERSION_STEPS)
    assert [sample.advantage for sample in samples] == [0.0, 0.0]


def test_old_logprobs_that_were_not_computed_yet_are_nan_and_stored_ones_are_used(tmp_path: Path) -> None:
    config = make_config(tmp_path, updates=2, algorithm={"old": "proximal"})
    entry = step_group(0, response(2), response(2))
    stored = np.array([-1.0, -2.0], dtype=np.float32)
    entry = StepGroup(entry.group, entry.prompt_token_ids, entry.advantages, 1, (None, stored))
    missing, found = step_samples([entry], 7, config, VERSION_STEPS)
    assert np.isnan(missing.old_logprobs).all()
    assert found.old_logprobs.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(("updates", "lag"), [(1, 2), (2, 1)])
def test_the_lag_of_a_step_is_that_of_the_start_of_its_batch(tmp_path: Path, updates: int, lag: int) -> None:
    config = make_config(tmp_path, updates=updates)
    (sample, _) = step_samples([step_group(0, response(2), response(2))], 7, config, {3: 5})
    assert sample.token_lags.tolist() == [lag, lag]


def test_metrics_of_a_step_by_hand() -> None:
    mixed = Response(
        np.arange(2, dtype=np.int32),
        np.zeros(2, dtype=np.float32),
        (VersionSegment(3, 1), VersionSegment(4, 1)),
        "length",
        "",
    )
    groups = [
        step_group(0, mixed, response(4), rewards=(1.0, 0.0)),
        step_group(1, response(0), response(2), visit=3, rewards=(0.5, 1.0)),
    ]
    assert step_metrics(groups, group_size=2) == {
        "reward": 0.625,
        "rur": 0.75,
        "rur_later": 0.5,
        "advantage_abs_mean": 0.375,
        "visit_mean": 2.0,
        "response_tokens": 8.0,
        "response_length": 2.0,
        "truncated": 0.25,
        "mixed_versions": 0.25,
        "groups": 2.0,
        "responses": 4.0,
    }


def test_first_visits_alone_say_nothing_about_later_ones() -> None:
    assert "rur_later" not in step_metrics([step_group(0, response(1), response(1))], group_size=2)


def test_a_shard_comes_out_of_its_message_as_it_went_in(tmp_path: Path) -> None:
    groups = [step_group(4, response(2), response(0))]
    samples = step_samples(groups, 7, make_config(tmp_path), VERSION_STEPS)
    returned = samples_of(Envelope(*shard_message(samples, 7)))
    assert [sample.token_ids.tolist() for sample in returned] == [[0, 1], []]
    assert [sample.token_lags.tolist() for sample in returned] == [[2, 2], []]
    assert [sample.token_weight for sample in returned] == [sample.token_weight for sample in samples]


def test_a_rank_without_samples_gets_an_empty_shard() -> None:
    message, arrays = shard_message([], 7)
    assert message.positions == ()
    assert samples_of(Envelope(message, arrays)) == []


def test_samples_are_shared_costliest_first_to_the_rank_with_the_least() -> None:
    assert split_by_cost([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]


def test_more_ranks_than_samples_leave_some_without() -> None:
    assert split_by_cost([3], 3) == [[0], [], []]


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 5))
def test_every_sample_goes_to_one_rank_and_loads_differ_by_at_most_one_sample(lengths: list[int], ranks: int) -> None:
    shards = split_by_cost(lengths, ranks)
    assert sorted(sample for shard in shards for sample in shard) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_samples_without_a_gradient_are_left_out_but_for_a_share_that_stands_for_them(tmp_path: Path) -> None:
    groups = [step_group(4, response(2), response(5)), step_group(9, response(4), response(6), rewards=(0.5, 0.5))]
    groups.append(step_group(11, response(3), response(0), rewards=(0.5, 0.5)))
    samples = step_samples(groups, 7, make_config(tmp_path), VERSION_STEPS)
    found = looked_at(samples, share=0.5)
    assert [(sample.position, sample.index, sample.token_count) for sample in found] == [
        (4, 0, 1.0),
        (4, 1, 1.0),
        (9, 0, 13 / 7),
        (11, 0, 13 / 7),
    ]
    assert sum(len(sample.token_ids) * sample.token_count for sample in found) == pytest.approx(2 + 5 + 4 + 6 + 3)
    assert omitted_share(samples) == pytest.approx((7 + 9 + 6 + 3) / (5 + 8 + 7 + 9 + 6 + 3))
    assert [sample_cost(sample, 0.0) for sample in found] == pytest.approx([5, 8, 7 / 3, 2])
    assert [sample_cost(sample, 0.5) for sample in found] == pytest.approx([5 + 12.5, 8 + 32, (7 + 24.5) / 3, 8])


def test_a_masked_response_has_no_gradient_whatever_its_advantage(tmp_path: Path) -> None:
    config = make_config(tmp_path, algorithm={"mask_truncated": True})
    samples = step_samples([step_group(4, response(2), response(5, "length"))], 7, config, VERSION_STEPS)
    assert [sample.has_gradient for sample in samples] == [True, False]
    assert samples[1].advantage != 0


def test_with_a_kl_term_every_response_with_a_weight_is_trained_and_ranks_hear_of_it(tmp_path: Path) -> None:
    config = make_config(tmp_path, algorithm={"mask_truncated": True, "kl_coefficient": 0.01})
    groups = [step_group(4, response(2), response(5), rewards=(0.5, 0.5)), step_group(5, response(3), response(0))]
    groups.append(step_group(6, response(2), response(5, "length")))
    samples = step_samples(groups, 7, config, VERSION_STEPS)
    assert [sample.has_gradient for sample in samples] == [True, True, True, False, True, False]
    assert samples[0].advantage == samples[1].advantage == 0
    assert all(sample.token_count == 1.0 for sample in looked_at(samples, share=0.5) if sample.has_gradient)
    heard = samples_of(Envelope(*shard_message(samples, 7)))
    assert [sample.has_gradient for sample in heard] == [sample.has_gradient for sample in samples]


def test_of_few_without_a_gradient_one_is_looked_at(tmp_path: Path) -> None:
    samples = step_samples(
        [step_group(4, response(2), response(5), rewards=(0.5, 0.5))], 7, make_config(tmp_path), VERSION_STEPS
    )
    assert [sample.index for sample in looked_at(samples, share=0.001)] == [0]
    assert looked_at([], share=0.125) == []


@pytest.mark.parametrize(("share", "number"), [(0.7, 7), (0.4, 4), (0.125, 2), (1.0, 10), (0.99, 10)])
def test_the_share_that_is_looked_at_is_the_one_that_was_asked_for(tmp_path: Path, share: float, number: int) -> None:
    groups = [step_group(position, response(2), response(5), rewards=(0.5, 0.5)) for position in range(5)]
    found = looked_at(step_samples(groups, 7, make_config(tmp_path), VERSION_STEPS), share)
    assert len({(sample.position, sample.index) for sample in found}) == number


def test_a_step_of_several_sources_says_the_reward_of_each() -> None:
    groups = [
        replace(step_group(place, response(2), response(2), rewards=rewards), source=source)
        for place, (source, rewards) in enumerate([("gsm8k", (1.0, 0.0)), ("math", (0.0, 0.0)), ("gsm8k", (1.0, 1.0))])
    ]
    metrics = step_metrics(groups, 2)
    assert {name: value for name, value in metrics.items() if "/" in name} == {
        "reward/gsm8k": 0.75,
        "rur/gsm8k": 1.0,
        "groups/gsm8k": 2.0,
        "reward/math": 0.0,
        "rur/math": 1.0,
        "groups/math": 1.0,
    }
    assert not any("/" in name for name in step_metrics([step_group(0, response(2), response(2))], 2))
