"""What an actor does at once: tasks of which the first that fails ends it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dcpo_async.errors import DcpoError, EngineError
from dcpo_async.records import LeaseName

log = logging.getLogger("actor")


class Tasks:
    """Tasks that run until they end, are cancelled or fail.

    Args:
        failed: called with each failure; one that nobody foresaw is an EngineError.
    """

    def __init__(self, failed: Callable[[DcpoError], None]) -> None:
        self._failed = failed
        self._running: dict[asyncio.Task[None], LeaseName | None] = {}

    def start(self, work: Coroutine[Any, Any, None], lease: LeaseName | None = None) -> None:
        """Begin; `lease` is the one that it answers, if any."""
        task = asyncio.create_task(work)
        self._running[task] = lease
        task.add_done_callback(self._ended)

    def give_up(self, lease: LeaseName) -> None:
        """Cancel what answers a lease."""
        for task in [task for task, name in self._running.items() if name == lease]:
            task.cancel()

    async def close(self) -> None:
        """Cancel all, and wait for their ends."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._running[task]
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, DcpoError):
            log.error("unexpected failure", exc_info=error)
            error = EngineError(f"{type(error).__name__}: {error}")
        self._failed(error)
