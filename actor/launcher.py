"""`dcpo-actor`: one engine process for each GPU group, started again when it dies."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from actor.engine.choice import add_engine_arguments, engine_words
from actor.weights_options import add_relay_arguments, add_weights_arguments, checked_relay, weights_words
from dcpo_async import __version__
from dcpo_async.devices import checked_gpus, cuda_environment, require_choice
from dcpo_async.errors import ConfigError, DcpoError, EngineError, OutdatedError, UnsoundError, WeightsError
from dcpo_async.limits import plain_log
from dcpo_async.monitoring.listen import checked_listen
from dcpo_async.processes import MAX_SOCKET_BYTES, be_private, last_lines, module_argv, private_folder
from dcpo_async.supervision import IMPORT_SECONDS, Child, endless, keep_running
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.security import check_address

log = logging.getLogger("actor")

MAX_QUICK_FAILURES = 5
QUICK_SECONDS = 120.0
UNSOUND_SECONDS = 3600.0
"""An engine that was refused for what it made has worked only if it ran so long: a sick GPU may show late."""
RESTART_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the learner ends or SIGTERM drained the actor, 2 on bad input, 1 on a failure."""
    plain_log()
    be_private()
    options = _parser().parse_args(argv)
    try:
        groups = _gpu_groups(options)
        # The engine processes look at them too, but only after seconds of imports.
        check_address(options.learner, has_keys=options.keys is not None, insecure=options.insecure)
        if options.keys is not None:
            load_peer_keys(options.keys)
        relay = checked_relay(options)
        listen = checked_actor_http(options)
        with private_folder("actor") as scratch:
            logs = options.logs or scratch
            with answering(listen, logs, len(groups)) as starts:
                asyncio.run(_supervise(options, groups, logs, scratch, *relay, starts))
    except DcpoError as error:
        print(f"dcpo-actor: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcpo-actor",
        description="Generate and grade rollouts for a learner; model and settings come from it.",
    )
    parser.add_argument("--version", action="version", version=f"dcpo-async {__version__}")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", help="GPUs of this machine, such as 0-3")
    where.add_argument("--workers", type=int, help="engine processes on the CPU (default 1)")
    parser.add_argument("--learner", default="tcp://127.0.0.1:5557", help="address of the learner's coordinator")
    add_engine_arguments(parser)
    add_weights_arguments(parser)
    add_relay_arguments(parser)
    parser.add_argument(
        "--join-seconds", type=float, default=300.0, help="give up when no learner answers (default 300)"
    )
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs (default: a temporary one)")
    parser.add_argument("--keys", type=Path, help="file of this peer's CURVE keys, that `dcpo keygen` made")
    parser.add_argument("--insecure", action="store_true", help="reach a learner off loopback without keys")
    parser.add_argument(
        "--http",
        nargs="?",
        const="127.0.0.1:9558",
        metavar="HOST:PORT",
        help="answer /metrics, /healthz and /readyz for this machine's engines there (default %(const)s)",
    )
    parser.add_argument(
        "--vllm-metrics", action="store_true", help="with --http: pass on the metrics that vLLM itself keeps"
    )
    parser.add_argument(
        "--http-token", type=Path, metavar="FILE", help="with --http off loopback: requests must bear it"
    )
    return parser


def checked_actor_http(options: argparse.Namespace) -> tuple[str, int, str | None] | None:
    """Where the launcher answers over HTTP, and by which token; None where it was not asked to. Raises ConfigError."""
    if options.http is None:
        if options.http_token is not None or options.vllm_metrics:
            raise ConfigError("--http-token and --vllm-metrics need --http: nothing listens otherwise")
        return None
    return checked_listen(options.http, options.http_token)


@contextlib.contextmanager
def answering(listen: tuple[str, int, str | None] | None, logs: Path, number: int) -> Iterator[list[int]]:
    """Answer for the engines over HTTP in a thread, where asked to; yields their numbers of starts, to be counted up.

    Raises ConfigError where it cannot listen.
    """
    starts = [0] * number
    if listen is None:
        yield starts
        return
    # Imported here since an actor that answers nobody needs no web server.
    from dcpo_async.monitoring.engines import WatchedEngines, vllm_metrics_path
    from dcpo_async.monitoring.server import MonitorServer

    reports = [logs / f"engine-{index}.report" for index in range(number)]
    for report in reports:
        # Of an earlier run, where the folder is the same.
        for path in (report, vllm_metrics_path(report)):
            path.unlink(missing_ok=True)
    server = MonitorServer({"engines": WatchedEngines(reports, lambda: starts)}, *listen)
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="http")
    thread.start()
    log.info("http://%s:%d/metrics /healthz /readyz /status.json", listen[0], server.server_address[1])
    try:
        yield starts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _gpu_groups(options: argparse.Namespace) -> list[tuple[int, ...]]:
    """The GPUs of each engine process; empty tuples on the CPU."""
    size, workers = options.tensor_parallel, 1 if options.workers is None else options.workers
    if size < 1 or workers < 1:
        raise ConfigError("--tensor-parallel and --workers must be at least 1")
    if options.gpus is None:
        if size > 1:
            raise ConfigError(f"--tensor-parallel {size} needs --gpus")
        if options.workers is None:
            require_choice()
        return [()] * workers
    gpus = checked_gpus(options.gpus)
    options.device = "gpu"
    if len(gpus) % size:
        raise ConfigError(f"--gpus {options.gpus}: {len(gpus)} GPUs do not divide into engines of {size}")
    return [gpus[i : i + size] for i in range(0, len(gpus), size)]


