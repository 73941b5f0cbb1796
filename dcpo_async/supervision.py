"""Supervision of the parts of a service: each runs as one process or several, and is started again when it fails.

A part that is supervised for progress gives signs of it, each of which says how long the next may take.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.processes import bound_log, kill_group, last_lines, mark_attempt, spawn, stop

log = logging.getLogger(__name__)

SIGNS = "DCPO_SIGNS"
"""Environment variable of a child: the file for its signs."""
LOOK_SECONDS = 1.0
MOST_PAUSES = 8
IMPORT_SECONDS = 600.0
"""Until a part's first sign of progress: imports, from a disk or a network that many others read."""
SUFFER_SECONDS = 2.0
"""When one process of a part has failed, the others have so long to say what they suffer from."""
_SIGN_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A part of a service that runs as processes of its own, and is started again when it fails.

    Attributes:
        name: for people, such as "engine process".
        argv: called before each start.
        log_file: its output is appended there.
        environment: added to this process's.
        members: called before each start: one process is started for each, all with the same words, and with these
            additions to their environment. When one fails, all end; the part has ended well when all have.
        signs: folder for the members' signs of progress, which must not be shared; without it none are expected.
        start_seconds: how long the first sign may take.
        has_progressed: given how many seconds it ran: whether that counts as having worked, so that failures before it
            are forgotten.
        failed: called with the exit code of each failure; tells people the reason, and raises where no new start helps.
        restarting: called when it is about to be started again.
        ready: awaited before each start, until which a stop is heeded at once.
        lost: called every second with the part running: why it has to end all the same, empty where it has not.
        ask_to_end: how it hears of a stop; by default SIGTERM.
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
    members: Callable[[], Sequence[Mapping[str, str]]] = lambda: ({},)
    signs: Path | None = None
    start_seconds: float = 60.0
    restarting: Callable[[], None] = lambda: None
    ready: Callable[[], Awaitable[None]] | None = None
    lost: Callable[[], str] = lambda: ""
    ask_to_end: Callable[[], None] | None = None
    pause_seconds: float = 0.0
    final_codes: tuple[int, ...] = (ConfigError.exit_code,)
    renewing_codes: tuple[int, ...] = ()
    is_endless: bool = False


def endless(
    name: str,
    argv: Sequence[str],
    log_file: Path,
    error: type[DcpoError],
    *,
    program: str,
    worked_seconds: float = 60.0,
    max_failures: int = 3,
) -> Child:
    """A part without a good end, such as a server; what it says last is why it failed.

    Args:
        program: whose name stands before what it says to people.
        worked_seconds: one that ran so long has worked, so that failures before it are forgotten.
    """
    return Child(
        name=name,
        argv=lambda: argv,
        log_file=log_file,
        start_seconds=IMPORT_SECONDS,
        has_progressed=lambda seconds: seconds >= worked_seconds,
        failed=lambda code: last_lines(log_file, 1).removeprefix(f"{program}: "),
        max_failures=max_failures,
        error=error,
        grace_seconds=5,
        is_endless=True,
    )


async def keep_running(child: Child, stopping: asyncio.Event | None = None) -> None:
    """Run a child until it ends well, and start it again where it fails or is late.

    Args:
        stopping: once it is set, the child is asked to end, and may take its time.

    Raises:
        ConfigError: it says, by its exit code, that starting again does not help.
        DcpoError: child.error, after too many failures in a row.
    """
    stopping, loop, failures = stopping or asyncio.Event(), asyncio.get_running_loop(), 0
    while not stopping.is_set():
        if child.ready is not None and not await _unless(stopping, child.ready()):
            return
        started = loop.time()
        code, late = await run_once(child, stopping)
        if stopping.is_set() and code:
            log.warning("%s ended with code %d: %s", child.name, code, late or last_lines(child.log_file, 1))
        if stopping.is_set() or (code == 0 and not child.is_endless):
            return
        if code in child.renewing_codes:
            log.info("%s is started anew: %s", child.name, last_lines(child.log_file, 1))
            continue
        said = child.failed(code)
        reason = late or said or "it said nothing"
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


async def run_members(
    argv: Sequence[str], members: Sequence[Mapping[str, str]], log_file: Path, environment: Mapping[str, str]
) -> int:
    """Run processes that stand and fall together once; 0, or the code of the one that failed first."""
    processes = list[asyncio.subprocess.Process]()
    try:
        for member in members:
            processes.append(await spawn(argv, log_file, {**environment, **member}))
        return await _all_ended(processes)
    finally:
        await _killed(processes)


def sign_of_progress(words: str, next_within: float) -> None:
    """Tell who supervises this process that it came further; nothing happens where nobody does.

    Args:
        words: what it does from now on, such as "rank 1, step 7".
        next_within: seconds until the next sign at the latest; without one the process is late, and is killed.
    """
    global _pen
    if SIGNS in os.environ:
        _pen = _pen or _Pen(Path(os.environ[SIGNS]))
        _pen.write(words, next_within)


