"""Parts of an actor that run beside each other in one event loop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dcpo_async.errors import DcpoError, EngineError

log = logging.getLogger("actor")


class Parts:
    """Runs parts until they end.

    Args:
        failed: told of each part that fails; what is no error of ours is an EngineError.
    """

    def __init__(self, failed: Callable[[DcpoError], None]) -> None:
        self._failed = failed
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one more part."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finished)

    async def cancel(self) -> None:
        """End all parts, whatever they do."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DcpoError):
            self._failed(error)
        elif error is not None:
            log.error("unexpected failure", exc_info=error)
            self._failed(EngineError(f"{type(error).__name__}: {error}"))
