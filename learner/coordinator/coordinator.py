"""The network side of the learner: sessions of actors, requests of trainer ranks; the main loop is `run`."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json
from dcpo_async.errors import PeerLostError, ProtocolError, TrainerError, VersionMismatchError
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.metrics.sink import Sink
from dcpo_async.metrics.tensorboard import TensorBoardWriter
from dcpo_async.protocol.conversion import lease_to_message
from dcpo_async.protocol.messages import (
    Array,
    Bye,
    Checkpointed,
    Envelope,
    GroupMessage,
    Heartbeat,
    Hello,
    LeaseFailed,
    Message,
    OldLogprobs,
    Published,
    Reject,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionMessage,
    VersionWant,
    Want,
    Welcome,
)
from dcpo_async.protocol.session import CoordinatorSession
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.interfaces import Received, Router
from learner.coordinator.intake import Intake
from learner.coordinator.regrading import Regrader
from learner.coordinator.shards import shard_message, step_metrics, step_samples
from learner.scheduling.batches import split_by_tokens
from learner.scheduling.leases import SlotState

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
STATUS_SECONDS = 1.0
LOGGED_METRICS = ("reward", "rur", "tcr", "lag_mean", "actors")
MAX_DISAGREEMENT_NATS = 1e-2
"""kl_behavior of tokens that the weights which sampled them train; rounding leaves far less, in bfloat16 too."""
LEASES_AT_ONCE = 64
"""Leases sent to one actor before anything else is done: far fewer than a channel queues for a peer."""


@dataclass(slots=True)
class Session:
    """An actor or evaluator that is connected.

    Attributes:
        liveness: whether it counts as alive.
        role: as it said in its hello.
        credit: leases it still has room for.
        tokens_generated: response tokens by its own count; None until its first heartbeat.
    """

    liveness: CoordinatorSession
    host: str = ""
    engine: str = ""
    role: str = "actor"
    credit: int = 0
    weights_version: int = 0
    tokens_generated: int | None = None
    groups_in_flight: int = 0
    groups_accepted: int = 0


@dataclass(slots=True)
class Training:
    """What the coordinator knows about the trainer.

    Attributes:
        step: optimizer steps that it has taken.
        waiting: ranks whose shard is not there yet, by peer.
        shards: samples of the step that ranks are asking for, already split.
    """

    step: int = 0
    is_finished: bool = False
    restarts: int = 0
    waiting: dict[bytes, ShardWant] = field(default_factory=dict)
    shards: tuple[int, list[list[TrainingSample]]] = (-1, [])
    batch_metrics: dict[int, dict[str, float]] = field(default_factory=dict)


class Coordinator:
    """Serves actors and trainer ranks; whatever it answers is durable before it leaves.

    Args:
        config: of the run.
        run_id: names the run on the wire.
        intake: leases, groups and batches.
        actors, trainer: the two sides that it listens to.
        weights_port: where the weight server listens, on the same host as the coordinator.
        dtype: of published weights.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        intake: Intake,
        actors: Router,
        trainer: Router,
        weights_port: int,
        dtype: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.run_id, self.intake = config, run_id, intake
        self.sessions: dict[bytes, Session] = {}
        self.training = Training()
        self.has_ended = False
        self._actors, self._trainer = actors, trainer
        self.weights_port, self._dtype, self._clock = weights_port, dtype, clock
        self._outbox: list[tuple[Router, bytes, Envelope]] = []
        self._sinks: list[Sink] = [
            MetricsWriter(config.folder),
            TensorBoardWriter(RunFolder(config.folder).tensorboard),
        ]
        self._rate = TokenRate()
        self._last_report: dict[str, Any] = {}
        self._warn_above_nats = MAX_DISAGREEMENT_NATS
        self._regrader = Regrader(config, intake.counts)
        intake.start_clock(clock())

    # ---- main loop

    async def run(self) -> None:
        """Serve until the run has ended; what is not committed then was not answered either, and comes again."""
        regrading = asyncio.create_task(self._regrader.run())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._guarded(self._serve(self._actors, self._on_actor)))
                tasks.create_task(self._guarded(self._serve(self._trainer, self._on_trainer)))
                tasks.create_task(self._guarded(self._watch()))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            regrading.cancel()
            await asyncio.gather(regrading, return_exceptions=True)
            for sink in self._sinks:
                sink.close()

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        """Run a part; when it fails, it may leave half of a change, which the other parts must not commit."""
        try:
            await part
        except Exception:
            self.intake.ledger.abandon()
            raise

    async def _serve(self, router: Router, answer: Callable[[bytes, Envelope], None]) -> None:
        while not self.has_ended:
            for received in await router.receive(POLL_SECONDS):
                self._dispatch(router, received, answer)
            self._grant_leases()
            self._serve_shards()
            await self._flush()

    async def _watch(self) -> None:
        while not self.has_ended:
            self._drop_silent_sessions()
            self._grant_leases()
            await self._flush()
            self.write_status()
            await asyncio.sleep(STATUS_SECONDS)

    async def end(self, reason: str) -> None:
        """Tell every actor that the run is over, and stop serving."""
        for peer in list(self.sessions):
            self._send(self._actors, peer, Reject(reason="draining", detail=reason))
        await self._flush()
        self.write_status()
        self.has_ended = True

    async def _flush(self) -> None:
        """Commit, then send: what a peer hears of is durable."""
        self.intake.ledger.commit()
        outbox, self._outbox = self._outbox, []
        for router, peer, envelope in outbox:
            try:
                await router.send(peer, envelope)
            except PeerLostError as error:
                self._lose(peer, str(error))

    def _send(self, router: Router, peer: bytes, message: Message, arrays: dict[str, Array] | None = None) -> None:
        envelope = Envelope(message, arrays or {}, self.run_id, self.intake.ledger.incarnation)
        self._outbox.append((router, peer, envelope))

    def _dispatch(self, router: Router, received: Received, answer: Callable[[bytes, Envelope], None]) -> None:
        envelope = received.envelope
        if isinstance(envelope, ProtocolError):
            self.intake.counts["messages_refused"] += 1
            log.warning("refused a message of %s: %s", _name(received.peer), envelope)
            is_version = isinstance(envelope, VersionMismatchError)
            refusal = Reject(reason="protocol_version" if is_version else "invalid", detail=str(envelope))
            self._send(router, received.peer, refusal)
        elif envelope.run_id not in ("", self.run_id):
            detail = (
                f"this learner is on run {self.run_id}, the peer on run {envelope.run_id}; "
                "start the actor again without a run, or point it to its own learner"
            )
            self._send(router, received.peer, Reject(reason="run_id", detail=detail))
        else:
            answer(received.peer, envelope)

    # ---- actors

    def _on_actor(self, peer: bytes, envelope: Envelope) -> None:
        message, now = envelope.message, self._clock()
        session = self.sessions.get(peer) or Session(CoordinatorSession(now, self.config.network.silence_seconds))
        refusal = session.liveness.on_message(message, now)
        if refusal is not None:
            self._send(self._actors, peer, refusal)
            return
        match message:
            case Hello():
                self._join(peer, session, message, now)
            case Want():
                session.credit = message.num_leases
            case GroupMessage():
                self._take_group(peer, session, message, envelope)
            case Heartbeat():
                self._take_heartbeat(peer, session, message, now)
            case LeaseFailed():
                self.intake.fail(peer, message.position, message.attempt, message.reason, message.is_prompts_fault)
            case Bye():
                self.sessions.pop(peer, None)
                released = self.intake.release_session(peer)
                log.info("actor %s left (%s); %d leases go out again", _name(peer), message.reason, released)
            case _:
                detail = f"an actor does not send {message.kind}"
                self._send(self._actors, peer, Reject(reason="invalid", detail=detail))

    def _join(self, peer: bytes, session: Session, hello: Hello, now: float) -> None:
        session.host, session.engine, session.role, session.credit = hello.host, hello.engine, hello.role, 0
        self.sessions[peer] = session
        self.intake.reclaim(peer, hello.held, now)
        log.info("%s %s joined from %s with %s", hello.role, _name(peer), hello.host, hello.engine)
        config = self.config
        welcome = Welcome(
            weights_port=self.weights_port,
            weights_version=self._newest.weights_version,
            group_size=config.sampling.group_size,
            temperature=config.sampling.temperature,
            max_response_tokens=config.sampling.max_response_tokens,
            max_prompt_tokens=config.data.max_prompt_tokens,
            seed=config.seed,
            dtype=self._dtype,  # type: ignore[arg-type]
            extraction=config.grading.extraction,
            format_penalty=config.grading.format_penalty,
            grading_timeout_seconds=config.grading.timeout_seconds,
            grading_workers=config.grading.workers,
            groups_in_flight=config.actor.groups_in_flight,
            kv_after_update=config.actor.kv_after_update,
            heartbeat_seconds=config.network.heartbeat_seconds,
            silence_seconds=config.network.silence_seconds,
            chunk_bytes=config.network.chunk_bytes,
        )
        self._send(self._actors, peer, welcome)

    def _take_group(self, peer: bytes, session: Session, message: GroupMessage, envelope: Envelope) -> None:
        ack = self.intake.accept(peer, envelope)
        if ack.outcome == "accepted":
            session.groups_accepted += 1
            self._regrader.sample(message, self.intake.answer_at(message.position))
        if ack.outcome == "invalid":
            log.warning("group %d of %s refused: %s", ack.position, _name(peer), ack.detail)
            self.intake.fail(peer, message.position, message.attempt, ack.detail, is_prompts_fault=True)
        self._send(self._actors, peer, ack)

    def _take_heartbeat(self, peer: bytes, session: Session, message: Heartbeat, now: float) -> None:
        """Note what the actor says of itself; the answer tells it that the learner is alive."""
        self.intake.table.heartbeat(peer, message.held, now)
        session.weights_version = message.weights_version
        session.groups_in_flight = message.groups_in_flight
        if session.tokens_generated is not None:
            self._rate.add(now, message.tokens_generated - session.tokens_generated)
        session.tokens_generated = message.tokens_generated
        self._send(self._actors, peer, self._newest)

    @property
    def _newest(self) -> VersionMessage:
        """The newest version that actors should know of; 0 while there is none."""
        if not self.intake.published:
            return VersionMessage(weights_version=0, step=0)
        newest = self.intake.published[-1]
        return VersionMessage(weights_version=newest.weights_version, step=newest.step)

    def _grant_leases(self) -> None:
        """Hand out what the gate allows, one lease at a time to each actor in turn."""
        now = self._clock()
        for _ in range(LEASES_AT_ONCE):
            for peer, session in self.sessions.items():
                if session.credit == 0:
                    continue
                lease = self.intake.grant(peer, now)
                if lease is None:
                    return
                session.credit -= 1
                message, arrays = lease_to_message(lease)
                self._send(self._actors, peer, message, arrays)

    def _drop_silent_sessions(self) -> None:
        now, limit = self._clock(), self.config.network.silence_seconds
        for peer, session in list(self.sessions.items()):
            if session.liveness.check_silence(now):
                self._lose(peer, f"silent for {now - session.liveness.heard_at:.0f} s")
        released = self.intake.release_unlisted(now)
        if released:
            log.warning("%d leases were listed by no heartbeat for %.0f s; they go out again", released, limit)

    def _lose(self, peer: bytes, reason: str) -> None:
        if self.sessions.pop(peer, None) is not None:
            released = self.intake.release_session(peer)
            log.warning("actor %s lost: %s; %d leases go out again", _name(peer), reason, released)
        self.training.waiting.pop(peer, None)

    # ---- trainer ranks

    def _on_trainer(self, peer: bytes, envelope: Envelope) -> None:
        message, training = envelope.message, self.training
        match message:
            case TrainerHello():
                if message.rank == 0:
                    training.step = message.step
                    self.intake.resume(message.step)
                log.info("trainer rank %d of %d is at step %d", message.rank, message.num_ranks, message.step)
            case ShardWant():
                training.waiting[peer] = message
            case VersionWant():
                version = self.intake.grant_version(message.step)
                incarnation = self.intake.ledger.incarnation
                grant = VersionGrant(weights_version=version, step=message.step, incarnation=incarnation)
                self._send(self._trainer, peer, grant)
            case Published():
                self._announce(message)
            case OldLogprobs():
                self._keep_old_logprobs(message, envelope.arrays["old_logprobs"])
            case StepDone():
                self._finish_step(message)
            case Checkpointed():
                self.intake.release_arrays(message.retained)
            case _:
                raise TrainerError(f"a trainer rank sent {message.kind}, which ranks do not send")

    def _announce(self, message: Published) -> None:
        if self.intake.publish(message.weights_version, message.step):
            for peer in self.sessions:
                self._send(self._actors, peer, self._newest)

    def _serve_shards(self) -> None:
        for peer, want in list(self.training.waiting.items()):
            max_steps = self.config.training.max_steps
            if max_steps is not None and want.step >= max_steps:
                self._send(self._trainer, peer, TrainerFinished(step=want.step))
            elif self.intake.commit_batch(want.step):
                samples = self._shards(want.step, want.num_ranks)[want.rank]
                self._send(self._trainer, peer, *shard_message(samples, want.step))
            else:
                continue
            del self.training.waiting[peer]

    def _shards(self, step: int, num_ranks: int) -> list[list[TrainingSample]]:
        cached_step, shards = self.training.shards
        # Proximal log-probs arrive between two requests for the same step, so such shards are read anew.
        if cached_step == step and len(shards) == num_ranks and self.config.algorithm.old == "behavior":
            return shards
        groups = self.intake.step_groups(step)
        samples = step_samples(groups, step, self.config, self.intake.version_steps)
        lengths = [len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples]
        shards = [[samples[i] for i in shard] for shard in split_by_tokens(lengths, num_ranks)]
        self.training.shards = (step, shards)
        self.training.batch_metrics[step] = step_metrics(groups, self.config.sampling.group_size)
        return shards

    def _keep_old_logprobs(self, message: OldLogprobs, values: Array) -> None:
        ends = np.cumsum(message.lengths)
        for position, index, length, end in zip(message.positions, message.indices, message.lengths, ends, strict=True):
            data = np.ascontiguousarray(values[end - length : end], dtype="<f4").tobytes()
            self.intake.ledger.write_old_logprobs(position, index, data)

    def _finish_step(self, message: StepDone) -> None:
        training = self.training
        if message.step <= training.step:
            return
        training.step = message.step
        trained = message.step - 1
        # Kept until a later step is done: a trainer that starts again may ask for the same shards.
        training.batch_metrics = {step: batch for step, batch in training.batch_metrics.items() if step >= trained}
        batch = training.batch_metrics.get(trained, {})
        report = {**message.metrics, **batch, **self.actor_metrics(), **self._count_metrics()}
        self._last_report = report
        for sink in self._sinks:
            sink.write(message.step, report)
        shown = ", ".join(f"{name} {report[name]:.4g}" for name in LOGGED_METRICS if name in report)
        log.info("step %d: %s", message.step, shown)
        if trained % self.config.algorithm.updates_per_batch == 0:
            self._warn_of_disagreement(message.step, report.get("lag_0/kl_behavior", 0.0))

    def _warn_of_disagreement(self, step: int, nats: float) -> None:
        """Compare engine and learner where no update lies between them; again only when it has become twice as bad."""
        if nats <= self._warn_above_nats:
            return
        self._warn_above_nats = 2 * nats
        log.warning(
            "step %d: tokens sampled by the very weights that train them have a kl_behavior of %.3g nats, expected is "
            "at most %g: engine and learner disagree; compare them with bench/logprob_parity.py and, where responses "
            "go on across updates, see whether actor.kv_after_update = recompute ends it",
            step,
            nats,
            MAX_DISAGREEMENT_NATS,
        )

    # ---- reports

    def actor_metrics(self) -> dict[str, float]:
        """Actors connected, and the response tokens they generate in a second."""
        return {
            "actors": float(sum(session.role == "actor" for session in self.sessions.values())),
            "actor_tokens_per_second": self._rate.per_second(self._clock()),
        }

    def _count_metrics(self) -> dict[str, float]:
        table, tokens = self.intake.table, self.intake.generated_tokens
        return {
            **{f"total_{name}": float(count) for name, count in self.intake.counts.items()},
            "generated_responses": float(self.intake.generated_responses),
            **({} if tokens is None else {"generated_tokens": float(tokens)}),
            "groups_waiting": float(table.count(lambda slot: slot.state is SlotState.ACCEPTED)),
            "groups_leased": float(table.count(lambda slot: slot.state is SlotState.LEASED)),
            "prompts_quarantined": float(len(self.intake.quarantined)),
        }

    def write_status(self) -> None:
        """Write `status.json`, which `dcpo status` and the demo's display read."""
        now = self._clock()
        write_json(
            RunFolder(self.config.folder).status,
            {
                "run_id": self.run_id,
                "incarnation": self.intake.ledger.incarnation,
                "step": self.training.step,
                "max_steps": self.config.training.max_steps,
                "weights_version": self._newest.weights_version,
                "groups_counted": self.intake.ledger.num_groups(),
                "is_finished": self.training.is_finished,
                "trainer_restarts": self.training.restarts,
                **self.actor_metrics(),
                **self._count_metrics(),
                "last_step": self._last_report,
                "actors_connected": [
                    {
                        "session": _name(peer),
                        "host": session.host,
                        "engine": session.engine,
                        "weights_version": session.weights_version,
                        "groups_in_flight": session.groups_in_flight,
                        "groups_accepted": session.groups_accepted,
                        "leases": len(self.intake.table.held_by(peer)),
                        "heard_seconds_ago": round(now - session.liveness.heard_at, 1),
                    }
                    for peer, session in self.sessions.items()
                    if session.role == "actor"
                ],
                "evaluators_connected": [
                    {"session": _name(peer), "host": session.host, "weights_version": session.weights_version}
                    for peer, session in self.sessions.items()
                    if session.role == "evaluator"
                ],
            },
        )


class TokenRate:
    """Tokens per second over the last `window_seconds`."""

    def __init__(self, window_seconds: float = 30.0) -> None:
        self._window = window_seconds
        self._events: list[tuple[float, int]] = []

    def add(self, now: float, num_tokens: int) -> None:
        """Note that tokens came in."""
        self._events = [(at, n) for at, n in self._events if now - at <= self._window] + [(now, num_tokens)]

    def per_second(self, now: float) -> float:
        """Tokens per second; 0 until two reports lie in the window."""
        events = [(at, n) for at, n in self._events if now - at <= self._window]
        if len(events) < 2:
            return 0.0
        return sum(n for _, n in events[1:]) / max(now - events[0][0], 1e-9)


def _name(peer: bytes) -> str:
    return peer.decode("utf-8", "replace")
