import dataclasses

import numpy as np
import pytest
import torch

from dcpo_async.algorithm import policy_loss
from dcpo_async.records import TrainingSample
from learner.policy.head import TokenScores
from learner.policy.packing import pack
from learner.trainer.step_sums import StepSums


def sample(num_prompt_tokens: int, num_tokens: int, lag: int) -> TrainingSample:
    logprobs = np.full(num_tokens, -1.0, dtype=np.float32)
    return TrainingSample(
        position=0,
        index=0,
        prompt_token_ids=np.ones(num_prompt_tokens, dtype=np.int32),
        token_ids=np.ones(num_tokens, dtype=np.int32),
        behavior_logprobs=logprobs,
        old_logprobs=logprobs,
        token_lags=np.full(num_tokens, lag, dtype=np.int32),
        advantage=1.0,
        token_weight=0.25,
    )


def add(sums: StepSums, samples: list[TrainingSample], *, measured: bool = False) -> None:
    batch = pack(samples)
    behavior = batch.behavior_logprobs
    out = policy_loss(
        behavior, behavior, batch.advantages, batch.token_weights, epsilon_low=0.16, epsilon_high=0.2, max_ratio=10.0
    )
    scores = TokenScores(out.loss, behavior, torch.full_like(behavior, 0.5))
    (sums.add_measured if measured else sums.add)(batch, scores, out)


def test_the_sums_of_a_step_worked_by_hand() -> None:
    sums = StepSums("cpu")
    add(sums, [sample(2, 4, lag=1), sample(2, 1, lag=3)])
    add(sums, [sample(3, 1, lag=0)])
    add(sums, [])
    summary = sums.summary()
    # On-policy tokens of advantage 1 and weight 0.25 cost −0.25 each.
    assert summary["loss"] == pytest.approx(-6 * 0.25)
    assert summary["tokens"] == 6 + 3 + 4
    assert summary["lag_mean"] == pytest.approx((4 * 1 + 3 + 0) / 6)
    assert summary["entropy"] == pytest.approx(0.5)
    assert summary["num_tokens"] == 6


def test_a_measured_sample_stands_for_others_in_diagnostics_alone() -> None:
    sums = StepSums("cpu")
    add(sums, [sample(2, 4, lag=1)])
    add(sums, [dataclasses.replace(sample(2, 2, lag=3), advantage=0.0, token_count=6.0)], measured=True)
    summary = sums.summary()
    assert (summary["tokens"], summary["num_tokens"]) == (6, 4 + 12)
    assert summary["loss"] == pytest.approx(-4 * 0.25)
    assert summary["lag_mean"] == pytest.approx((4 * 1 + 12 * 3) / 16)


def test_the_sums_of_two_ranks_add_up_to_those_of_one() -> None:
    samples = [sample(2, 4, lag=1), sample(2, 1, lag=3), sample(3, 1, lag=0)]
    one, left, right = StepSums("cpu"), StepSums("cpu"), StepSums("cpu")
    add(one, samples[:1])
    add(one, samples[1:])
    add(left, samples[:1])
    add(right, samples[1:])
    left.values += right.values
    assert left.summary() == one.summary()


def test_a_step_without_samples_has_finite_metrics() -> None:
    assert all(np.isfinite(value) for value in StepSums("cpu").summary().values())
