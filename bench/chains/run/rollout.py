"""Which prompts are visited, what their responses earn, and the batches that they make: the coordinator's part."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from bench.chains.run.sampling import Sampled, sampled_groups
from dcpo_async.algorithm import RewardStats
from dcpo_async.config import RunConfig
from dcpo_async.errors import TrainerError
from dcpo_async.grading import grade
from dcpo_async.prompts import PromptOrder
from dcpo_async.records import Group, Prompt, Response, VersionSegment
from learner.coordinator.shards import StepGroup
from learner.visits.coming import selection_of
from learner.visits.scoring import score
from learner.visits.selection import History

MOST_BATCHES = 100
"""As many batches' worth of visits are made for one batch, where dynamic sampling discards."""


class Visits:
    """The visits to come, as the coordinator opens them: an order without the prompts that rest.

    Attributes:
        num_rested: positions that were passed over.
    """

    def __init__(self, config: RunConfig, num_prompts: int) -> None:
        config.require_window(num_prompts)
        self._order = PromptOrder(num_prompts, config.seed, config.admission_window)
        self._selection = selection_of(config.data, config.grading.reward_range)
        self._num_prompts, self._most_resting = num_prompts, num_prompts - config.admission_window
        self._rested: deque[int] = deque()
        self._position = self.num_rested = 0
        self.rewards: list[list[tuple[float, ...]]] = [[] for _ in range(num_prompts)]
        self._last_visit = [0] * num_prompts

    def next(self) -> tuple[int, int, int]:
        """Position, index of the prompt and number of the visit, from 1."""
        while True:
            position = self._position
            self._position += 1
            index, visit = self._order.index(position), self._order.epoch(position) + 1
            if not self._rests(position, index, visit):
                return position, index, visit

    def counted(self, index: int, visit: int, rewards: tuple[float, ...]) -> None:
        """Note what a visit's responses were rewarded with."""
        self.rewards[index].append(rewards)
        self._last_visit[index] = visit

    def _rests(self, position: int, index: int, visit: int) -> bool:
        if self._selection is None:
            return False
        while self._rested and self._rested[0] <= position - self._num_prompts:
            self._rested.popleft()
        history = History(tuple(self.rewards[index]), self._last_visit[index])
        if len(self._rested) >= self._most_resting or not self._selection.rests(history, visit):
            return False
        self._rested.append(position)
        self.num_rested += 1
        return True


class Rollout:
    """Visits prompts with a model, and makes batches of what they give.

    Args:
        prompts: those to train on.
        text: of the tokens of a response.
        end_id: the token that ends a response.

    Attributes:
        generated_responses, generated_tokens: so far, discarded ones among them.
    """

    def __init__(
        self, config: RunConfig, prompts: Sequence[Prompt], text: Callable[[NDArray[np.int32]], str], end_id: int
    ) -> None:
        self._config, self._prompts, self._text, self._end_id = config, prompts, text, end_id
        self._visits = Visits(config, len(prompts))
        self._stats = [RewardStats() for _ in prompts]
        self._generator = torch.Generator().manual_seed(config.seed)
        self.generated_responses = self.generated_tokens = 0

    def spent(self) -> dict[str, float]:
        """What was generated so far, as metrics."""
        return {
            "generated_responses": float(self.generated_responses),
            "generated_tokens": float(self.generated_tokens),
            "rested_visits": float(self._visits.num_rested),
        }

    def batch(self, model: object, version: int) -> list[StepGroup]:
        """The U·B groups of the next batch, in the order of their visits; discarded ones are replaced by others.

        Args:
            model: samples them.
            version: of its weights.

        Raises TrainerError where hardly a group is worth keeping.
        """
        wanted = self._config.algorithm.updates_per_batch * self._config.training.groups_per_step
        groups: list[StepGroup] = []
        visited = 0
        while len(groups) < wanted:
            if visited > MOST_BATCHES * wanted:
                raise TrainerError(
                    f"dynamic sampling discards nearly all of {visited} groups: nothing is left to learn"
                )
            visited += wanted - len(groups)
            visits = [self._visits.next() for _ in range(wanted - len(groups))]
            sampled = sampled_groups(
                model,
                [self._prompts[index].token_ids for _, index, _ in visits],
                self._config.sampling.group_size,
                max_tokens=self._config.sampling.max_response_tokens,
                end_id=self._end_id,
                generator=self._generator,
            )
            scored = [self._scored(*visit, found, version) for visit, found in zip(visits, sampled, strict=True)]
            groups += [group for group in scored if group is not None]
        return groups

    def _scored(
        self, position: int, index: int, visit: int, sampled: Sequence[Sampled], version: int
    ) -> StepGroup | None:
        """What a visit gives; None where dynamic sampling discards it."""
        prompt, algorithm = self._prompts[index], self._config.algorithm
        lengths = [len(response.token_ids) for response in sampled]
        self.generated_responses += len(sampled)
        self.generated_tokens += sum(lengths)
        responses = tuple(
            Response(
                response.token_ids,
                response.logprobs,
                (VersionSegment(version, len(response.token_ids)),),
                "length" if response.is_cut else "stop",
                self._text(response.token_ids),
            )
            for response in sampled
        )
        rewards = [float(is_right(response.text, prompt.answer)) for response in responses]
        earlier = self._visits.rewards[index]
        found = score(rewards, lengths, self._stats[index], lambda: earlier, self._config)
        self._stats[index] = found.stats
        self._visits.counted(index, visit, found.rewards)
        if algorithm.dynamic_sampling and len(set(rewards)) == 1:
            return None
        return StepGroup(
            group=Group(position, 1, responses, tuple(rewards), ("",) * len(responses)),
            prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
            advantages=found.advantages,
            visit=visit,
            old_logprobs=(None,) * len(responses),
        )


@cache
def is_right(text: str, answer: str) -> bool:
    """The grader's verdict; few texts there are come again and again."""
    return grade(text, answer, "boxed").correct
