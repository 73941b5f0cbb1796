"""Own rewards: functions that users bring, run in workers that are killed as those of our own grading are."""

from dcpo_async.grading.rewards.function import RewardFunction, resolved_reward, source_digest
from dcpo_async.grading.rewards.pool import RewardPool, grading_of

__all__ = ["RewardFunction", "RewardPool", "grading_of", "resolved_reward", "source_digest"]
