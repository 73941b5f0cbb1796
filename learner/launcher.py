"""`dcpo-learner`: checks what it was given, then runs coordinator, trainer, publisher and weight server to the end.

Torch and transformers take seconds to import: what can be refused without them is refused before.
"""

import argparse
import asyncio
import contextlib
import errno
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async import __version__
from dcpo_async.config import ModelSettings, RunConfig
from dcpo_async.config.loading import load_with_origins, preset_names, refuse_unknown, split_words
from dcpo_async.config.showing import as_toml, given, help_lines
from dcpo_async.devices import Devices, checked_gpus, require_choice
from dcpo_async.durable import DISK_IS_FULL
from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.limits import limited_log
from dcpo_async.model_folder import model_folder
from dcpo_async.processes import be_private, private_folder
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import keep_running
from dcpo_async.tracking.requirements import check_sinks
from learner.life.events import write_event
from learner.nodes.place import NodePlace
from learner.ranks import require_sequence_parallel

if TYPE_CHECKING:
    from dcpo_async.prompts import LoadedProblems
    from dcpo_async.transport.interfaces import Router
    from learner.coordinator.coordinator import Coordinator
    from learner.life.desk import LifeDesk
    from learner.parts import Parts
    from learner.problems import TrainingProblems

log = logging.getLogger("learner")

