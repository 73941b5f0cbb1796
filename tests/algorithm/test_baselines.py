"""GRPO, DAPO, GSPO, Dr. GRPO, RLOO and CISPO against slow loops in their papers' notation."""

import math
from statistics import stdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.algorithm import (
    RewardStats,
    centered_advantages,
    clipped_loss,
    constant_weights,
    fixed_bounds,
    group_advantages,
    leave_one_out_advantages,
    only_token_mean_weights,
    smooth_advantages,
    token_mean_weights,
    weighted_loss,
)
from dcpo_async.errors import AlgorithmError


def random_batch(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy and old log-probs, sequence numbers and advantages, [tokens]; ratios on both sides of every bound."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    old = -torch.rand(total, generator=generator, dtype=torch.float64) * 3
    policy = old + 0.6 * torch.randn(total, generator=generator, dtype=torch.float64)
    sequences = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)[sequences]
    return policy.requires_grad_(), old, sequences, advantages


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@given(st.lists(st.sampled_from([0.0, 1.0, 0.25]), min_size=2, max_size=64), st.integers(0, 5))
def test_group_advantages_are_the_standardized_rewards_on_every_visit(rewards: list[float], visits: int) -> None:
    stats = RewardStats()
    for _ in range(visits):
        stats = stats.with_rewards([0.0, 1.0])
    advantages, after = group_advantages(rewards, stats)
    spread = stdev(rewards)
    mean = sum(rewards) / len(rewards)
    expected = [(reward - mean) / spread if spread else 0.0 for reward in rewards]
    assert advantages == pytest.approx(expected, abs=1e-9)
    assert after == stats.with_rewards(rewards)


def test_grpo_is_dcpo_on_the_first_visit() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0]
    assert group_advantages(rewards, RewardStats()) == smooth_advantages(rewards, RewardStats())


def test_grpos_loss_is_that_of_its_equation() -> None:
    lengths = [3, 1, 5, 2]
    policy, old, sequences, advantages = random_batch(lengths, seed=0)
    weights = torch.tensor(only_token_mean_weights(lengths, 4, 1), dtype=torch.float64)[sequences]
    out = clipped_loss(
        policy, old, advantages, weights, bounds=lambda old: fixed_bounds(old, 0.2, 0.2, 1e9), max_ratio=1e9
    )
    expected = 0.0
    for i, length in enumerate(lengths):
        inner = 0.0
        for t in (sequences == i).nonzero().flatten().tolist():
            ratio, advantage = math.exp(float((policy - old).detach()[t])), float(advantages[t])
            inner += min(ratio * advantage, clip(ratio, 0.8, 1.2) * advantage)
        expected -= inner / length / len(lengths)
    assert out.loss.item() == pytest.approx(expected, abs=1e-12)


def test_dapos_loss_is_the_mean_over_all_tokens_with_a_higher_upper_bound() -> None:
    lengths = [3, 1, 5, 2]
    policy, old, sequences, advantages = random_batch(lengths, seed=1)
    weights = torch.tensor(token_mean_weights(lengths), dtype=torch.float64)[sequences]
    out = clipped_loss(
        policy, old, advantages, weights, bounds=lambda old: fixed_bounds(old, 0.2, 0.28, 1e9), max_ratio=1e9
    )
    expected = 0.0
    for ratio, advantage in zip((policy - old).detach().exp().tolist(), advantages.tolist(), strict=True):
        expected -= min(ratio * advantage, clip(ratio, 0.8, 1.28) * advantage) / sum(lengths)
    assert out.loss.item() == pytest.approx(expected, abs=1e-12)


def test_gspos_loss_and_gradient_are_those_of_its_equations() -> None:
    lengths = [3, 1, 5, 2]
    policy, old, sequences, advantages = random_batch(lengths, seed=2)
    weights = torch.tensor(only_token_mean_weights(lengths, 4, 1), dtype=torch.float64)[sequences]
    out = clipped_loss(
        policy,
        old,
        advantages,
        weights,
        bounds=lambda old: fixed_bounds(old, 0.1, 0.1, 1e9),
        max_ratio=1e9,
        sequences=sequences,
    )
    (gradient,) = torch.autograd.grad(out.loss, policy)
    expected, expected_gradient = 0.0, torch.zeros_like(gradient)
    for i, length in enumerate(lengths):
        tokens = (sequences == i).nonzero().flatten()
        ratio = math.exp(float((policy - old).detach()[tokens].mean()))
        advantage = float(advantages[tokens[0]])
        unclipped, clipped = ratio * advantage, clip(ratio, 0.9, 1.1) * advantage
        expected -= min(unclipped, clipped) / len(lengths)
        if unclipped <= clipped:
            expected_gradient[tokens] = -advantage * ratio / length / len(lengths)
    assert out.loss.item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient)
    assert bool((gradient == 0).any())
    assert bool((gradient != 0).any())


def test_a_token_that_is_not_finite_has_no_part_in_its_sequence() -> None:
    policy = torch.tensor([-1.0, math.nan, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -1.0, -2.5], dtype=torch.float64)
    out = clipped_loss(
        policy,
        old,
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64),
        bounds=fixed_bounds,
        max_ratio=10.0,
        sequences=torch.zeros(3, dtype=torch.int64),
    )
    assert out.ratio.tolist() == pytest.approx([math.exp(0.5)] * 3)
    assert out.nonfinite.tolist() == [False, True, False]