async def _supervise(
    options: argparse.Namespace,
    groups: Sequence[tuple[int, ...]],
    logs: Path,
    scratch: Path,
    relay_listen: str,
    relay: str,
    starts: list[int],
) -> None:
    log.info("%d engine processes for %s; their logs are in %s", len(groups), options.learner, logs)
    stopping, relaying = asyncio.Event(), list[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    offer = logs / "relay.offer"
    # Of an earlier run, where the folder is the same.
    offer.unlink(missing_ok=True)
    words = ["--relay", relay, "--offer", str(offer)] if relay else []
    given_up = list[EngineError]()
    try:
        async with asyncio.TaskGroup() as tasks:
            if relay:
                log.info("a relay hands on weights at %s", relay)
                child = _relay(options, relay_listen, offer, logs / "relay.log", scratch)
                relaying.append(tasks.create_task(_keep_relay(child)))
            async with asyncio.TaskGroup() as engines:
                for index, gpus in enumerate(groups):
                    child = _engine(options, index, gpus, words, logs / f"engine-{index}.log", scratch, starts)
                    engines.create_task(_keep_engine(child, stopping, given_up))
            for task in relaying:
                # Not asked to end: one that was stopped would not hear it.
                task.cancel()
    except ExceptionGroup as failures:
        raise _first_of(failures) from None
    if given_up:
        raise given_up[0]


def _first_of(failures: ExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


async def _keep_engine(engine: Child, stopping: asyncio.Event, given_up: list[EngineError]) -> None:
    """Run an engine process to its end; one that fails again and again, as on a sick GPU, does not end the others."""
    try:
        await keep_running(engine, stopping)
    except EngineError as error:
        given_up.append(error)
        log.error("%s; it is given up, the other engines of this machine go on", engine.name)


async def _keep_relay(relay: Child) -> None:
    """Run a relay until this is cancelled; the engines go on without one that cannot."""
    try:
        await keep_running(relay)
    except DcpoError as error:
        log.error("no relay runs here any more; other machines turn to the weight server: %s", error)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _relay(options: argparse.Namespace, listen: str, offer: Path, log_file: Path, scratch: Path) -> Child:
    """The process that hands on this machine's weights."""
    argv = module_argv("actor.weights.relay", "--listen", listen, "--offer", str(offer))
    argv += ["--mbps", str(options.relay_mbps)] if options.relay_mbps else []
    child = endless(
        "relay",
        [*argv, *_security_words(options)],
        log_file,
        WeightsError,
        program="dcpo-actor",
        worked_seconds=QUICK_SECONDS,
        max_failures=MAX_QUICK_FAILURES,
    )
    # Its port may be free again a moment later.
    return replace(
        child,
        signs=_made(scratch / "signs" / "relay"),
        environment={"OMP_NUM_THREADS": "1"},
        grace_seconds=1,
        pause_seconds=RESTART_SECONDS,
        final_codes=(),
    )


def _engine(
    options: argparse.Namespace,
    index: int,
    gpus: tuple[int, ...],
    relay_words: Sequence[str],
    log_file: Path,
    scratch: Path,
    starts: list[int],
) -> Child:
    """One engine process, which runs until the learner or a signal ends it."""
    ready, codes = log_file.with_suffix(".ready"), list[int]()

    def argv() -> list[str]:
        ready.unlink(missing_ok=True)
        starts[index] += 1
        return [*_engine_argv(options, ready), *relay_words]

    def failed(code: int) -> str:
        codes.append(code)
        return last_lines(log_file, 1).removeprefix("dcpo-actor: ")

    def has_progressed(seconds: float) -> bool:
        # A large model may take minutes to fail at its start, which is no progress either.
        needed = UNSOUND_SECONDS if codes.pop() == UnsoundError.exit_code else QUICK_SECONDS
        return seconds >= needed and ready.exists()

    return Child(
        name=f"engine process {index}",
        argv=argv,
        log_file=log_file,
        signs=_made(scratch / "signs" / f"engine-{index}"),
        start_seconds=IMPORT_SECONDS,
        environment={**_environment(gpus), **_socket_environment(scratch)},
        has_progressed=has_progressed,
        failed=failed,
        max_failures=MAX_QUICK_FAILURES,
        error=EngineError,
        grace_seconds=5,
        pause_seconds=RESTART_SECONDS,
        renewing_codes=(OutdatedError.exit_code,),
    )


def _environment(gpus: tuple[int, ...]) -> dict[str, str]:
    if gpus:
        return cuda_environment(gpus)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _socket_environment(scratch: Path) -> dict[str, str]:
    """Have vLLM put its sockets into a folder that is removed: each engine leaves three, however it ends.

    Where the folder's path is so long that a socket in it could have none, they go to where vLLM puts them.
    """
    if len(os.fsencode(scratch)) > MAX_SOCKET_BYTES - len(f"/{uuid4()}"):
        log.warning("%s: too long a path for sockets, vLLM's stay behind in TMPDIR; set a shorter TMPDIR", scratch)
        return {}
    return {"VLLM_RPC_BASE_PATH": str(scratch)}


def _engine_argv(options: argparse.Namespace, ready: Path) -> list[str]:
    argv = module_argv("actor.engine_process", "--learner", options.learner, *engine_words(options))
    argv += ["--join-seconds", str(options.join_seconds), "--ready-file", str(ready)]
    argv += ["--vllm-metrics"] if options.vllm_metrics else []
    return [*argv, *weights_words(options), *_security_words(options)]


def _security_words(options: argparse.Namespace) -> list[str]:
    words = ["--keys", str(options.keys)] if options.keys else []
    return [*words, "--insecure"] if options.insecure else words


if __name__ == "__main__":
    main()
