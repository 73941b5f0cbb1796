"""What a group earns: its rewards as they count, the advantages they give, and the prompt's new statistics. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dcpo_async.algorithm import ADVANTAGES, RewardStats, fading_advantages, overlong_penalty
from dcpo_async.config import RunConfig
from dcpo_async.grading.verdict import FAILURES


class Score(NamedTuple):
    """Rewards and advantages, one for each response, and the statistics of the prompt after this visit."""

    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    stats: RewardStats


def failed_rewards(reasons: Sequence[str]) -> Counter[str]:
    """How many rewards could not be worked out, by kind, as `rewards_timeout` or `rewards_raised`."""
    return Counter(f"rewards_{reason}" for reason in reasons if reason in FAILURES)


def score(
    rewards: Sequence[float],
    lengths: Sequence[int],
    stats: RewardStats,
    earlier_groups: Callable[[], Sequence[Sequence[float]]],
    config: RunConfig,
) -> Score:
    """Score the responses of one visit.

    Args:
        rewards: as the actor gave them.
        lengths: response tokens, for what overlong responses lose.
        stats: of all earlier visits of the prompt.
        earlier_groups: reads the rewards of each earlier visit, oldest first; called where they fade.
    """
    algorithm, limit = config.algorithm, config.sampling.max_response_tokens
    shaped = [
        reward - overlong_penalty(length, limit, algorithm.overlong_buffer_tokens)
        for reward, length in zip(rewards, lengths, strict=True)
    ]
    if algorithm.half_life_visits is None:
        advantages, stats = ADVANTAGES[algorithm.advantage](shaped, stats, algorithm.ddof)
    else:
        groups = [*earlier_groups(), shaped]
        advantages = fading_advantages(groups, algorithm.half_life_visits, algorithm.ddof)
        stats = stats.with_rewards(shaped)
    return Score(tuple(shaped), tuple(advantages), stats)
