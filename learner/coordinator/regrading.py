"""Grades a sampled share of the responses again, so that an actor whose grader disagrees is noticed."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping

from dcpo_async.config import RunConfig
from dcpo_async.errors import GradingError
from dcpo_async.grading import GradingPool, reward_of
from dcpo_async.protocol.conversion import texts_of
from dcpo_async.protocol.messages import Array, GroupMessage

log = logging.getLogger(__name__)

MAX_WAITING = 1000


class Regrader:
    """Counts `regraded` and `regrade_disagreements`; rewards that were counted stay as they are.

    Args:
        config: of the run; `actor.regrade_share` of the responses are graded again.
        counts: where both counts go.
    """

    def __init__(self, config: RunConfig, counts: Counter[str]) -> None:
        self._config, self._counts = config, counts
        self._random = random.Random(config.seed)
        self._waiting: asyncio.Queue[tuple[int, str, str, float]] = asyncio.Queue(MAX_WAITING)

    def sample(self, message: GroupMessage, arrays: Mapping[str, Array], answer: str) -> None:
        """Take a share of a sound group's responses; more than can wait are left out."""
        for text, reward in zip(texts_of(message, arrays), message.rewards, strict=True):
            if self._random.random() < self._config.actor.regrade_share and not self._waiting.full():
                self._waiting.put_nowait((message.position, text, answer, reward))

    async def run(self) -> None:
        """Grade what was sampled, until cancelled."""
        grading = self._config.grading
        first = await self._waiting.get()
        pool = GradingPool(1, grading.timeout_seconds, grading.extraction)
        try:
            await self._grade(pool, *first)
            while True:
                await self._grade(pool, *await self._waiting.get())
        except GradingError as error:
            log.error("responses are not graded again any more, training goes on: %s", error)
        finally:
            pool.close()

    async def _grade(self, pool: GradingPool, position: int, text: str, answer: str, reward: float) -> None:
        verdict = await pool.grade(text, answer)
        expected = reward_of(verdict, self._config.grading.format_penalty)
        self._counts["regraded"] += 1
        if expected != reward:
            self._counts["regrade_disagreements"] += 1
            log.warning(
                "group %d: an actor gave reward %s, grading again gives %s (%s); compare their versions of dcpo-async",
                position,
                reward,
                expected,
                verdict.reason,
            )
