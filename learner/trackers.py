"""The processes that pass a run's metrics on to trackers; whatever becomes of them, the training goes on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.errors import DcpoError
from dcpo_async.processes import last_lines, module_argv
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import Child, run_once
from dcpo_async.tracking.follower import mark_file, num_unsent

log = logging.getLogger("learner")

START_SECONDS = 600.0
"""Until a process has imported its package and opened its sink."""
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 5.0, 300.0
"""Before one that failed is started again: twice as long each time, until it has worked."""
WORKED_SECONDS = 600.0
END_SECONDS, REST_SECONDS = 30.0, 600.0
"""For what has not been passed on yet: after the end of a training, and where there is nothing left to train."""


@contextlib.asynccontextmanager
async def tracked(config: RunConfig, run_id: str, scratch: Path) -> AsyncIterator[None]:
    """Keep a process for each sink of `tracking.sinks`; at the end they have END_SECONDS for what is left."""
    sinks = Sinks(config, run_id, scratch)
    sinks.start(config.tracking.sinks)
    try:
        yield
    finally:
        await sinks.end(END_SECONDS)


async def send_rest(config: RunConfig, run_id: str, scratch: Path) -> None:
    """Pass on what sinks have not been told of a run that is finished, for REST_SECONDS at most."""
    sinks = Sinks(config, run_id, scratch)
    sinks.start([name for name in config.tracking.sinks if sinks.num_unsent(name)])
    await sinks.end(REST_SECONDS)


class Sinks:
    """The processes of a run's sinks.

    Args:
        scratch: folder of this learner alone.
    """

    def __init__(self, config: RunConfig, run_id: str, scratch: Path) -> None:
        self._folder, self._run_id, self._scratch = config.folder, run_id, scratch
        self._stopping, self._tasks = asyncio.Event(), dict[str, asyncio.Task[None]]()

    def start(self, names: Iterable[str]) -> None:
        """Start processes, and keep them running."""
        self._tasks = {name: asyncio.create_task(self._keep(name), name=f"tracking {name}") for name in names}

    async def end(self, seconds: float) -> None:
        """Have them pass on the rest, and tell of what they could not in that time."""
        self._stopping.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for name in self._tasks:
            if number := self.num_unsent(name):
                form = "tracking by %s: %d points were not passed on; %s has them, and the next start sends them"
                log.warning(form, name, number, RunFolder(self._folder).metrics)

    def num_unsent(self, name: str) -> int:
        """Points that a sink has not been told of."""
        return num_unsent(self._folder, mark_file(self._folder, name), self._run_id)

    async def _keep(self, name: str) -> None:
        """Run a sink's process until told to stop, and again whatever it fails by; the first failure is told."""
        child, loop, pause = self._child(name), asyncio.get_running_loop(), PAUSE_SECONDS
        while True:
            started = loop.time()
            try:
                code, late = await run_once(child, self._stopping)
                reason = late or f"code {code}: {child.failed(code)}"
            except OSError as error:
                code, reason = 1, str(error)
            if self._stopping.is_set() and code == 0:
                return
            if child.has_progressed(loop.time() - started):
                pause = PAUSE_SECONDS
            if pause == PAUSE_SECONDS:
                form = "tracking by %s failed, training goes on; it is tried again (%s): %s"
                log.warning(form, name, child.log_file, reason)
            if self._stopping.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                    return
            pause = min(2 * pause, MOST_PAUSE_SECONDS)

    def _child(self, name: str) -> Child:
        log_file, signs = RunFolder(self._folder).log(f"tracking-{name}"), self._scratch / "signs" / f"tracking-{name}"
        signs.mkdir(parents=True)
        end = signs / "end"
        argv = module_argv("dcpo_async.tracking", str(self._folder), "--sink", name, "--run-id", self._run_id)
        return Child(
            name=f"tracking by {name}",
            argv=lambda: [*argv, "--until", str(end)],
            log_file=log_file,
            environment={"OMP_NUM_THREADS": "1"},
            signs=signs,
            start_seconds=START_SECONDS,
            # A signal would end one that still imports its package.
            ask_to_end=end.touch,
            has_progressed=lambda seconds: seconds >= WORKED_SECONDS,
            failed=lambda code: last_lines(log_file, 1),
            max_failures=0,
            error=DcpoError,
            grace_seconds=1,
        )
