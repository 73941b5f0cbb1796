"""An engine without a model: a pure function of seed, prompt and visit, for tests and for trying out a set-up."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from actor.engine.interface import EngineLoad, UpdateTiming
from actor.engine.seeds import group_seed
from dcpo_async.errors import CanaryError, EngineError, PromptError
from dcpo_async.records import Lease, LeaseName, Response, Sampling, VersionSegment
from dcpo_async.weights.manifest import base_of

if TYPE_CHECKING:
    # Its package imports torch, which the launcher need not wait for.
    from dcpo_async.weights.canary import Canary

TRUNCATED_SHARE = 0.125


class ScriptedEngine:
    """Answers with random tokens and a text that is right for a known share of the responses.

    Everything but the weights version follows from (seed, prompt id, visit): an attempt anew gives the same group.
    A response is truncated with probability 1/8, its token ids are uniform over the vocabulary without the stop token,
    its log-probs lie within [-ln V - 1, -ln V], and its text ends in the reference answer, or in that plus 1, boxed.
    The first of the run's stop tokens ends it, and its text ends with the first of the run's stop texts.

    Args:
        correct_share: probability of a right answer, in [0, 1].
        tokens_per_second: speed of each response, however many there are; None answers at once.
        fail_prompts: ids of prompts whose generation always fails.
        kill_prompts: ids of prompts that the engine dies of.
        crash_after_groups: the engine dies when it is asked for one group more than this.
        hang_after_groups: all that it works on stands still from when it is asked for one group more than this.
        nan_after_groups: its log-probs are no numbers after so many groups, as those of a broken GPU.
        canary_offsets: by weights version, nats by which its log-probs of a canary are off at first, and once it was
            started anew; a version that is not listed has none.
    """

    def __init__(
        self,
        *,
        correct_share: float = 0.5,
        tokens_per_second: float | None = None,
        fail_prompts: Set[str] = frozenset(),
        kill_prompts: Set[str] = frozenset(),
        crash_after_groups: int | None = None,
        hang_after_groups: int | None = None,
        nan_after_groups: int | None = None,
        canary_offsets: Mapping[int, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        self._correct_share = correct_share
        self._tokens_per_second = tokens_per_second
        self._fail_prompts = fail_prompts
        self._kill_prompts = kill_prompts
        self._sound_groups_left = math.inf if nan_after_groups is None else nan_after_groups
        self._groups_left = math.inf if crash_after_groups is None else crash_after_groups
        self._groups_to_hang = math.inf if hang_after_groups is None else hang_after_groups
        self._stands_still_since = math.inf
        self._in_work: list[tuple[LeaseName, float, list[int]]] = []
        self._canary_offsets = canary_offsets
        self._weights_version = 0
        self._vocab_size = 0
        self._stop_token_id = 0
        self._responses_in_flight = 0

    @property
    def name(self) -> str:
        """Always 'scripted'."""
        return "scripted"

    @property
    def weights_version(self) -> int:
        """The version that was started with or adopted last."""
        return self._weights_version

    @property
    def load(self) -> EngineLoad:
        """All that is in flight; there is no cache that could be full. A step takes a millisecond."""
        return EngineLoad(num_running=self._responses_in_flight, steps=int(1000 * self._now()))

    @property
    def running_tokens(self) -> Mapping[LeaseName, int]:
        """By its speed and the time."""
        now, speed = self._now(), self._tokens_per_second or math.inf
        found = Counter[LeaseName]()
        for name, began, lengths in self._in_work:
            found[name] += sum(int(min(length, speed * max(0.0, now - began))) for length in lengths)
        return found

    @property
    def signs_of_work(self) -> tuple[int, ...]:
        """Steps."""
        return (self.load.steps,)

    async def start(self, weights_folder: Path, weights_version: int, canary: "Canary | None") -> float | None:
        """Read vocabulary size and stop token from the folder's config.json; raises CanaryError, EngineError."""
        path = base_of(weights_folder) / "config.json"
        try:
            config = json.loads(path.read_text())
            stop = config["eos_token_id"]
            self._vocab_size = int(config["vocab_size"])
            self._stop_token_id = int(stop[0] if isinstance(stop, list) else stop)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} must give vocab_size and eos_token_id as numbers: {error!r}") from None
        difference = self._score(weights_version, canary, attempt=0)
        self._weights_version = weights_version
        return difference

    async def generate(
        self, lease: Lease, sampling: Sampling, response_ended: Callable[[int], None] | None = None
    ) -> tuple[Response, ...]:
        """The group that belongs to the lease's prompt and visit.

        Raises:
            PromptError: the prompt is one of `fail_prompts`.
            EngineError: `crash_after_groups` groups have been asked for before, or the prompt is one of `kill_prompts`.
        """
        if self._groups_left <= 0 or lease.prompt_id in self._kill_prompts:
            self._groups_left = 0
            raise EngineError(
                "the scripted engine has died, as crash_after_groups says, or kill_prompts; start it again"
            )
        if lease.prompt_id in self._fail_prompts:
            raise PromptError(f"prompt {lease.prompt_id} fails, as fail_prompts says")
        self._groups_left -= 1
        self._groups_to_hang -= 1
        if self._groups_to_hang < 0:
            self._stands_still_since = min(self._stands_still_since, asyncio.get_running_loop().time())
        self._sound_groups_left -= 1
        seed = group_seed(sampling.seed, lease.prompt_id, lease.visit)
        responses = tuple(
            self._response(np.random.default_rng(seed + index), lease.answer, sampling)
            for index in range(sampling.group_size)
        )
        await self._take_time(LeaseName(lease.position, lease.attempt), responses, response_ended)
        return responses

    async def adopt(self, weights_folder: Path, weights_version: int, canary: "Canary | None") -> UpdateTiming:
        """Stamp later groups with the new version; raises CanaryError."""
        was_refused = False
        try:
            difference = self._score(weights_version, canary, attempt=0)
        except CanaryError:
            was_refused, difference = True, self._score(weights_version, canary, attempt=1)
        self._weights_version = weights_version
        return UpdateTiming(0.0, self._responses_in_flight, difference, was_refused)

    async def close(self) -> None:
        """Nothing to release."""

    def _score(self, weights_version: int, canary: "Canary | None", attempt: int) -> float | None:
        if canary is None:
            return None
        offset = self._canary_offsets.get(weights_version, (0.0, 0.0))[attempt]
        return canary.largest_difference([logprob - offset for logprob in canary.logprobs], weights_version)

    def _response(self, random: np.random.Generator, answer: str, sampling: Sampling) -> Response:
        max_tokens, is_truncated = sampling.max_response_tokens, random.random() < TRUNCATED_SHARE
        length = max_tokens if is_truncated else int(random.integers(1, max_tokens, endpoint=True))
        token_ids = random.integers(0, self._vocab_size - 1, length, dtype=np.int32)
        token_ids += token_ids >= self._stop_token_id
        if not is_truncated:
            token_ids[-1] = self._stop_token_id
        logprobs = -math.log(self._vocab_size) - random.random(length)
        is_correct = random.random() < self._correct_share
        text = f"The answer is \\boxed{{{answer if is_correct else answer + '+1'}}}"
        ends = np.flatnonzero(np.isin(token_ids, sampling.stop_token_ids))
        length = int(ends[0]) + 1 if len(ends) else length
        stopped = _up_to_stop(text, sampling.stop)
        logprobs = (logprobs if self._sound_groups_left >= 0 else logprobs * np.nan)[:length]
        return Response(
            token_ids=token_ids[:length],
            behavior_logprobs=logprobs.astype(np.float32),
            segments=(VersionSegment(self._weights_version, length),),
            finish_reason="length" if is_truncated and not len(ends) and stopped == text else "stop",
            text=stopped,
        )

    async def _take_time(
        self, name: LeaseName, responses: tuple[Response, ...], ended: Callable[[int], None] | None
    ) -> None:
        began, left = asyncio.get_running_loop().time(), sorted(len(response.token_ids) for response in responses)
        self._responses_in_flight += len(left)
        work = (name, began, left)
        self._in_work.append(work)
        try:
            while left:
                await self._until(began, left[0])
                self._responses_in_flight -= 1
                tokens = left.pop(0)
                if ended is not None:
                    ended(tokens)
        finally:
            self._responses_in_flight -= len(left)
            self._in_work.remove(work)

    async def _until(self, began: float, tokens: int) -> None:
        due_at = began + tokens / self._tokens_per_second if self._tokens_per_second else 0.0
        await asyncio.sleep(max(0.0, due_at - asyncio.get_running_loop().time()))
        if max(due_at, began) >= self._stands_still_since:
            await asyncio.Event().wait()

    def _now(self) -> float:
        """Seconds of its clock, which stops when it hangs."""
        return min(asyncio.get_running_loop().time(), self._stands_still_since)


def _up_to_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the end of whichever of the stop texts is complete first."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))]