class _Pen:
    """Writes signs into a small file, over one another."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._count = 0

    def write(self, words: str, next_within: float) -> None:
        self._count += 1
        text = f"{self._count} {next_within:g} {words}".encode()[:_SIGN_BYTES]
        os.pwrite(self._descriptor, text.ljust(_SIGN_BYTES), 0)


_pen: _Pen | None = None


class _Member:
    """One process of a part, and what its newest sign says."""

    def __init__(self, process: asyncio.subprocess.Process, signs: Path, name: str, start_seconds: float) -> None:
        self.process, self.count, self.words = process, 0, f"the start of {name} as process {process.pid}"
        self._signs, self._text, self._changed_at, self._next_within = signs, "", time.monotonic(), start_seconds

    def is_late(self, now: float, stood_still: float) -> bool:
        """Whether its next sign is overdue.

        Args:
            now: monotonic seconds.
            stood_still: how long this process itself did not look, which is nobody's fault.
        """
        self._changed_at += stood_still
        try:
            text = self._signs.read_text(errors="replace")
            count, next_within, words = text.strip().split(" ", 2)
            if text != self._text:
                self.count, self._next_within, self.words = int(count), float(next_within), words
                self._text, self._changed_at = text, now
        except (OSError, ValueError):
            # Not there yet, or read while it was written.
            pass
        return now - self._changed_at > self._next_within

    def told(self, now: float) -> str:
        """For people: where it stands, and for how long."""
        is_stopped = " and the process is stopped" if _is_stopped(self.process.pid) else ""
        return f"{self.words}: no progress for {now - self._changed_at:.0f} s{is_stopped}"


async def run_once(child: Child, stopping: asyncio.Event) -> tuple[int, str]:
    """Run a child to its end once; returns its exit code, and why it was killed where it was late or lost.

    A stop is passed on to it, and when this task is cancelled it is ended.
    """
    members, argv = child.members(), child.argv()
    signs = [child.signs / f"{number}" for number in range(len(members))] if child.signs else []
    for path in signs:
        path.unlink(missing_ok=True)
    processes = list[asyncio.subprocess.Process]()
    mark_attempt(child.log_file)
    try:
        for number, member in enumerate(members):
            sign = {SIGNS: str(signs[number])} if signs else {}
            processes.append(await spawn(argv, child.log_file, {**child.environment, **member, **sign}))
    except BaseException:
        await _killed(processes)
        raise
    numbers = ", ".join(str(process.pid) for process in processes)
    log.info("%s started as process%s %s", child.name, "es" if len(processes) > 1 else "", numbers)
    watched = [
        _Member(process, path, child.name, child.start_seconds)
        for process, path in zip(processes, signs, strict=bool(signs))
    ]
    ended = asyncio.create_task(_all_ended(processes))
    late = asyncio.create_task(_until_late(watched, child))
    asking = asyncio.create_task(_pass_on(stopping, child, processes))
    try:
        await asyncio.wait((ended, late), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result(), ""
        _kill(processes)
        return await ended, late.result()
    except asyncio.CancelledError:
        await asyncio.gather(*(stop(process, child.grace_seconds) for process in processes))
        raise
    finally:
        for task in (ended, late, asking):
            task.cancel()
        _kill(processes)


async def _all_ended(processes: Sequence[asyncio.subprocess.Process]) -> int:
    """0 once all have ended well; once one fails the others are killed, and its code is returned."""
    waiting, code = {asyncio.create_task(process.wait()) for process in processes}, 0
    try:
        while waiting and code == 0:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            code = next((task.result() for task in done if task.result()), 0)
        if waiting and code:
            log.warning("one of %d processes ended with code %d, and the others with it", len(processes), code)
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=SUFFER_SECONDS)
            _kill(processes)
            await asyncio.gather(*waiting)
        return code
    finally:
        for task in waiting:
            task.cancel()


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await something unless a stop comes first; returns whether it was done. Raises what it raises."""
    tasks = (asyncio.ensure_future(work), asyncio.create_task(stopping.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            await tasks[0]
        return tasks[0].done() and not stopping.is_set()
    finally:
        for task in tasks:
            task.cancel()


async def _until_late(members: Sequence[_Member], child: Child) -> str:
    """Keep the log within its bound; returns once a member is late, with who holds up the others, or all are lost."""
    looked_at = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            bound_log(child.log_file)
        await asyncio.sleep(LOOK_SECONDS)
        if lost := child.lost():
            return lost
        now = time.monotonic()
        stood_still, looked_at = max(0.0, now - looked_at - 2 * LOOK_SECONDS), now
        running = [member for member in members if member.process.returncode is None]
        if any([member.is_late(now, stood_still) for member in running]):
            stopped = [member for member in running if _is_stopped(member.process.pid)]
            fewest = min(member.count for member in running)
            # The others wait for those that have come less far.
            behind = stopped or [member for member in running if member.count == fewest]
            return "; ".join(member.told(now) for member in behind)


async def _pass_on(stopping: asyncio.Event, child: Child, processes: Sequence[asyncio.subprocess.Process]) -> None:
    await stopping.wait()
    if child.ask_to_end is not None:
        child.ask_to_end()
        return
    for process in processes:
        if process.returncode is None:
            process.terminate()


def _kill(processes: Sequence[asyncio.subprocess.Process]) -> None:
    for process in processes:
        kill_group(process)


async def _killed(processes: Sequence[asyncio.subprocess.Process]) -> None:
    _kill(processes)
    for process in processes:
        await process.wait()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
