"""Advantages: rewards judged against the group's own, or, smoothly, against those of all visits of the prompt."""

from collections.abc import Sequence

from dcpo_async.algorithm.reward_stats import RewardStats


def smooth_advantages(rewards: Sequence[float], stats: RewardStats, ddof: int = 1) -> tuple[list[float], RewardStats]:
    """Return the advantages of one group and the prompt's statistics after this visit.

    DCPO, arXiv 2509.02333, smooth advantage standardization. For visit i = stats.visits + 1:
        A_new = (R − μ_new) / σ_new over this group, A_total = (R − μ_total) / σ_total over visits 1…i
        SA_new = (i−1)/i · A_new + 1/i · A_total,  SA_total = 1/i · A_new + (i−1)/i · A_total
        advantage = SA_new if |SA_new| < |SA_total| else SA_total
    A standardized value is 0 where all its rewards are equal; a group of one is such a group. So the first
    visit equals GRPO (arXiv 2402.03300), and a later visit with equal rewards still learns A_total / i.

    Args:
        rewards: R, one for each of the G ≥ 1 responses; finite, counted in whole millionths.
        stats: of the visits before this one; never changed.
        ddof: 1 divides the variances by n − 1, 0 by n.

    Raises:
        AlgorithmError: no rewards, a reward that is not finite, or another ddof.

    Example: (1, 0, 0, 0) on the first visit gives (1.5, −0.5, −0.5, −0.5). After it, (1, 1, 1, 1) on the
    second gives 0.3623 each: A_new is 0, A_total is (1 − 0.625) / 0.5175 = 0.7246, and half of that remains.
    """
    new = RewardStats().with_rewards(rewards)
    total = stats.with_rewards(rewards)
    visit = total.visits

    def advantage(reward: float) -> float:
        a_new = new.standardize(reward, ddof)
        a_total = total.standardize(reward, ddof)
        sa_new = (visit - 1) / visit * a_new + 1 / visit * a_total
        sa_total = 1 / visit * a_new + (visit - 1) / visit * a_total
        return sa_new if abs(sa_new) < abs(sa_total) else sa_total

    return [advantage(reward) for reward in rewards], total


def group_advantages(rewards: Sequence[float], stats: RewardStats, ddof: int = 1) -> tuple[list[float], RewardStats]:
    """Return the advantages of one group by its own rewards alone, and the prompt's statistics after this visit.

    GRPO, arXiv 2402.03300, section 4.1.2: (R − μ) / σ over the group, 0 where all rewards are equal. No constant is
    added to σ: whether it is 0 is decided exactly.

    Args and errors are those of smooth_advantages, whose first visit this is.

    Example: (1, 0, 0, 0) gives (1.5, −0.5, −0.5, −0.5), on any visit.
    """
    group = RewardStats().with_rewards(rewards)
    return [group.standardize(reward, ddof) for reward in rewards], stats.with_rewards(rewards)


ADVANTAGES = {"smooth": smooth_advantages, "group": group_advantages}
"""The advantages by the name that a configuration has for them."""
