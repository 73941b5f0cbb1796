"""The parts of a learner that run as processes beside the coordinator: how each is started, and when it has failed."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.errors import ConfigError, DcpoError, TrainerError, WeightsError
from dcpo_async.processes import module_argv
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import IMPORT_SECONDS, Child, endless, keep_running
from learner.checkpoints.folder import remove_leftovers
from learner.nodes.desk import NodeDesk
from learner.nodes.place import NodePlace
from learner.ranks import rank_environments

if TYPE_CHECKING:
    from learner.coordinator.coordinator import Coordinator

log = logging.getLogger("learner")

MAX_FAILURES = 3
PUBLISHER_PAUSE_SECONDS = 1.0
MONITOR_PAUSE_SECONDS = 2.0


class Parts:
    """Describes the processes of a learner, which `keep_running` starts.

    Args:
        config: of the run.
        devices: of the trainer.
        coordinator: what ranks and publisher have told it says whether they came further.
        weights_port: for the weight server.
        scratch: folder of this learner alone, for what must not be shared.
        ranks_address: where ranks and publisher reach the coordinator.
        security_words: what the weight server is told of keys.
        place: of this machine among several.
        nodes: the others.
    """

    def __init__(
        self,
        config: RunConfig,
        devices: Devices,
        coordinator: "Coordinator",
        weights_port: int,
        scratch: Path,
        ranks_address: str,
        security_words: Sequence[str],
        place: NodePlace | None = None,
        nodes: NodeDesk | None = None,
    ) -> None:
        self._place, self._nodes = place, nodes
        self._config, self._devices, self._coordinator = config, devices, coordinator
        self._weights_port, self._scratch, self._ranks_address = weights_port, scratch, ranks_address
        self._security_words, self._folder = security_words, RunFolder(config.folder)
        self._best_step, self._best_version = coordinator.ranks.step, 0
        # Shared memory without a name, whatever the size of /dev/shm: it goes when the last of the processes goes.
        descriptors = [os.memfd_create(f"dcpo-weights-{number}") for number in (1, 2)]
        self._buffers = [f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in descriptors]

    def _signs(self, part: str) -> Path:
        folder = self._scratch / "signs" / part
        folder.mkdir(parents=True)
        return folder

    # ---- weight server

    def weight_server(self) -> Child:
        """Hands out versions, and must answer always."""
        listen = self._config.network.listen.rpartition(":")[0]
        argv = module_argv("learner.weights.server", "--listen", f"{listen}:{self._weights_port}")
        argv += ["--store", str(self._folder.weights), "--run-id", self._coordinator.run_id]
        argv += self._security_words
        log_file = self._folder.log("weight_server")
        child = endless("the weight server", argv, log_file, WeightsError, program="dcpo-learner")
        return replace(child, signs=self._signs("weight_server"))

    # ---- publisher

    def publisher(self) -> Child:
        """Writes versions; a state that it holds when it ends is published by the next."""
        argv = module_argv("learner.publisher", *self._connection())
        log_file = self._folder.log("publisher")
        return replace(
            endless("the publisher", argv, log_file, WeightsError, program="dcpo-learner"),
            environment={"OMP_NUM_THREADS": "1"},
            signs=self._signs("publisher"),
            has_progressed=self._has_published,
            pause_seconds=PUBLISHER_PAUSE_SECONDS,
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

    def trainer(self) -> Child:
        """Its ranks, which stand and fall together."""
        return Child(
            name="the trainer",
            argv=self._trainer_argv,
            log_file=self._folder.log("trainer"),
            environment=self._devices.environment(),
            members=self._rank_environments,
            ready=self._ready,
            lost=self._nodes.lost if self._nodes else lambda: "",
            signs=self._signs("trainer"),
            start_seconds=IMPORT_SECONDS,
            has_progressed=self._has_trained,
            failed=self._trainer_failed,
            restarting=self._restart_trainer,
            ask_to_end=self._coordinator.ranks.stop,
            # What a rank's code means stands in the file that it leaves.
            final_codes=(),
            max_failures=MAX_FAILURES,
            error=TrainerError,
            grace_seconds=5,
        )

    async def _ready(self) -> None:
        """Until all machines are there, and the disk has room: the publisher may keep a buffer for so long."""
        while True:
            if self._nodes:
                await self._nodes.all_there()
            if not self._coordinator.hold.is_on():
                return
            # What ranks that died have left half written may be all that lacks, and no rank lives.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(remove_leftovers, self._folder.checkpoints)
            await self._coordinator.hold.until_over()

    def _rank_environments(self) -> Sequence[Mapping[str, str]]:
        if self._place and self._nodes:
            return self._place.environments(self._nodes.begin_round())
        return rank_environments(self._devices.num_workers, self._scratch)

    async def end_nodes(self, reason: str) -> None:
        """Tell other machines that the run is over, or stops."""
        if self._nodes:
            await self._nodes.end(reason)

    def _trainer_argv(self) -> list[str]:
        self._folder.trainer_error.unlink(missing_ok=True)
        return module_argv("learner.trainer.rank", *self._connection())

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
    """What the rank that failed first said, as it left it; raises what no restart can mend."""
    if not folder.trainer_error.exists():
        return f"no rank said why, see {folder.log('trainer')}"
    error = json.loads(folder.trainer_error.read_text())
    if error["exit_code"] == ConfigError.exit_code:
        raise ConfigError(error["message"])
    return str(error["message"])


async def keep_monitor(folder: RunFolder, words: Sequence[str]) -> None:
    """Run the process that answers over HTTP until this is cancelled; the training goes on without one that cannot.

    Args:
        words: its options; none is started without any.
    """
    if not words:
        return
    log_file = folder.log("monitor")
    argv = module_argv("learner.page", str(folder.path), "--learner-pid", str(os.getpid()), *words)
    child = endless("the monitor", argv, log_file, DcpoError, program="dcpo serve")
    # Its port may be free again a moment later.
    child = replace(child, grace_seconds=1, pause_seconds=MONITOR_PAUSE_SECONDS, final_codes=())
    try:
        await keep_running(child)
    except DcpoError as error:
        log.error("nothing answers over HTTP any more, training goes on: %s", error)
