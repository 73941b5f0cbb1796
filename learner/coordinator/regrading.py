"""Grades a sampled share of the responses again, so that an actor whose grader disagrees is noticed."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping

from dcpo_async.config import RunConfig
from dcpo_async.grading import Grading, Submission, reward_of
from dcpo_async.grading.rewards import grading_of
from dcpo_async.protocol.conversion import texts_of
from dcpo_async.protocol.messages import Array, GroupMessage
from dcpo_async.records import Prompt

log = logging.getLogger(__name__)

MAX_WAITING = 1000
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1.0, 60.0
"""Before it begins again after a failure; twice as long after each one more in a row, up to the second."""


class Regrader:
    """Counts `regraded`, `regrade_disagreements` and `regrader_restarts`; rewards that were counted stay as they are.

    Args:
        config: of the run; `actor.regrade_share` of the responses are graded again, none by a reward that does not
            repeat itself.
        counts: where both counts go.
    """

    def __init__(self, config: RunConfig, counts: Counter[str]) -> None:
        self._config, self._counts = config, counts
        self._random = random.Random(config.seed)
        self._waiting: asyncio.Queue[tuple[int, Submission, float]] = asyncio.Queue(MAX_WAITING)

    def use(self, config: RunConfig) -> None:
        """Take another share from now on."""
        self._config = config

    def sample(self, message: GroupMessage, arrays: Mapping[str, Array], prompt: Prompt) -> None:
        """Take a share of a sound group's responses; more than can wait are left out."""
        share = self._config.actor.regrade_share if self._config.grading_of(prompt.source).reward_repeats else 0.0
        texts, reasons = texts_of(message, arrays), message.finish_reasons
        for text, reason, length, reward in zip(texts, reasons, message.lengths, message.rewards, strict=True):
            if self._random.random() < share and not self._waiting.full():
                asked = prompt.problem, prompt.answer, text, reason, length, prompt.metadata, prompt.source
                submission = Submission(*asked)
                self._waiting.put_nowait((message.position, submission, reward))

    async def run(self) -> None:
        """Grade what was sampled, until cancelled; workers that fail are started again, which is counted."""
        failures = 0
        while True:
            num_graded = self._counts["regraded"]
            try:
                await self._grade_all()
            except Exception as error:
                failures = 1 if self._counts["regraded"] > num_graded else failures + 1
                self._counts["regrader_restarts"] += 1
                seconds = min(MOST_PAUSE_SECONDS, PAUSE_SECONDS * 2 ** (failures - 1))
                log.error(
                    "the regrader failed, training goes on: %s: %s; it begins again in %.0f s, %d responses wait",
                    type(error).__name__,
                    error,
                    seconds,
                    self._waiting.qsize(),
                )
                await asyncio.sleep(seconds)

    async def _grade_all(self) -> None:
        """Grade in a pool of its own, which is made when there is something to grade."""
        first = await self._waiting.get()
        pool = grading_of(self._config.grading, self._config.grading_by_source, num_workers=1)
        try:
            await self._grade(pool, *first)
            while True:
                await self._grade(pool, *await self._waiting.get())
        finally:
            pool.close()

    async def _grade(self, pool: Grading, position: int, submission: Submission, reward: float) -> None:
        (verdict,) = await pool.grade_all([submission])
        expected = reward_of(verdict, self._config.grading.format_penalty)
        self._counts["regraded"] += 1
        if expected != reward:
            self._counts["regrade_disagreements"] += 1
            log.warning(
                "group %d: an actor gave reward %s, grading again gives %s (%s); compare their versions of dcpo-async; "
                "set grading.reward_repeats = false where an own reward differs from call to call",
                position,
                reward,
                expected,
                verdict.reason,
            )
