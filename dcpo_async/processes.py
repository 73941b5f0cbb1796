"""Child processes of the services: they die with their parent, and they end when asked.

`python -m dcpo_async.processes PARENT MODULE ARGUMENTS…` runs a module that dies with the process PARENT.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcpo_async.errors import ConfigError, DcpoError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
MOST_PAUSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A part of a service that runs as a process of its own, and is started again when it fails.

    Attributes:
        name: for people, such as "engine process".
        argv: called before each start.
        log_file: its output is appended there.
        environment: added to this process's.
        has_progressed: given how many seconds it ran: whether that counts as having worked, so that failures before it
            are forgotten.
        failed: called with the exit code of each failure; tells people the reason, and raises where no new start helps.
        restarting: called when it is about to be started again.
        max_failures: this many in a row are borne.
        error: raised after one more.
        grace_seconds: how long it may take to end when this task is cancelled.
        pause_seconds: before it is started again; twice as long after each further failure in a row, up to
            MOST_PAUSES times.
        final_codes: exit codes by which it says that starting again does not help.
        renewing_codes: exit codes by which it asks to be started anew at once, which is no failure.
        is_endless: it has no good end, so that exit code 0 is a failure too.
    """

    name: str
    argv: Callable[[], Sequence[str]]
    log_file: Path
    has_progressed: Callable[[float], bool]
    failed: Callable[[int], str]
    max_failures: int
    error: type[DcpoError]
    grace_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    restarting: Callable[[], None] = lambda: None
    pause_seconds: float = 0.0
    final_codes: tuple[int, ...] = (ConfigError.exit_code,)
    renewing_codes: tuple[int, ...] = ()
    is_endless: bool = False


async def keep_running(child: Child, stopping: asyncio.Event | None = None) -> None:
    """Run a child until it ends well, and start it again where it fails.

    Args:
        stopping: once it is set, the child is asked to end, and may take its time.

    Raises:
        ConfigError: it says, by its exit code, that starting again does not help.
        DcpoError: child.error, after too many failures in a row.
    """
    stopping, loop, failures = stopping or asyncio.Event(), asyncio.get_running_loop(), 0
    while not stopping.is_set():
        started = loop.time()
        code = await _run_once(child, stopping)
        if stopping.is_set() or (code == 0 and not child.is_endless):
            return
        if code in child.renewing_codes:
            log.info("%s is started anew: %s", child.name, last_lines(child.log_file, 1))
            continue
        reason = child.failed(code)
        if code in child.final_codes:
            raise ConfigError(reason)
        failures = 1 if child.has_progressed(loop.time() - started) else failures + 1
        if failures > child.max_failures:
            raise child.error(
                f"{child.name} failed {failures} times in a row: {reason}; the end of {child.log_file}:\n"
                + last_lines(child.log_file, 15)
            )
        log.warning("%s ended with code %d and is started again: %s", child.name, code, reason)
        child.restarting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(child.pause_seconds * min(MOST_PAUSES, 2 ** (failures - 1))):
                await stopping.wait()


async def _run_once(child: Child, stopping: asyncio.Event) -> int:
    """Run a child to its end; a stop is passed on to it, and when this task is cancelled it is ended."""
    process = await spawn(child.argv(), child.log_file, child.environment)
    log.info("%s started as process %d", child.name, process.pid)
    ended, asked = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
        return await ended
    except asyncio.CancelledError:
        await stop(process, child.grace_seconds)
        raise
    finally:
        ended.cancel()
        asked.cancel()
        kill_group(process)


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Do a process's work until it ends or SIGTERM or SIGINT comes, which cancels it; raises what it raises."""
    task, loop = asyncio.create_task(work), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that SIGKILL of a launcher leaves no orphans."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def module_argv(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this Python, as a child of this process that dies with it."""
    return [sys.executable, "-m", "dcpo_async.processes", str(os.getpid()), module, *arguments]


async def spawn(
    argv: Sequence[str], log_file: Path, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start a child whose output is appended to a log file.

    It leads a process group of its own, so that an interrupt at the terminal reaches the launcher alone and a stop
    reaches everything that the child has started.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


async def stop(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    """Ask a child to end, and kill its process group after a grace period."""
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await process.wait()
    kill_group(process)
    await process.wait()


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a child and whatever it started that is still there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def last_lines(log_file: Path, count: int = 5) -> str:
    """The end of a child's log, at most 64 KiB of it, for an error message."""
    if not log_file.exists():
        return ""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - (64 << 10)))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-count:])


if __name__ == "__main__":
    die_with_parent()
    # The parent may have died before the kernel was told; whoever adopted this process will not end it.
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
