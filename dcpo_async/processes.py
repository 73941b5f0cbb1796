"""Child processes of the services: they die with their parent, and they end when asked.

`python -m dcpo_async.processes PARENT MODULE ARGUMENTS…` runs a module that dies with the process PARENT.
"""

import asyncio
import contextlib
import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


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
            await asyncio.wait_for(process.wait(), grace_seconds)
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
