"""Grades in worker processes that are killed when an answer takes too long."""

import asyncio
import logging
import multiprocessing
import signal
from collections.abc import Sequence

from pebble import ProcessExpired, ProcessPool

from dcpo_async.errors import GradingError
from dcpo_async.grading.extraction import Extraction
from dcpo_async.grading.grader import quick_verdict
from dcpo_async.grading.verdict import Verdict
from dcpo_async.grading.worker import grade_in_time, prepare

log = logging.getLogger(__name__)

# sympy's caches grow slowly; a fresh worker now and then keeps a run of weeks flat.
TASKS_PER_WORKER = 5000
STARTUP_SECONDS = 60.0
# Limit by the clock, as a multiple of the limit on processor time: workers share their machine with engines.
PATIENCE = 10
MAX_ATTEMPTS = 2


class GradingPool:
    """Grades responses without blocking the event loop, whatever a model may have written.

    Our own comparison, which takes bounded time, runs in-process. Only answers that need algebra go to the workers:
    `num_workers` spawned processes, each limited to 2 GiB of memory (on Linux) and killed once an answer has used
    `timeout_seconds` of processor time (or ten times that by the clock), so that no verdict depends on how busy the
    machine is.

    A pool belongs to one event loop. Spawned workers import the main module of the process again, so that
    module must guard its call of main() and stay free of heavy imports.
    """

    def __init__(self, num_workers: int, timeout_seconds: float, extraction: Extraction = "boxed") -> None:
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        self.extraction: Extraction = extraction
        self._closed = False
        self._running: set[asyncio.Future[Verdict]] = set()
        # Answers queue here rather than in pebble, so that one without a reply is the sign of a stuck pool.
        self._slots = asyncio.Semaphore(num_workers)
        self._pool = self._started_pool()

    async def grade(self, response_text: str, reference_answer: str) -> Verdict:
        """The verdict of `grade`, or one with reason `timeout` or `crashed` where the answer was too much.

        Raises GradingError where the pool is closed or its workers cannot run at all.
        """
        if self._closed:
            raise GradingError("the grading pool is closed; open a new one to grade more responses")
        verdict = quick_verdict(response_text, reference_answer, self.extraction)
        if verdict.reason != "undecided" or verdict.extracted is None:
            return verdict
        async with self._slots:
            return await self._symbolic_verdict(verdict.extracted, reference_answer)

    async def grade_many(self, response_texts: Sequence[str], reference_answer: str) -> list[Verdict]:
        """The verdicts of several responses to one problem, in their order."""
        return await asyncio.gather(*(self.grade(text, reference_answer) for text in response_texts))

    def close(self) -> None:
        """Kills the workers and returns once they are gone; answers in the making raise GradingError."""
        if not self._closed:
            self._closed = True
            for future in self._running:
                future.cancel()
            _stop(self._pool)

    async def _symbolic_verdict(self, extracted: str, reference_answer: str) -> Verdict:
        outcome: object = None
        for _ in range(MAX_ATTEMPTS):
            pool = self._pool
            outcome = await self._outcome(pool, extracted, reference_answer)
            if isinstance(outcome, Verdict):
                return outcome
            if _is_timeout(outcome):
                return Verdict(False, extracted, "timeout")
            # The worker may have been killed for a reason of its own, so the answer gets another chance.
            if not isinstance(outcome, ProcessExpired):
                await self._replace(pool, outcome)
        if isinstance(outcome, ProcessExpired):
            return Verdict(False, extracted, "crashed")
        raise GradingError(
            f"the grading workers failed {MAX_ATTEMPTS} times in a row, the last time with {outcome!r}; "
            "check that math-verify is installed, that memory is left, and that the main module guards main()"
        )

    async def _outcome(self, pool: ProcessPool, extracted: str, reference_answer: str) -> Verdict | BaseException:
        limit_seconds = PATIENCE * self.timeout_seconds
        deadline_seconds = STARTUP_SECONDS + limit_seconds
        try:
            scheduled = pool.schedule(
                grade_in_time,
                args=(extracted, reference_answer, self.timeout_seconds),
                timeout=limit_seconds,
            )
        except RuntimeError as error:  # pebble's word for a pool that broke
            return error
        future: asyncio.Future[Verdict] = asyncio.wrap_future(scheduled)
        self._running.add(future)
        try:
            await asyncio.wait({future}, timeout=deadline_seconds)
            if not future.done():
                return GradingError(f"no grading worker answered within {deadline_seconds:.0f} s")
        finally:
            self._running.discard(future)
            future.cancel()
        if future.cancelled():
            return GradingError("the grading pool was stopped")
        return future.exception() or future.result()

    async def _replace(self, broken: ProcessPool, cause: object) -> None:
        """pebble's pool breaks when an idle worker is killed; the first answer to notice starts a new one."""
        if self._closed:
            raise GradingError("the grading pool was closed while it graded; close it after its last answer")
        if self._pool is broken:
            log.warning("grading pool broke (%r): starting %d new workers", cause, self.num_workers)
            self._pool = self._started_pool()
            await asyncio.to_thread(_stop, broken)

    def _started_pool(self) -> ProcessPool:
        pool = ProcessPool(
            max_workers=self.num_workers,
            max_tasks=TASKS_PER_WORKER,
            initializer=prepare,
            # fork would copy the locks of vLLM's and torch's threads in whatever state they are.
            context=multiprocessing.get_context("spawn"),
        )
        if not pool.active:  # asking is what starts pebble's workers
            raise GradingError(f"{self.num_workers} grading workers could not be started")
        return pool


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _is_timeout(outcome: object) -> bool:
    if isinstance(outcome, ProcessExpired):
        return bool(outcome.exitcode == -signal.SIGPROF)
    return isinstance(outcome, TimeoutError)
