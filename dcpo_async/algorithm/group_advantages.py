"""Advantages of the rivals: rewards judged against those of their own group alone."""

from collections.abc import Sequence

from dcpo_async.algorithm.advantages import smooth_advantages
from dcpo_async.algorithm.reward_stats import RewardStats, deviation


def group_advantages(rewards: Sequence[float], stats: RewardStats, ddof: int = 1) -> tuple[list[float], RewardStats]:
    """Return the advantages of one group by its own rewards alone, and the prompt's statistics after this visit.

    GRPO, arXiv 2402.03300, section 4.1.2: (R − μ) / σ over the group, 0 where all rewards are equal. No constant is
    added to σ: whether it is 0 is decided exactly.

    Args and errors are those of smooth_advantages, whose first visit this is.

    Example: (1, 0, 0, 0) gives (1.5, −0.5, −0.5, −0.5), on any visit.
    """
    group = RewardStats().with_rewards(rewards)
    return [group.standardize(reward, ddof) for reward in rewards], stats.with_rewards(rewards)


def centered_advantages(rewards: Sequence[float], stats: RewardStats, ddof: int = 1) -> tuple[list[float], RewardStats]:
    """Return R − μ over the group, and the prompt's statistics after this visit: Dr. GRPO, arXiv 2503.20783.

    Nothing is divided by σ, so that groups in which rewards hardly differ weigh less; ddof changes nothing.
    Other args and errors are those of smooth_advantages.

    Example: (1, 0, 0, 0) gives (0.75, −0.25, −0.25, −0.25).
    """
    group = RewardStats().with_rewards(rewards)
    return [deviation(reward, group) for reward in rewards], stats.with_rewards(rewards)


def leave_one_out_advantages(
    rewards: Sequence[float], stats: RewardStats, ddof: int = 1
) -> tuple[list[float], RewardStats]:
    """Return R − the mean of the group's other rewards, and the statistics after this visit: RLOO, arXiv 2402.14740.

    That is (R − μ)·G/(G − 1), 0 in a group of one; ddof changes nothing.
    Other args and errors are those of smooth_advantages.

    Example: (1, 0, 0, 0) gives (1, −1/3, −1/3, −1/3).
    """
    group = RewardStats().with_rewards(rewards)
    scale = len(rewards) / max(1, len(rewards) - 1)
    return [scale * deviation(reward, group) for reward in rewards], stats.with_rewards(rewards)


ADVANTAGES = {
    "smooth": smooth_advantages,
    "group": group_advantages,
    "centered": centered_advantages,
    "leave_one_out": leave_one_out_advantages,
}
"""The advantages by the name that a configuration has for them."""
