"""Worker processes that are killed when one thing takes them too long."""

import asyncio
import logging
import multiprocessing
import signal
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from pebble import ProcessExpired, ProcessPool

from dcpo_async.errors import GradingError

log = logging.getLogger(__name__)
T = TypeVar("T")

# sympy's caches grow slowly; a fresh worker now and then keeps a run of weeks flat.
TASKS_PER_WORKER = 5000
STARTUP_SECONDS = 60.0
# Limit by the clock, as a multiple of the limit on processor time: workers share their machine with engines.
PATIENCE = 10
MAX_ATTEMPTS = 2


class Ended(NamedTuple):
    """A worker that ended over what it was given."""

    reason: Literal["timeout", "crashed"]


class Workers:
    """Spawned processes, each killed once a call has used `timeout_seconds` of processor time, or ten times that.

    The second is by the clock: no verdict depends on how busy the machine is. What is called bounds its own
    processor time, as `worker.limited` does. The processes belong to one event loop. They import the main module of
    the process again, so that module must guard its call of main() and stay free of heavy imports.

    Args:
        prepare, arguments: called once in each process, before the clock of its first call starts.
        needs: what to check where no process can be started, for a message.
    """

    def __init__(
        self,
        num_workers: int,
        timeout_seconds: float,
        prepare: Callable[..., None],
        arguments: tuple[Any, ...] = (),
        needs: str = "that memory is left",
    ) -> None:
        self.num_workers, self.timeout_seconds = num_workers, timeout_seconds
        self.is_closed = False
        self._prepare, self._arguments, self._needs = prepare, arguments, needs
        self._running: set[asyncio.Future[Any]] = set()
        # Calls queue here rather than in pebble, so that one without a reply is the sign of a stuck pool.
        self._slots = asyncio.Semaphore(num_workers)
        self._pool = self._started_pool()

    async def call(self, function: Callable[..., T], *arguments: object) -> T | Ended:
        """What a function that never raises returns from a worker, or how the worker ended.

        Raises GradingError where the workers are closed or cannot run at all.
        """
        if self.is_closed:
            raise GradingError("the grading pool is closed; open a new one to grade more responses")
        async with self._slots:
            return await self._called(function, *arguments)

    def close(self) -> None:
        """Kills the workers and returns once they are gone; calls in the making raise GradingError."""
        if not self.is_closed:
            self.is_closed = True
            for future in self._running:
                future.cancel()
            _stop(self._pool)

    async def _called(self, function: Callable[..., T], *arguments: object) -> T | Ended:
        outcome: T | BaseException | None = None
        for _ in range(MAX_ATTEMPTS):
            pool = self._pool
            outcome = await self._outcome(pool, function, *arguments)
            if not isinstance(outcome, BaseException):
                return outcome
            if _is_timeout(outcome):
                return Ended("timeout")
            # The worker may have been killed for a reason of its own, so the answer gets another chance.
            if not isinstance(outcome, ProcessExpired):
                await self._replace(pool, outcome)
        if isinstance(outcome, ProcessExpired):
            return Ended("crashed")
        raise GradingError(
            f"the grading workers failed {MAX_ATTEMPTS} times in a row, the last time with {outcome!r}; "
            f"check {self._needs}, and that the main module guards main()"
        )

    async def _outcome(self, pool: ProcessPool, function: Callable[..., T], *arguments: object) -> T | BaseException:
        limit_seconds = PATIENCE * self.timeout_seconds
        deadline_seconds = STARTUP_SECONDS + limit_seconds
        try:
            scheduled = pool.schedule(function, args=(*arguments, self.timeout_seconds), timeout=limit_seconds)
        except RuntimeError as error:  # pebble's word for a pool that broke
            return error
        future: asyncio.Future[T] = asyncio.wrap_future(scheduled)
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
        """pebble's pool breaks when an idle worker is killed; the first call to notice starts a new one."""
        if self.is_closed:
            raise GradingError("the grading pool was closed while it graded; close it after its last answer")
        if self._pool is broken:
            log.warning("grading pool broke (%r): starting %d new workers", cause, self.num_workers)
            self._pool = self._started_pool()
            await asyncio.to_thread(_stop, broken)

    def _started_pool(self) -> ProcessPool:
        pool = ProcessPool(
            max_workers=self.num_workers,
            max_tasks=TASKS_PER_WORKER,
            initializer=self._prepare,
            initargs=self._arguments,
            # fork would copy the locks of vLLM's and torch's threads in whatever state they are.
            context=multiprocessing.get_context("spawn"),
        )
        if not pool.active:  # asking is what starts pebble's workers
            raise GradingError(f"{self.num_workers} grading workers could not be started")
        return pool


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _is_timeout(outcome: BaseException) -> bool:
    if isinstance(outcome, ProcessExpired):
        return bool(outcome.exitcode == -signal.SIGPROF)
    return isinstance(outcome, TimeoutError)
