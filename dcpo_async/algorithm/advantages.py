"""Advantages: rewards judged, smoothly, against those of all visits of the prompt."""

from collections.abc import Sequence
from fractions import Fraction

from dcpo_async.algorithm.reward_stats import RewardStats, standardized
from dcpo_async.errors import AlgorithmError


def smooth_advantages(rewards: Sequence[float], stats: RewardStats, ddof: int = 1) -> tuple[list[float], RewardStats]:
    """Return the advantages of one group and the prompt's statistics after this visit.

    DCPO, arXiv 2509.02333, smooth advantage standardization. For visit i = stats.visits + 1:
        A_new = (R − μ_new) / σ_new over this group, A_total = (R − μ_total) / σ_total over visits 1…i
        SA_new = (i−1)/i · A_new + 1/i · A_total,  SA_total = 1/i · A_new + (i−1)/i · A_total
        advantage = SA_new if |SA_new| < |SA_total| else SA_total
    A standardized value is 0 where all its rewards are equal; a group of one is such a group. So the first
    visit equals GRPO (arXiv 2402.03300), and a later visit with equal rewards still learns A_total / i.

    Args:
        rewards: R, one for each of the G ≥ 1 responses; finite, counted in whole billionths.
        stats: of the visits before this one; never changed.
        ddof: 1 divides the variances by n − 1, 0 by n.

    Raises:
        AlgorithmError: no rewards, a reward that is not finite, or another ddof.

    Example: (1, 0, 0, 0) on the first visit gives (1.5, −0.5, −0.5, −0.5). After it, (1, 1, 1, 1) on the
    second gives 0.3623 each: A_new is 0, A_total is (1 − 0.625) / 0.5175 = 0.7246, and half of that remains.
    """
    new, total = RewardStats().with_rewards(rewards), stats.with_rewards(rewards)
    return [
        _smoothed(new.standardize(reward, ddof), total.standardize(reward, ddof), total.visits) for reward in rewards
    ], total


def fading_advantages(groups: Sequence[Sequence[float]], half_life_visits: float, ddof: int = 1) -> list[float]:
    """Return the advantages of the last group, where earlier visits of the prompt weigh less the older they are.

    Ours, not the paper's: as smooth_advantages, but visit k of i weighs w_k = 2^(−(i−k)/h) in A_total, and the
    effective number of visits W = Σ w_k takes the place of i:
        n = Σ w_k·G_k, μ_total = Σ w_k Σ_j R_kj / n, σ_total = √(Σ w_k Σ_j (R_kj − μ_total)² / (n − ddof))
        SA_new = (W−1)/W · A_new + 1/W · A_total,  SA_total = 1/W · A_new + (W−1)/W · A_total
    So h → ∞ gives smooth_advantages, and h → 0 the group's own. All sums are exact fractions, and zero variance is
    decided exactly, given the weights in float64.

    Args:
        groups: R_kj, the rewards of visits 1…i, the oldest first; sizes may differ.
        half_life_visits: h, above 0.
        ddof: as in smooth_advantages.

    Raises:
        AlgorithmError: no groups, a half-life that is not above 0, or what smooth_advantages refuses.

    Example: (1, 0, 0, 0), then (1, 1, 1, 1), with h = 1 give 0.1757 each: n = 6, μ_total = 0.75, A_total = 0.5270,
    and W = 1.5 leaves a third of it, where smooth_advantages leaves 0.3623.
    """
    if not groups or not half_life_visits > 0:
        raise AlgorithmError(f"{len(groups)} groups and half_life_visits {half_life_visits}: both must be above 0")
    visits = [RewardStats().with_rewards(group) for group in groups]
    ages = range(len(visits) - 1, -1, -1)
    weights = [Fraction(2.0 ** (-age / half_life_visits)) for age in ages]
    count, sum_nano, sum_sq_nano = (
        sum(weight * value for weight, value in zip(weights, column, strict=True))
        for column in zip(*((visit.count, visit.sum_nano, visit.sum_sq_nano) for visit in visits), strict=True)
    )
    num_visits, new = float(sum(weights)), visits[-1]
    return [
        _smoothed(new.standardize(reward, ddof), standardized(reward, count, sum_nano, sum_sq_nano, ddof), num_visits)
        for reward in groups[-1]
    ]


def _smoothed(a_new: float, a_total: float, visits: float) -> float:
    sa_new = (visits - 1) / visits * a_new + 1 / visits * a_total
    sa_total = 1 / visits * a_new + (visits - 1) / visits * a_total
    return sa_new if abs(sa_new) < abs(sa_total) else sa_total
