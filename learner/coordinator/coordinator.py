"""The network side of the learner: receive, answer, commit, send. MAIN LOOP."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.errors import LedgerError, PeerLostError, ProtocolError
from dcpo_async.limits import quoted
from dcpo_async.metrics.sink import Sink
from dcpo_async.metrics.timeline import SpanLog
from dcpo_async.protocol.messages import Reject
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.interfaces import Received, Router
from learner.coordinator.actor_desk import ActorDesk
from learner.coordinator.disk_hold import DiskHold
from learner.coordinator.intake import Intake
from learner.coordinator.mail import Mail, as_admitted, refusal_of
from learner.coordinator.regrading import Regrader
from learner.coordinator.status import Status
from learner.coordinator.trainer_desk import TrainerDesk
from learner.evaluations.problems import HeldOut
from learner.ledger.ledger import Ledger, num_changes

log = logging.getLogger(__name__)

POLL_SECONDS, STATUS_SECONDS = 0.5, 1.0


class Coordinator:
    """Serves actors and trainer ranks; whatever it answers is durable before it leaves.

    Args:
        config, run_id: of the run, and its name on the wire.
        intake, ledger: leases, groups and batches; where they are kept, by this process alone.
        actor_router, rank_router: the two sides that it listens to.
        weights_port: where the weight server listens, on the same host as the coordinator.
        num_gpus: of the trainer, 0 on a CPU.
        sinks, held_out: take the metrics of each step; what actors are to measure versions by.
        clock: monotonic seconds.

    Attributes:
        actors, ranks, hold: the desks of both sides; receives for them.
        has_ended: nothing is received any more.
    """

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        intake: Intake,
        ledger: Ledger,
        actor_router: Router,
        rank_router: Router,
        *,
        weights_port: int,
        num_gpus: int = 0,
        sinks: Sequence[Sink] = (),
        held_out: HeldOut | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id, self.ledger, self.has_ended = run_id, ledger, False
        self._mail, self._regrader = Mail(run_id, ledger.incarnation), Regrader(config, intake.counts)
        self.hold = DiskHold(config, rank_router, self._mail)
        self._spans = SpanLog(RunFolder(config.folder).timing)
        says = self._mail, self._regrader, weights_port, clock, self._spans, held_out or HeldOut()
        self.actors = ActorDesk(config, intake, actor_router, *says)
        self.ranks = TrainerDesk(config, intake, ledger, rank_router, self._mail, self.actors.announce, self._spans)
        self.status = Status(config, run_id, intake, ledger, self.actors, self.ranks, sinks, clock, num_gpus)
        self.ranks.on_step, self._counts = self.status.step_done, intake.counts

    async def run(self) -> None:
        """Serve until the run has ended; what is not committed then was not answered either, and comes again."""
        beside = asyncio.gather(self._regrader.run(), self.actors.evaluations.run(), return_exceptions=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in (self._serve(self.actors), self._serve(self.ranks), self._watch()):
                    tasks.create_task(self._guarded(part))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
            self.status.close()
            self._spans.close()

    async def end(self, reason: str, *, dismiss: bool = True) -> None:
        """Tell every actor that the run is over, or that it goes on later, and stop serving."""
        self.hold.release()
        (self.actors.dismiss if dismiss else self.actors.pause)(reason)
        await self._flush()
        self.status.write(is_over=True)
        self.has_ended = True

    async def _serve(self, desk: ActorDesk | TrainerDesk) -> None:
        while not self.has_ended:
            for received in await self.hold.receive(desk.router, 0 if self.actors.untold else POLL_SECONDS):
                self._dispatch(desk, received)
            self.actors.grant_leases()
            self.ranks.serve_shards()
            await self._flush()

    async def _watch(self) -> None:
        while not self.has_ended:
            if self.hold.is_settled():
                self.actors.drop_silent()
                await self._flush()
            self.status.write()
            self._spans.flush()
            await asyncio.sleep(STATUS_SECONDS)

    async def _flush(self) -> None:
        """Commit, then send: what a peer hears of is durable."""
        with self._spans.timed("coordinator", "commit"):
            self.ledger.commit()
        for router, peer, envelope in self._mail.collect():
            try:
                await router.send(peer, envelope)
            except PeerLostError as error:
                self.actors.lose(peer, str(error))
                self.ranks.lose(peer)

    def _dispatch(self, desk: ActorDesk | TrainerDesk, received: Received) -> None:
        peer, envelope, changes = received.peer, as_admitted(received), num_changes(self.ledger)
        try:
            refusal = refusal_of(envelope, self.run_id)
            if isinstance(envelope, ProtocolError):
                self._counts["messages_refused"] += getattr(envelope, "num_dropped", 1)
                desk.on_refused(peer, envelope)
            elif refusal is None:
                desk.on_envelope(peer, envelope)
        except Exception as error:
            # Nothing was changed, so that nothing but the message is at fault; half of a change must not be committed.
            if isinstance(error, LedgerError) or num_changes(self.ledger) != changes:
                raise
            self._counts["messages_refused"] += 1
            log.exception("a message of %s could not be handled", quoted(peer))
            refusal = Reject(reason="invalid", detail=f"{type(error).__name__}: {error}")
        if refusal is not None:
            self._mail.post(desk.router, peer, refusal)

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        """Run a part; when it fails, it may leave half of a change, which the other parts must not commit."""
        try:
            await part
        except Exception:
            self.ledger.abandon()
            raise