def test_fixed_bounds_are_those_of_the_settings_and_never_above_the_cap() -> None:
    low, high = fixed_bounds(torch.zeros(2), 0.2, 0.28)
    assert low.tolist() == pytest.approx([0.8, 0.8])
    assert high.tolist() == pytest.approx([1.28, 1.28])
    assert fixed_bounds(torch.zeros(1), 0.2, 5.0, 1.5)[1].tolist() == [1.5]
    with pytest.raises(AlgorithmError, match="epsilon_low = -1"):
        fixed_bounds(torch.zeros(1), -1.0)


def test_token_mean_weights_are_equal_and_add_up_to_one() -> None:
    assert token_mean_weights([2, 6]) == [0.125, 0.125]
    assert token_mean_weights([0, 4]) == [0.0, 0.25]
    assert token_mean_weights([0, 0]) == [0.0, 0.0]
    with pytest.raises(AlgorithmError, match="fewer than 0"):
        token_mean_weights([-1])


REWARDS = st.lists(st.sampled_from([0.0, 1.0, 0.25, -0.5, 0.1]), min_size=1, max_size=64)


@given(REWARDS)
def test_centered_and_leave_one_out_advantages_are_those_of_their_equations(rewards: list[float]) -> None:
    stats, number = RewardStats().with_rewards([1.0]), len(rewards)
    centered, after = centered_advantages(rewards, stats)
    mean = math.fsum(rewards) / number
    assert centered == pytest.approx([reward - mean for reward in rewards], abs=1e-12)
    assert after == stats.with_rewards(rewards)
    left_out, after = leave_one_out_advantages(rewards, stats)
    others = [(math.fsum(rewards) - reward) / max(1, number - 1) for reward in rewards]
    expected = [reward - other if number > 1 else 0.0 for reward, other in zip(rewards, others, strict=True)]
    assert left_out == pytest.approx(expected, abs=1e-12)
    assert after == stats.with_rewards(rewards)


@pytest.mark.parametrize("advantages", [centered_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e-9])
def test_equal_rewards_have_no_advantage_to_the_last_bit(advantages: Any, reward: float) -> None:
    assert advantages([reward] * 7, RewardStats())[0] == [0.0] * 7


def test_cispos_gradient_is_that_of_its_equation_and_no_token_is_without_one() -> None:
    lengths = [3, 1, 5, 2]
    policy, old, sequences, advantages = random_batch(lengths, seed=3)
    weights = torch.tensor(token_mean_weights(lengths), dtype=torch.float64)[sequences]
    out = weighted_loss(
        policy, old, advantages, weights, bounds=lambda old: fixed_bounds(old, 0.2, 0.28), max_ratio=10.0
    )
    (gradient,) = torch.autograd.grad(out.loss, policy)
    expected_loss, expected = 0.0, []
    for t, (log_policy, log_old) in enumerate(zip(policy.tolist(), old.tolist(), strict=True)):
        weight = clip(math.exp(log_policy - log_old), 0.8, 1.28)
        expected.append(-weight * float(advantages[t]) / sum(lengths))
        expected_loss += expected[-1] * log_policy
    assert out.loss.item() == pytest.approx(expected_loss, abs=1e-12)
    assert gradient.tolist() == pytest.approx(expected, abs=1e-12)
    assert bool((gradient != 0).all())
    assert bool(out.clipped_high.any())
    assert bool(out.clipped_low.any())
    assert not bool(out.dual_clipped.any())


def test_within_its_bounds_cispo_has_the_gradient_of_the_clipped_loss() -> None:
    policy, old, _, advantages = random_batch([4, 4], seed=4)
    weights = torch.full_like(old, 0.1)

    def gradient(loss: Any) -> torch.Tensor:
        out = loss(policy, old, advantages, weights, bounds=lambda old: fixed_bounds(old, 1.0, 1e3, 1e9), max_ratio=1e9)
        (found,) = torch.autograd.grad(out.loss, policy)
        return found  # type: ignore[no-any-return]

    torch.testing.assert_close(gradient(weighted_loss), gradient(clipped_loss))


def test_a_token_that_is_not_finite_has_no_part_in_the_weighted_loss() -> None:
    policy = torch.tensor([-1.0, math.nan, -2.0], requires_grad=True)
    old = torch.tensor([-1.0, -1.0, math.inf])
    out = weighted_loss(policy, old, torch.ones(3), torch.ones(3), bounds=fixed_bounds, max_ratio=10.0)
    (gradient,) = torch.autograd.grad(out.loss, policy)
    assert out.nonfinite.tolist() == [False, True, True]
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


def test_constant_weights_do_not_look_at_lengths() -> None:
    assert constant_weights([2, 5, 0], 3, 1, 10) == pytest.approx([1 / 30, 1 / 30, 0.0])
    with pytest.raises(AlgorithmError, match="max_tokens 0"):
        constant_weights([1], 1, 1, 0)
