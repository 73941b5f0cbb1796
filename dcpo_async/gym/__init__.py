"""Reasoning Gym as a source: generated problems, kept in the run's folder, and their own scorers as the reward."""

from dcpo_async.gym.problems import gym_problems
from dcpo_async.gym.tasks import REFUSED

__all__ = ["REFUSED", "gym_problems"]
