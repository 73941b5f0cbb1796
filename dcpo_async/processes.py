"""Child processes of the services: they die with their parent, and they end when asked.

`python -m dcpo_async.processes PARENT MODULE ARGUMENTS…` runs a module that dies with the process PARENT.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcpo_async.errors import ConfigError

_PR_SET_PDEATHSIG = 1
MAX_SOCKET_BYTES = 107
"""The longest path of a socket: struct sockaddr_un."""
ATTEMPT = "--- started"
"""Begins the line of a log that parts two starts of a child."""
LOG_BYTES = 16 << 20
"""A log that is larger becomes NAME.1, in place of the one before."""


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
    reaches everything that the child has started. Where the task is cancelled meanwhile, no child is left.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        )
        try:
            # Cancelled in the middle of it, asyncio would wait for ever for the end of the process.
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            process = await starting
            kill_group(process)
            await process.wait()
            raise


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


def bound_log(log_file: Path, max_bytes: int = LOG_BYTES) -> None:
    """Move what a log holds to NAME.1 where it is too large; who writes appends, and goes on at its new beginning.

    What is written between the two calls is lost.
    """
    if log_file.exists() and log_file.stat().st_size > max_bytes:
        shutil.copyfile(log_file, log_file.with_name(f"{log_file.name}.1"))
        os.truncate(log_file, 0)


def mark_attempt(log_file: Path) -> None:
    """Say in a child's log that what follows is of another start of it."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    # A full disk is the child's to tell of.
    with contextlib.suppress(OSError), log_file.open("a") as log:
        log.write(time.strftime(f"{ATTEMPT} %Y-%m-%d %H:%M:%S%z\n"))


def last_lines(log_file: Path, count: int = 5) -> str:
    """The end of what the newest attempt of a child has logged, at most 64 KiB of it, for an error message."""
    if not log_file.exists():
        return ""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - (64 << 10)))
        lines = log.read().decode(errors="replace").splitlines()
    begins = max((number + 1 for number, line in enumerate(lines) if line.startswith(ATTEMPT)), default=0)
    return "\n".join(lines[begins:][-count:])


def be_private() -> None:
    """Keep what this process and its children write from other users: folders get mode 700, files 600."""
    os.umask(0o077)


@contextlib.contextmanager
def private_folder(kind: str) -> Iterator[Path]:
    """A temporary folder of this process alone, mode 700; those that ended processes have left are removed first.

    A folder is locked (flock) by its process, and the kernel drops the lock with it, however it ends. After a failure
    it stays, for its logs, until the next start of a service.

    Args:
        kind: of the service, for people who look into the folder of temporary files.
    """
    home = _temporary() / f"dcpo-{os.getuid()}.running"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.lstat().st_uid != os.getuid():
        raise ConfigError(f"{home} belongs to user {home.lstat().st_uid}; set TMPDIR to a folder of your own")
    # Of two that start at once the second finds the folder of the first locked.
    with _locked(home):
        for left in home.iterdir():
            _remove_if_left(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=home))
        owner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(owner)


def _temporary() -> Path:
    """The folder of temporary files; raises ConfigError where it cannot serve, which Python passes over in silence."""
    given = os.environ.get("TMPDIR")
    if given and not (Path(given).is_dir() and os.access(given, os.W_OK | os.X_OK)):
        raise ConfigError(f"TMPDIR={given} is no folder that can be written; make it, or name another")
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(f"no folder of temporary files can be written ({error}); name one in TMPDIR") from error
    # vLLM's own sockets in it have shorter names.
    longest = MAX_SOCKET_BYTES - len(f"/dcpo-{os.getuid()}.running/learner-12345678/ranks")
    if (length := len(os.fsencode(place))) > longest:
        raise ConfigError(
            f"TMPDIR={place} has {length} bytes; name a folder of at most {longest}, since sockets lie in it, whose "
            f"paths may have {MAX_SOCKET_BYTES}"
        )
    return place


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_NB):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    die_with_parent()
    # The parent may have died before the kernel was told; whoever adopted this process will not end it.
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
