"""`dcpo-learner`: checks what it was given, then runs coordinator, trainer, publisher and weight server to the end.

Torch and transformers take seconds to import: what can be refused without them is refused before.
"""

import argparse
import asyncio
import errno
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async.config import ModelSettings, RunConfig
from dcpo_async.config.loading import joined_words, load_config
from dcpo_async.devices import Devices, checked_gpus, require_choice
from dcpo_async.errors import ConfigError, DcpoError, TrainerError, WeightsError
from dcpo_async.limits import GROUP_HEADER_BYTES, MESSAGES_PER_SECOND, largest_group_bytes, limited_log
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.model_folder import model_folder
from dcpo_async.processes import Child, keep_running, last_lines, module_argv
from dcpo_async.prompts import LoadedProblems
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.security import load_server_keys
from dcpo_async.transport.zmq_channel import RouterChannel
from learner.problems import training_problems

if TYPE_CHECKING:
    from learner.coordinator.coordinator import Coordinator

log = logging.getLogger("learner")

MAX_FAILURES = 3
PUBLISHER_PAUSE_SECONDS = 1.0
WEIGHT_SERVER_SECONDS = 60.0
"""A weight server that has run so long has worked."""
TRAINER_GRACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 when the run is finished or stopped, 2 on bad input, 1 on a failure."""
    limited_log()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(*parsed(argv)))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        print(f"dcpo-learner: {error.strerror}: raise the limit of `ulimit -n`, and start it again", file=sys.stderr)
        raise SystemExit(1) from None


def parsed(argv: Sequence[str] | None) -> tuple[RunConfig, Devices, argparse.Namespace]:
    """Settings, devices and the remaining options of a command line; raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="dcpo-learner",
        description="Train with DCPO on the groups that actors send in. A run folder that holds a run is resumed.",
        epilog="Any setting can be overridden by its dotted name, such as --training.learning_rate 1e-5.",
    )
    parser.add_argument("config", nargs="?", type=Path, help="TOML file; none is the paper's headline run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", help="GPUs of the trainer, such as 4-7")
    where.add_argument("--workers", type=int, default=None, help="trainer processes on the CPU")
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys that `dcpo keygen` made")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    parser.add_argument("--check", action="store_true", help="say what the run will take, and do not start it")
    where.add_argument("--on", metavar="NxGB", help="with --check: GPUs of another machine, such as 4x80")
    parser.add_argument("--even-if-too-large", action="store_true", help="start a run that is estimated not to fit")
    options, overrides = parser.parse_known_args(joined_words(sys.argv[1:] if argv is None else argv))
    config = load_config(options.config, overrides)
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


async def _run(config: RunConfig, devices: Devices, options: argparse.Namespace) -> None:
    config = config.model_copy(update={"model": resolved_model(config.model, devices, with_weights=not options.check)})
    problems = training_problems(config.data)
    if options.check:
        check(config, devices, problems, options.on)
        return
    keys = load_server_keys(options.keys) if options.keys else None
    limit = config.network.max_message_bytes
    actors = RouterChannel(
        config.network.listen,
        limit,
        curve=keys,
        insecure=options.insecure,
        max_received_bytes=largest_group_bytes(config.sampling.group_size, config.sampling.max_response_tokens),
        max_header_bytes=GROUP_HEADER_BYTES,
        messages_per_second=MESSAGES_PER_SECOND,
    )
    sockets = Path(tempfile.mkdtemp(prefix="dcpo-"))
    ranks_address = f"ipc://{sockets}/trainer"
    ranks = RouterChannel(ranks_address, limit)
    try:
        # Imported here since they bring torch, which takes longer than all that has been checked by now.
        from dcpo_async.metrics.tensorboard import TensorBoardWriter
        from learner.coordinator.coordinator import Coordinator
        from learner.run_setup import described, prepare, require_room, set_up
        from learner.sizing.machine import this_machine
        from learner.sizing.memory import Plan

        prepared = prepare(config, problems)
        if not options.even_if_too_large:
            plan = Plan.of(config, devices.num_workers, bool(devices.gpus))
            require_room(config, prepared.model, plan, this_machine(devices, config.folder))
        run = set_up(config, prepared)
        log.info("run %s in %s; actors reach it at %s", run.run_id, config.folder, config.network.listen)
        log.info("algorithm: %s", described(config))
        if run.is_finished:
            log.info("the run was finished before; raise training.max_steps to go on")
        else:
            sinks = (MetricsWriter(config.folder), TensorBoardWriter(RunFolder(config.folder).tensorboard))
            weights_port = actors.port + 1
            coordinator = Coordinator(
                config,
                run.run_id,
                run.intake,
                run.ledger,
                actors,
                ranks,
                weights_port=weights_port,
                num_gpus=len(devices.gpus),
                sinks=sinks,
            )
            await Launcher(config, devices, coordinator, weights_port, ranks_address, options).run()
        run.ledger.close()
    finally:
        actors.close()
        ranks.close()
        shutil.rmtree(sockets, ignore_errors=True)


