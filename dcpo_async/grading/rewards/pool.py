"""Rewards by a user's function, in worker processes; and which grading a run asks for."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from dcpo_async.config import GradingSettings
from dcpo_async.errors import ConfigError, DcpoError, GradingError
from dcpo_async.grading.interface import Grading, Submission
from dcpo_async.grading.pool import GradingPool
from dcpo_async.grading.rewards.function import require_digest
from dcpo_async.grading.rewards.judging import judge_in_time, prepare_reward
from dcpo_async.grading.verdict import Verdict
from dcpo_async.grading.workers import Ended, Workers

log = logging.getLogger(__name__)


class RewardPool:
    """Calls `grading.reward` in workers, each killed where one call takes too long: such a response has reward 0.

    Raises ConfigError where the source of the function is not the one that the run was started with.
    """

    def __init__(self, grading: GradingSettings, num_workers: int) -> None:
        assert grading.reward is not None
        require_digest(grading.reward, grading.reward_digest)
        self._name, self._range = grading.reward, grading.reward_range
        arguments = grading.reward, grading.reward_digest
        needs = f"that {grading.reward} can be imported, that memory is left"
        self._workers = Workers(num_workers, grading.timeout_seconds, prepare_reward, arguments, needs)

    async def grade(self, submission: Submission) -> Verdict:
        """The verdict of the function; one of 0 where it raised, gave what is no reward, took too long or crashed.

        Raises ConfigError where the function cannot be loaded, GradingError as `Workers.call` does.
        """
        outcome = await self._workers.call(judge_in_time, submission, self._range)
        if isinstance(outcome, Ended):
            log.warning("%s: %s; the response has reward 0", self._name, outcome.reason)
            return Verdict(False, None, outcome.reason, 0.0)
        if outcome.verdict is None:
            raise ConfigError(outcome.detail)
        if outcome.detail:
            log.warning("%s: %s (%s); the response has reward 0", self._name, outcome.verdict.reason, outcome.detail)
        return outcome.verdict

    async def grade_all(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """The verdicts of submissions, in their order."""
        return await asyncio.gather(*map(self.grade, submissions))

    def close(self) -> None:
        """Kills the workers; submissions in the making raise GradingError."""
        self._workers.close()


class GradingBySource:
    """Grades each submission as its source says; sources that are graded alike share their workers.

    Args:
        gradings: by the names of sources.
        num_workers: instead of `grading.workers`, for each kind of grading.

    Raises ConfigError as `RewardPool` does.
    """

    def __init__(self, gradings: Mapping[str, GradingSettings], num_workers: int | None = None) -> None:
        self._pools: list[tuple[GradingSettings, Grading]] = []
        try:
            for settings in gradings.values():
                if all(settings != made for made, _ in self._pools):
                    self._pools.append((settings, grading_of(settings, num_workers=num_workers)))
        except DcpoError:
            self.close()
            raise
        self._of = {
            name: next(pool for made, pool in self._pools if made == settings) for name, settings in gradings.items()
        }

    async def grade_all(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """The verdicts of submissions, in their order; raises GradingError for a source that has no grading."""
        if unknown := {item.source for item in submissions} - self._of.keys():
            raise GradingError(f"nothing is said about how source {min(unknown)} is graded; this is a bug")
        found = await asyncio.gather(*(self._of[item.source].grade_all([item]) for item in submissions))
        return [verdict for verdicts in found for verdict in verdicts]

    def close(self) -> None:
        """Kills all workers."""
        for _, pool in self._pools:
            pool.close()


def grading_of(
    grading: GradingSettings, by_source: Mapping[str, GradingSettings] | None = None, num_workers: int | None = None
) -> Grading:
    """What grades by these settings: our own grader, or the functions that they name.

    Args:
        by_source: of each source by its name; None or empty where `grading` is that of all.
        num_workers: instead of `grading.workers`.
    """
    if by_source:
        # Problems of an evaluation are of no source.
        return GradingBySource({"": grading, **by_source}, num_workers)
    workers = num_workers or grading.workers
    if grading.reward is None:
        return GradingPool(workers, grading.timeout_seconds, grading.extraction)
    return RewardPool(grading, workers)
