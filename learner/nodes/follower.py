"""The launcher of a machine beside node 0: takes part in a run, starts and ends its ranks as told. MAIN LOOP."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.durable import write_json, write_text
from dcpo_async.errors import ConfigError, PeerLostError, ProtocolError, TrainerError
from dcpo_async.processes import last_lines, module_argv
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeOrder, NodeState, NodeWelcome
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import Child, run_once
from dcpo_async.transport.interfaces import Dealer
from learner.nodes.place import NodePlace

log = logging.getLogger("learner")

BEAT_SECONDS, SILENCE_SECONDS = 1.0, 15.0
AWAY_SECONDS = 3600.0
"""Node 0 may be away for so long."""
REPORT_SECONDS = 30.0
START_SECONDS = 600.0


class Follower:
    """One machine's part in a run.

    Args:
        place: of this machine.
        channel: to node 0.
        config: of this machine: its folder and its copy of the model count, all else comes from node 0.
        devices: of its ranks.
        model: digest of the copy of the model.
        versions: of the libraries that ranks must have in common.
        keys: file of this machine's keys.
        scratch: folder of this launcher alone.
        stopping: set when this machine is to leave.
    """

    def __init__(
        self,
        place: NodePlace,
        channel: Dealer,
        config: RunConfig,
        devices: Devices,
        model: str,
        versions: tuple[str, ...],
        keys: Path,
        scratch: Path,
        stopping: asyncio.Event,
    ) -> None:
        self._place, self._channel, self._config, self._devices = place, channel, config, devices
        self._model, self._versions, self._keys, self._scratch = model, versions, keys, scratch
        self._stopping, self._session = stopping, secrets.token_hex(16)
        self._run_id, self._incarnation = "", 0
        self._state: NodeState = "idle"
        self._round, self._reason = 0, ""
        self._ranks: asyncio.Task[None] | None = None
        (scratch / "signs").mkdir()

    async def run(self) -> None:
        """Take part until node 0 says that the run is over or stopped, or this machine is to leave.

        Raises:
            ConfigError: node 0 refuses this machine.
            TrainerError: node 0 is away for AWAY_SECONDS.
        """
        try:
            while not self._stopping.is_set():
                await self._join()
                if await self._follow():
                    return
                await self._end_ranks()
        finally:
            await self._end_ranks()

    async def _join(self) -> None:
        """Say hello until node 0 lets this machine take part."""
        began = report_at = time.monotonic()
        hello = NodeHello(
            session=self._session,
            node=self._place.node,
            num_nodes=self._place.num_nodes,
            num_local=self._place.num_local,
            model=self._model,
            versions=self._versions,
        )
        while not self._stopping.is_set():
            answer = await self._exchange(hello, "", 0)
            if answer is not None and isinstance(answer.message, NodeWelcome):
                self._take_part(answer, answer.message)
                return
            # One that asks to join again answers a beat of before.
            if answer is not None and isinstance(answer.message, Reject) and answer.message.reason != "rejoin":
                raise self._refused(answer.message)
            now = time.monotonic()
            if now - began > AWAY_SECONDS:
                raise TrainerError(f"no answer from node 0 at {self._place.coordinator} within {AWAY_SECONDS:.0f} s")
            if now >= report_at:
                log.info("no answer from node 0 at %s for %.0f s", self._place.coordinator, now - began)
                report_at = now + REPORT_SECONDS

    def _refused(self, reject: Reject) -> ConfigError:
        return ConfigError(f"node 0 at {self._place.coordinator} refuses this machine: {reject.detail}")

    def _take_part(self, envelope: Envelope, welcome: NodeWelcome) -> None:
        given = RunConfig.model_validate_json(welcome.config)
        model = given.model.model_copy(update={"path": self._config.model.path})
        config = given.model_copy(update={"folder": self._config.folder, "model": model})
        folder = self._config.folder
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "node.json"
        said = json.loads(mark.read_text())["run_id"] if mark.exists() else envelope.run_id
        if said != envelope.run_id:
            raise ConfigError(f"{folder} belongs to run {said}, node 0 is on run {envelope.run_id}; choose another one")
        write_json(mark, {"run_id": envelope.run_id})
        write_text(self._scratch / "config.json", config.model_dump_json())
        self._run_id, self._incarnation = envelope.run_id, envelope.incarnation
        log.info("node %d of %d takes part in run %s", self._place.node, self._place.num_nodes, self._run_id)

    async def _follow(self) -> bool:
        """Beat and obey; returns whether the run is over, False where node 0 is away or does not know this machine."""
        heard_at = time.monotonic()
        while not self._stopping.is_set():
            began = time.monotonic()
            if began - heard_at > SILENCE_SECONDS:
                log.warning("node 0 says nothing for %.0f s: the ranks of this machine end", began - heard_at)
                return False
            answer = await self._exchange(self._beat(), self._run_id, self._incarnation)
            if answer is None:
                continue
            heard_at = time.monotonic()
            if isinstance(answer.message, Reject) and answer.message.reason == "rejoin":
                log.info("%s: the ranks of this machine end, and it joins again", answer.message.detail)
                return False
            if isinstance(answer.message, Reject):
                raise self._refused(answer.message)
            if isinstance(answer.message, NodeOrder):
                if answer.message.over:
                    log.info("%s", answer.message.over)
                    return True
                await self._obey(answer.message.round_number)
            await asyncio.sleep(max(0.0, began + BEAT_SECONDS - time.monotonic()))
        return True

    def _beat(self) -> NodeBeat:
        return NodeBeat(
            session=self._session,
            node=self._place.node,
            round_number=self._round,
            state=self._state,
            reason=self._reason,
        )

    async def _obey(self, round_number: int) -> None:
        if round_number == self._round:
            return
        await self._end_ranks()
        self._round, self._state, self._reason = round_number, "idle", ""
        if round_number:
            self._state = "running"
            self._ranks = asyncio.create_task(self._run_ranks(round_number))

    async def _run_ranks(self, round_number: int) -> None:
        state: NodeState = "failed"
        try:
            code, late = await run_once(self._child(round_number), self._stopping)
            state = "failed" if code else "ended"
            self._reason = late or (f"its ranks ended with code {code}: {self._why()}" if code else "")
        except Exception as error:
            self._reason = f"its ranks could not be started: {error}"
        self._state = state
        if self._reason:
            log.warning("%s", self._reason)

    async def _end_ranks(self) -> None:
        if self._ranks is not None:
            self._ranks.cancel()
            await asyncio.gather(self._ranks, return_exceptions=True)
            self._ranks = None
        self._round, self._state = 0, "idle"

    def _child(self, round_number: int) -> Child:
        folder = RunFolder(self._config.folder)
        words = ["--config", str(self._scratch / "config.json"), "--coordinator", self._place.coordinator]
        words += ["--run-id", self._run_id, "--incarnation", str(self._incarnation), "--keys", str(self._keys)]
        environments = self._place.environments(round_number)

        def members() -> list[Mapping[str, str]]:
            folder.trainer_error.unlink(missing_ok=True)
            return environments

        return Child(
            name=f"the ranks of node {self._place.node}",
            argv=lambda: module_argv("learner.trainer.rank", *words),
            log_file=folder.log(f"trainer-{self._place.node}"),
            environment=self._devices.environment(),
            members=members,
            signs=self._scratch / "signs",
            start_seconds=START_SECONDS,
            has_progressed=lambda seconds: False,
            failed=lambda code: self._why(),
            ask_to_end=lambda: None,
            max_failures=0,
            error=TrainerError,
            grace_seconds=5,
        )

    def _why(self) -> str:
        folder = RunFolder(self._config.folder)
        if folder.trainer_error.exists():
            return str(json.loads(folder.trainer_error.read_text())["message"])
        return last_lines(folder.log(f"trainer-{self._place.node}"), 1)

    async def _exchange(self, message: Message, run_id: str, incarnation: int) -> Envelope | None:
        """Send, and return the newest answer that is there; None where none came within a second.

        Answers that came too late for what they answer are passed over: read one by one, they would leave this machine
        behind for as long as it runs.
        """
        try:
            await self._channel.send(Envelope(message, {}, run_id, incarnation))
            newest = await self._channel.receive(BEAT_SECONDS)
            while newest is not None and (newer := await self._channel.receive(0.0)) is not None:
                newest = newer
            return newest
        except PeerLostError:
            return None
        except ProtocolError as error:
            raise ConfigError(f"node 0 at {self._place.coordinator}: {error}") from None
