"""`dcpo-actor`: one engine process for each GPU group, started again when it dies."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from actor.engine.choice import add_engine_arguments, engine_words
from dcpo_async.devices import checked_gpus, cuda_environment
from dcpo_async.errors import ConfigError, DcpoError, EngineError
from dcpo_async.processes import kill_group, last_lines, module_argv, spawn, stop
from dcpo_async.transport.security import check_address, load_client_keys

log = logging.getLogger("actor")

MAX_QUICK_FAILURES = 5
QUICK_SECONDS = 120.0
READY = b"is ready with weights version"
RESTART_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the learner ends or SIGTERM drained the actor, 2 on bad input, 1 on a failure."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    options = _parser().parse_args(argv)
    try:
        groups = _gpu_groups(options)
        # The engine processes look at them too, but only after seconds of imports.
        check_address(options.learner, has_keys=options.keys is not None, insecure=options.insecure)
        if options.keys is not None:
            load_client_keys(options.keys)
        asyncio.run(_supervise(options, groups))
    except DcpoError as error:
        print(f"dcpo-actor: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcpo-actor",
        description="Generate and grade rollouts for a learner; model and settings come from it.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", help="GPUs of this machine, such as 0-3")
    where.add_argument("--workers", type=int, default=1, help="engine processes on the CPU (default 1)")
    parser.add_argument("--learner", default="tcp://127.0.0.1:5557", help="address of the learner's coordinator")
    add_engine_arguments(parser)
    parser.add_argument(
        "--join-seconds", type=float, default=300.0, help="give up when no learner answers (default 300)"
    )
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs (default: a temporary one)")
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys that `dcpo keygen` made")
    parser.add_argument("--insecure", action="store_true", help="reach a learner off loopback without keys")
    return parser


def _gpu_groups(options: argparse.Namespace) -> list[tuple[int, ...]]:
    """The GPUs of each engine process; empty tuples on the CPU."""
    size = options.tensor_parallel
    if size < 1 or options.workers < 1:
        raise ConfigError("--tensor-parallel and --workers must be at least 1")
    if options.gpus is None:
        if size > 1:
            raise ConfigError(f"--tensor-parallel {size} needs --gpus")
        return [()] * options.workers
    gpus = checked_gpus(options.gpus)
    options.device = "gpu"
    if len(gpus) % size:
        raise ConfigError(f"--gpus {options.gpus}: {len(gpus)} GPUs do not divide into engines of {size}")
    return [gpus[i : i + size] for i in range(0, len(gpus), size)]


async def _supervise(options: argparse.Namespace, groups: Sequence[tuple[int, ...]]) -> None:
    logs = options.logs or Path(tempfile.mkdtemp(prefix="dcpo-actor-"))
    log.info("%d engine processes for %s; their logs are in %s", len(groups), options.learner, logs)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            for index, gpus in enumerate(groups):
                tasks.create_task(_keep_engine(options, gpus, logs / f"engine-{index}.log", stopping))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _keep_engine(
    options: argparse.Namespace, gpus: tuple[int, ...], log_file: Path, stopping: asyncio.Event
) -> None:
    """Run one engine process until the learner or a signal ends it; a crash starts it again."""
    quick_failures = 0
    loop = asyncio.get_running_loop()
    while not stopping.is_set():
        started, num_ready = loop.time(), _num_ready(log_file)
        process = await spawn(_engine_argv(options), log_file, _environment(gpus))
        log.info("engine process %d started", process.pid)
        code = await _wait(process, stopping)
        if code == 0 or stopping.is_set():
            return
        if code == ConfigError.exit_code:
            raise ConfigError(last_lines(log_file, 1).removeprefix("dcpo-actor: "))
        # A large model may take minutes to fail at its start, which is no progress either.
        is_quick = loop.time() - started < QUICK_SECONDS or _num_ready(log_file) == num_ready
        quick_failures = quick_failures + 1 if is_quick else 1
        if quick_failures > MAX_QUICK_FAILURES:
            raise EngineError(
                f"an engine process failed {quick_failures} times in a row; the end of {log_file}:\n"
                + last_lines(log_file, 15)
            )
        reason = last_lines(log_file, 1)
        log.warning("engine process %d ended with code %d and is started again: %s", process.pid, code, reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), RESTART_SECONDS)


def _num_ready(log_file: Path) -> int:
    """How often an engine of this log has become ready."""
    return log_file.read_bytes().count(READY) if log_file.exists() else 0


async def _wait(process: asyncio.subprocess.Process, stopping: asyncio.Event) -> int:
    """Wait for the end of an engine process; pass a stop on to it and let it drain."""
    ended, asked = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
        return await ended
    except asyncio.CancelledError:
        await stop(process, grace_seconds=5)
        raise
    finally:
        ended.cancel()
        asked.cancel()
        kill_group(process)


def _environment(gpus: tuple[int, ...]) -> dict[str, str]:
    if gpus:
        return cuda_environment(gpus)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _engine_argv(options: argparse.Namespace) -> list[str]:
    argv = module_argv("actor.service", "--learner", options.learner, *engine_words(options))
    argv += ["--join-seconds", str(options.join_seconds)]
    argv += ["--keys", str(options.keys)] if options.keys else []
    argv += ["--insecure"] if options.insecure else []
    return argv


if __name__ == "__main__":
    main()