def check(config: RunConfig, devices: Devices, problems: LoadedProblems, elsewhere: str | None) -> None:
    """Print what a run will take, and raise ConfigError where that is not there; nothing is written or loaded.

    Args:
        elsewhere: GPUs of another machine, whose memory and disk are not known here.
    """
    from learner.run_setup import prepare, report, require_room
    from learner.sizing.machine import other_machine, this_machine
    from learner.sizing.memory import Plan

    machine = this_machine(devices, config.folder) if elsewhere is None else other_machine(gpus_elsewhere(elsewhere)[1])
    prepared, plan = prepare(config, problems), Plan.of(config, devices.num_workers, bool(devices.gpus))
    print(report(config, prepared, plan, machine, is_elsewhere=elsewhere is not None), flush=True)
    require_room(config, prepared.model, plan, machine)
    print("the run fits")


def resolved_model(model: ModelSettings, devices: Devices, *, with_weights: bool = True) -> ModelSettings:
    """The model as a local folder, with its type decided."""
    dtype = devices.dtype if model.dtype == "auto" else model.dtype
    folder = model_folder(model.path, "model.path", with_weights=with_weights)
    return model.model_copy(update={"path": str(folder), "dtype": dtype})


class Launcher:
    """Supervises the parts of the learner: a part that dies is started again, with a bound."""

    def __init__(
        self,
        config: RunConfig,
        devices: Devices,
        coordinator: "Coordinator",
        weights_port: int,
        ranks_address: str,
        options: argparse.Namespace,
    ) -> None:
        self._config, self._devices, self._coordinator = config, devices, coordinator
        self._weights_port, self._ranks_address, self._options = weights_port, ranks_address, options
        self._folder = RunFolder(config.folder)
        self._best_step = self._best_version = 0
        # Shared memory without a name, whatever the size of /dev/shm: it goes when the last of the processes goes.
        descriptors = [os.memfd_create(f"dcpo-weights-{number}") for number in (1, 2)]
        self._buffers = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in descriptors]
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run all parts until the run is finished, a signal comes, or a part fails for good."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        parts = [
            asyncio.create_task(self._coordinator.run(), name="coordinator"),
            asyncio.create_task(keep_running(self._weight_server()), name="weight server"),
            asyncio.create_task(keep_running(self._publisher()), name="publisher"),
            asyncio.create_task(self._keep_trainer(), name="trainer"),
            asyncio.create_task(self._stopping.wait(), name="signal"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
            is_finished = self._coordinator.ranks.is_finished
            log.info("the run is finished" if is_finished else "stopped; the same command goes on from here")
            log.info("%s", self._coordinator.status.advice())
            await self._coordinator.end("the run is finished" if is_finished else "the learner stops")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    # ---- weight server

    def _weight_server(self) -> Child:
        listen, options = self._config.network.listen.rpartition(":")[0], self._options
        argv = module_argv("learner.weights.server", "--listen", f"{listen}:{self._weights_port}")
        argv += ["--store", str(self._folder.weights), "--run-id", self._coordinator.run_id]
        argv += ["--keys", str(options.keys)] if options.keys else []
        argv += ["--insecure"] if options.insecure else []
        log_file = self._folder.log("weight_server")
        return Child(
            name="the weight server",
            argv=lambda: argv,
            log_file=log_file,
            has_progressed=lambda seconds: seconds >= WEIGHT_SERVER_SECONDS,
            failed=lambda code: last_lines(log_file, 1).removeprefix("dcpo-learner: "),
            max_failures=MAX_FAILURES,
            error=WeightsError,
            grace_seconds=5,
            is_endless=True,
        )

    # ---- publisher

    def _publisher(self) -> Child:
        log_file = self._folder.log("publisher")
        return Child(
            name="the publisher",
            argv=lambda: module_argv("learner.publisher", *self._connection()),
            log_file=log_file,
            environment={"OMP_NUM_THREADS": "1"},
            has_progressed=self._has_published,
            pause_seconds=PUBLISHER_PAUSE_SECONDS,
            failed=lambda code: last_lines(log_file, 1).removeprefix("dcpo-learner: "),
            max_failures=MAX_FAILURES,
            error=WeightsError,
            grace_seconds=5,
            is_endless=True,
        )

    def _connection(self) -> list[str]:
        """The words that join trainer and publisher to the coordinator, and to each other."""
        coordinator = self._coordinator
        words = ["--config", str(self._folder.config), "--coordinator", self._ranks_address]
        words += ["--run-id", coordinator.run_id, "--incarnation", str(coordinator.ledger.incarnation)]
        return [*words, "--buffers", *self._buffers]

    def _has_published(self, _: float) -> bool:
        """Whether there are more versions than at the end before."""
        number, before = self._coordinator.ranks.num_published, self._best_version
        self._best_version = number
        return number > before

    # ---- trainer

    async def _keep_trainer(self) -> None:
        await keep_running(
            Child(
                name="the trainer",
                argv=self._trainer_argv,
                log_file=self._folder.log("trainer"),
                environment=self._devices.environment(),
                has_progressed=self._has_trained,
                failed=self._trainer_failed,
                restarting=self._restart_trainer,
                # torchrun has codes of its own; what its ranks mean stands in the file that they leave.
                final_codes=(),
                max_failures=MAX_FAILURES,
                error=TrainerError,
                grace_seconds=TRAINER_GRACE_SECONDS,
            )
        )
        self._coordinator.ranks.finish()

    def _trainer_argv(self) -> list[str]:
        self._folder.trainer_error.unlink(missing_ok=True)
        argv = module_argv("torch.distributed.run", "--standalone", "--max-restarts", "0")
        argv += ["--nproc-per-node", str(self._devices.num_workers), "-m", "learner.trainer.rank"]
        return [*argv, *self._connection()]

    def _has_trained(self, _: float) -> bool:
        """Whether the trainer has come further than any start before."""
        step, before = self._coordinator.ranks.step, self._best_step
        self._best_step = max(step, before)
        return step > before

    def _trainer_failed(self, code: int) -> str:
        return f"after step {self._coordinator.ranks.step}: {trainer_error(self._folder)}"

    def _restart_trainer(self) -> None:
        self._coordinator.ranks.restart()
        log.info("the trainer goes on from its newest checkpoint; actors keep generating meanwhile")


def trainer_error(folder: RunFolder) -> str:
    """What the rank that failed first said, since torchrun keeps it to itself; raises what no restart can mend."""
    if not folder.trainer_error.exists():
        return f"no rank said why, see {folder.log('trainer')}"
    error = json.loads(folder.trainer_error.read_text())
    if error["exit_code"] == ConfigError.exit_code:
        raise ConfigError(error["message"])
    return str(error["message"])


if __name__ == "__main__":
    main()
