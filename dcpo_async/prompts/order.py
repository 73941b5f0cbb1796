"""The endless order in which prompts are visited."""

import hashlib
import heapq
import random

from dcpo_async.errors import ConfigError


class PromptOrder:
    """An endless sequence of prompt indices: every epoch visits each prompt once, in an order of its own.

    A pure function of (num_prompts, seed, min_gap), the same on every machine, so that a run resumes by
    position alone. Two visits of one prompt are at least `min_gap` positions apart, also across an epoch's
    end: each position takes the first prompt of the epoch's shuffle whose last visit lies far enough back.
    One is always left while num_prompts >= min_gap: k positions into an epoch num_prompts - k are to come, of
    which min_gap - 1 - k at most are too recent.

    Example: with min_gap = num_prompts there is no choice, and every epoch repeats the order of the first.

    Raises ConfigError where num_prompts is below min_gap, or is 0.
    """

    def __init__(self, num_prompts: int, seed: int, min_gap: int) -> None:
        if num_prompts < max(min_gap, 1):
            raise ConfigError(
                f"{num_prompts} prompts are too few: visits of a prompt must be {min_gap} positions apart, "
                f"so at least {max(min_gap, 1)} are needed; give more, or lower max_lag or the batch size"
            )
        self.num_prompts = num_prompts
        self.seed = seed
        self.min_gap = max(min_gap, 0)
        self._newest_epoch = 0
        self._newest = _shuffled(num_prompts, seed, 0)
        self._previous: list[int] = []

    def epoch(self, position: int) -> int:
        """Number of the epoch, from 0, that a position (from 0) lies in."""
        return position // self.num_prompts

    def index(self, position: int) -> int:
        """Index, in [0, num_prompts), of the prompt at a position (from 0).

        Going on is cheap; going back by two epochs or more computes all epochs again from the first.
        """
        if position < 0:
            raise IndexError(f"position {position} is negative; positions count from 0")
        epoch, offset = divmod(position, self.num_prompts)
        if epoch < self._newest_epoch - 1:
            self._newest_epoch, self._newest = 0, _shuffled(self.num_prompts, self.seed, 0)
        while self._newest_epoch < epoch:
            self._newest_epoch += 1
            self._previous, self._newest = self._newest, self._next_epoch()
        return (self._newest if epoch == self._newest_epoch else self._previous)[offset]

    def _next_epoch(self) -> list[int]:
        """The greedy choice by a heap: with each position one more prompt has rested long enough."""
        previous = self._newest
        shuffled = _shuffled(self.num_prompts, self.seed, self._newest_epoch)
        rank_of = {prompt: rank for rank, prompt in enumerate(shuffled)}
        num_rested = self.num_prompts - self.min_gap
        rested = [rank_of[prompt] for prompt in previous[:num_rested]]
        heapq.heapify(rested)
        order: list[int] = []
        for offset in range(self.num_prompts):
            if num_rested + offset < self.num_prompts:
                heapq.heappush(rested, rank_of[previous[num_rested + offset]])
            order.append(shuffled[heapq.heappop(rested)])
        return order


def _shuffled(num_prompts: int, seed: int, epoch: int) -> list[int]:
    """A permutation made by random.random() alone, whose values Python promises to keep across versions."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    generator = random.Random(int.from_bytes(digest, "little"))
    keys = [generator.random() for _ in range(num_prompts)]
    return sorted(range(num_prompts), key=keys.__getitem__)