WAYS_OUT = dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of `ulimit -n`")
WAYS_OUT |= dict.fromkeys(DISK_IS_FULL, "make room on the disk")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the run is finished or stopped, 2 on bad input, 1 on a failure."""
    limited_log()
    be_private()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config, devices, options = parsed(argv)
        if options.dry_run:
            print(as_toml(config, options.origins))
            return
        asyncio.run(_run(config, devices, options))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in WAYS_OUT:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"dcpo-learner: {where}{error.strerror}: {WAYS_OUT[error.errno]}, and start it again", file=sys.stderr)
        raise SystemExit(1) from None


def parsed(argv: Sequence[str] | None) -> tuple[RunConfig, Devices, argparse.Namespace]:
    """Settings, devices and the remaining options of a command line; raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="dcpo-learner",
        description="Train with DCPO on the groups that actors send in. A run folder that holds a run is resumed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="*",
        type=Path,
        help="TOML files, of which later ones override earlier ones, or names of those that ship "
        f"({', '.join(preset_names())}); none is the paper's headline run",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", help="GPUs of the trainer, such as 4-7")
    where.add_argument("--workers", type=int, default=None, help="trainer processes on the CPU")
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys that `dcpo keygen` made")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    parser.add_argument(
        "--dismiss", action="store_true", help="stopped, it ends its actors; they wait for it otherwise"
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines whose ranks train together, with as many each")
    parser.add_argument("--node-rank", type=int, default=0, help="which of them this is; 0 has the coordinator")
    parser.add_argument("--rendezvous", metavar="HOST:PORT", help="where node 0 is reached, on this port and the next")
    parser.add_argument("--check", action="store_true", help="say what the run will take, and do not start it")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every setting and where its value comes from, and do not start"
    )
    where.add_argument("--on", metavar="NxGB", help="with --check: GPUs of another machine, such as 4x80")
    parser.add_argument("--even-if-too-large", action="store_true", help="start a run that is estimated not to fit")
    parser.add_argument(
        "--http",
        nargs="?",
        const="127.0.0.1:9557",
        metavar="HOST:PORT",
        help="answer /metrics, /healthz, /readyz and /status.json there (default %(const)s)",
    )
    parser.add_argument(
        "--http-token", type=Path, metavar="FILE", help="with --http off loopback: requests must bear it"
    )
    parser.add_argument("--version", action="version", version=f"dcpo-async {__version__}")
    words, settings = split_words(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        parser.epilog = f"settings, with their defaults (`dcpo settings` says more):\n{help_lines()}"
    options, unknown = parser.parse_known_args(words)
    refuse_unknown(unknown)
    config, options.origins = load_with_origins(options.config, settings + unknown)
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least one process has to train")
    if options.on is not None:
        if not options.check:
            raise ConfigError(f"--on {options.on} needs --check: on this machine --gpus names those that train")
        num_gpus, _ = gpus_elsewhere(options.on)
        return config, Devices(tuple(range(num_gpus)), num_gpus), options
    if options.gpus is None and options.workers is None:
        require_choice()
    gpus = checked_gpus(options.gpus) if options.gpus else ()
    return config, Devices(gpus, len(gpus) or options.workers or 1), options


def gpus_elsewhere(text: str) -> tuple[int, int]:
    """Number of GPUs and GiB of each: `gpus_elsewhere("4x80")` is `(4, 80)`; raises ConfigError."""
    number, _, size = text.partition("x")
    if not (number.isdecimal() and size.isdecimal() and int(number) and int(size)):
        raise ConfigError(f"--on {text}: expected a number of GPUs and the GB of each, such as 4x80")
    return int(number), int(size)


def node_place(devices: Devices, options: argparse.Namespace) -> NodePlace | None:
    """Where this machine stands among several; None where it is alone. Raises ConfigError."""
    if options.nodes == 1:
        if options.node_rank or options.rendezvous:
            raise ConfigError("--node-rank and --rendezvous need --nodes: how many machines there are")
        return None
    return NodePlace.of(options.nodes, options.node_rank, devices.num_workers, options.rendezvous, options.keys)


async def _run(config: RunConfig, devices: Devices, options: argparse.Namespace) -> None:
    place = node_place(devices, options)
    if place is None or place.node == 0:
        require_sequence_parallel(config.training.sequence_parallel, ranks_of(devices, place)[0], "ranks")
    config = config.model_copy(update={"model": resolved_model(config.model, devices, with_weights=not options.check)})
    if place is not None and place.node > 0:
        if options.check:
            raise ConfigError("--check on node 0 alone, which has the settings: here it would take part in the run")
        from learner.nodes.joining import follow

        await follow(config, devices, place, options.keys)
        return
    # Imported here since --help, --dry-run and a refused setting need none of it.
    from dcpo_async.grading.rewards import resolved_rewards
    from dcpo_async.transport.key_files import load_server_keys
    from dcpo_async.transport.zmq_channel import RouterChannel, listening_to_actors
    from learner.evaluations.problems import apart_from, held_out_problems
    from learner.nodes.desk import NodeDesk
    from learner.nodes.router import RankRouter
    from learner.parts import Parts, keep_monitor
    from learner.problems import training_problems, with_names
    from learner.trackers import send_rest, tracked

    monitor_words = http_words(options)
    check_sinks(config.tracking)
    config = resolved_rewards(config.model_copy(update={"data": with_names(config.data)}))
    measured = held_out_problems(config)
    problems = training_problems(apart_from(config), None if options.check else config.folder)
    if options.check:
        origins = given(config, options.origins) or ["every setting has its default"]
        check(config, devices, place, problems, measured, options.on, origins)
        return
    keys = load_server_keys(options.keys) if options.keys else None
    limit = config.network.max_message_bytes
    actors = listening_to_actors(config.network.listen, limit, config.largest_group_bytes, keys, options.insecure)
    with contextlib.ExitStack() as closing:
        closing.callback(actors.close)
        scratch = closing.enter_context(private_folder("learner"))
        ranks_address = f"ipc://{scratch}/ranks"
        ranks: Router = RouterChannel(ranks_address, limit)
        closing.callback(ranks.close)
        elsewhere = RouterChannel(place.listening(), limit, curve=keys) if place else None
        if elsewhere is not None:
            closing.callback(elsewhere.close)
        # Imported here since they bring torch, which takes longer than all that has been checked by now.
        from learner.coordinator.coordinator import Coordinator
        from learner.life.desk import life_desk
        from learner.nodes.joining import tell_finished, versions
        from learner.run_setup import described, prepare, require_room, set_up, sinks_of
        from learner.sizing.automatic import decided
        from learner.sizing.machine import this_machine

        prepared = prepare(config, problems, measured)
        machine = None if options.even_if_too_large else this_machine(devices, config.folder)
        config, plan = decided(config, prepared.model, machine, *ranks_of(devices, place), on_gpus=bool(devices.gpus))
        if machine is not None:
            require_room(config, prepared.model, plan, machine)
        run = set_up(config, prepared)
        log.info("run %s in %s; actors reach it at %s", run.run_id, config.folder, config.network.listen)
        log.info("algorithm: %s", described(config))
        nodes = None
        if place and elsewhere:
            nodes = NodeDesk(place, config.model_dump_json(), str(run.ledger.meta("model")), versions())
            ranks = RankRouter(ranks, elsewhere, nodes, run.run_id, run.ledger.incarnation)
            closing.callback(ranks.close)
        if run.is_finished:
            log.info("the run was finished before; raise training.max_steps to go on")
            if nodes is None or await tell_finished(nodes, ranks):
                await send_rest(config, run.run_id, scratch)
        else:
            words, weights_port = security_words(options), actors.port + 1
            coordinator = Coordinator(
                config,
                run.run_id,
                run.intake,
                run.ledger,
                actors,
                ranks,
                weights_port=weights_port,
                num_gpus=len(devices.gpus),
                sinks=sinks_of(config, run.ledger),
                held_out=run.held_out,
            )
            parts = Parts(config, devices, coordinator, weights_port, scratch, ranks_address, words, place, nodes)
            monitor = asyncio.create_task(keep_monitor(RunFolder(config.folder), monitor_words))
            try:
                launcher = Launcher(config, coordinator, parts, dismiss=options.dismiss)
                async with tracked(config, run.run_id, scratch):
                    await launcher.run(life_desk(config, coordinator, run.intake, launcher.asked_to_stop))
            finally:
                monitor.cancel()
                await asyncio.gather(monitor, return_exceptions=True)
        run.ledger.close()


def security_words(options: argparse.Namespace) -> list[str]:
    """What the weight server is told of keys."""
    words = ["--keys", str(options.keys)] if options.keys else []
    return [*words, "--insecure"] if options.insecure else words


def http_words(options: argparse.Namespace) -> list[str]:
    """What the process that answers over HTTP is told, looked at before anything slow; none without --http."""
    from dcpo_async.monitoring.listen import checked_listen

    if options.http is None:
        if options.http_token is not None:
            raise ConfigError("--http-token needs --http: nothing listens otherwise")
        return []
    checked_listen(options.http, options.http_token)
    words = ["--http", options.http]
    return [*words, "--http-token", str(options.http_token)] if options.http_token else words


def check(
    config: RunConfig,
    devices: Devices,
    place: NodePlace | None,
    problems: "TrainingProblems",
    measured: "Mapping[str, LoadedProblems]",
    elsewhere: str | None,
    origins: Sequence[str],
) -> None:
    """Print what a run will take, and raise ConfigError where that is not there; nothing is written or loaded.

    Args:
        elsewhere: GPUs of another machine, whose memory and disk are not known here.
        origins: lines on where settings come from.
    """
    from learner.run_setup import prepare, report, require_room
    from learner.sizing.automatic import decided
    from learner.sizing.machine import other_machine, this_machine

    machine = this_machine(devices, config.folder) if elsewhere is None else other_machine(gpus_elsewhere(elsewhere)[1])
    prepared = prepare(config, problems, measured)
    config, plan = decided(config, prepared.model, machine, *ranks_of(devices, place), on_gpus=bool(devices.gpus))
    print("\n".join(origins))
    print(report(config, prepared, plan, machine, is_elsewhere=elsewhere is not None), flush=True)
    require_room(config, prepared.model, plan, machine)
    print("the run fits")


def ranks_of(devices: Devices, place: NodePlace | None) -> tuple[int, int]:
    """Ranks of all machines, and how many machines these are."""
    return (devices.num_workers, 1) if place is None else (place.num_ranks, place.num_nodes)


def resolved_model(model: ModelSettings, devices: Devices, *, with_weights: bool = True) -> ModelSettings:
    """The model as a local folder, with its type decided."""
    dtype = devices.dtype if model.dtype == "auto" else model.dtype
    folder = model_folder(model.path, "model.path", with_weights=with_weights)
    return model.model_copy(update={"path": str(folder), "dtype": dtype})


class Launcher:
    """Runs the parts of the learner to the end, or until it is stopped."""

    def __init__(self, config: RunConfig, coordinator: "Coordinator", parts: "Parts", *, dismiss: bool = False) -> None:
        self._stop_seconds, self._coordinator, self._parts = config.checkpoint.stop_seconds, coordinator, parts
        self._dismiss = dismiss
        self._stopping, self._hurrying = asyncio.Event(), asyncio.Event()

    async def run(self, life: "LifeDesk") -> None:
        """Run all parts until the run is finished, a signal or a command comes, or a part fails for good."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        weight_server, publisher, trainer = self._parts.weight_server(), self._parts.publisher(), self._parts.trainer()
        parts = [
            asyncio.create_task(self._coordinator.run(), name="coordinator"),
            asyncio.create_task(keep_running(weight_server), name="weight server"),
            asyncio.create_task(keep_running(publisher), name="publisher"),
            asyncio.create_task(keep_running(trainer, self._stopping), name="trainer"),
            asyncio.create_task(self._out_of_time(), name="stop"),
            asyncio.create_task(life.run(), name="requests"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
            await self._end(parts)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def asked_to_stop(self, dismiss: bool) -> int:
        """A command asks for the end; returns how many steps have no checkpoint yet."""
        self._dismiss = dismiss
        if not self._stopping.is_set():
            self._stop()
        return self._coordinator.ranks.unsaved

    def _stop(self) -> None:
        """A signal has come: the first lets the trainer write a checkpoint, the second does not wait for it."""
        ranks = self._coordinator.ranks
        if self._stopping.is_set() or ranks.unsaved == 0 or self._stop_seconds == 0:
            self._hurrying.set()
        else:
            log.info(
                "stopping: the trainer ends its batch and writes a checkpoint, for %g s at most; a second signal ends "
                "it at once",
                self._stop_seconds,
            )
        self._coordinator.hold.release()
        if not self._dismiss:
            self._coordinator.actors.pause("the learner stops")
        self._stopping.set()

    async def _out_of_time(self) -> None:
        """Until a trainer that was asked to end is not waited for any longer."""
        await self._stopping.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stop_seconds):
                await self._hurrying.wait()

    async def _last_evaluation(self, parts: Sequence["asyncio.Task[None]"]) -> None:
        """Until what was begun is measured, which has a bound of its own, or a signal comes, or a part fails."""
        over = self._coordinator.actors.evaluations.over
        if over.is_set():
            return
        log.info("the training has ended; the evaluation that has begun is finished, a signal ends it")
        waits = [asyncio.create_task(event.wait()) for event in (over, self._stopping)]
        running = [part for part in parts if not part.done()]
        await asyncio.wait([*waits, *running], return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        for part in running:
            if part.done():
                part.result()
        if not over.is_set():
            log.warning("the last evaluation is not finished: dcpo eval can measure the run's export")

    async def _end(self, parts: Sequence["asyncio.Task[None]"]) -> None:
        ranks = self._coordinator.ranks
        if not self._stopping.is_set():
            ranks.finish()
            await self._last_evaluation(parts)
        elif ranks.unsaved:
            log.warning("stopped without a checkpoint of the last %d steps, which are trained again", ranks.unsaved)
        is_finished = ranks.is_finished
        if not is_finished:
            write_event(self._coordinator.ledger, ranks.step, "stopped", unsaved=ranks.unsaved)
        log.info("the run is finished" if is_finished else "stopped; the same command goes on from here")
        log.info("%s", self._coordinator.status.advice())
        reason = "the run is finished" if is_finished else "the learner stops"
        await self._parts.end_nodes(reason)
        await self._coordinator.end(reason, dismiss=is_finished or self._dismiss)


if __name__ == "__main__":
    main()
