"""Own rewards: functions that users bring, run in workers that are killed as those of our own grading are."""

from dcpo_async.grading.rewards.function import RewardFunction, resolved_reward, resolved_rewards, source_digest
from dcpo_async.grading.rewards.pool import GradingBySource, RewardPool, grading_of

__all__ = [
    "GradingBySource",
    "RewardFunction",
    "RewardPool",
    "grading_of",
    "resolved_reward",
    "resolved_rewards",
    "source_digest",
]
