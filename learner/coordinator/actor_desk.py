"""The coordinator's side of its talk with actors and evaluators: sessions, leases out, groups in."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dcpo_async.config import RunConfig
from dcpo_async.errors import MalformedError, ProtocolError
from dcpo_async.limits import OPEN_SHARE, quoted
from dcpo_async.metrics.timeline import SpanLog
from dcpo_async.protocol.conversion import lease_to_message, welcome_of
from dcpo_async.protocol.messages import (
    Ack,
    Array,
    Bye,
    Envelope,
    GroupMessage,
    Heartbeat,
    Hello,
    LeaseFailed,
    Message,
    Reject,
    VersionMessage,
    Want,
)
from dcpo_async.transport.interfaces import Router
from learner.coordinator.intake import Intake
from learner.coordinator.mail import Mail
from learner.coordinator.regrading import Regrader
from learner.coordinator.token_rate import TokenRate
from learner.scheduling.relay_tree import RelayTree
from learner.scheduling.sessions import Session, SessionTable

log = logging.getLogger(__name__)

MAX_SESSIONS = 1 << 14
LEASES_AT_ONCE = 64
"""Rounds of leases, one to each hungry actor, before anything else is done: far fewer than a channel queues."""


@dataclass(slots=True)
class ConnectedActor:
    """An actor or evaluator that has said hello, and is neither silent nor gone.

    Attributes:
        heard_at: when its last message came, in monotonic seconds.
        role, gpus: as it said in its hello.
        credit: leases it still has room for.
        groups_in_flight, responses_in_flight, response_capacity, preemptions: as in its last heartbeat.
        tokens_generated: response tokens by its own count; None until its first heartbeat.
        canary_difference: largest difference from the canary of `weights_version` in its engine, in nats.
    """

    heard_at: float
    host: str
    engine: str
    role: str
    gpus: int = 0
    credit: int = 0
    weights_version: int = 0
    tokens_generated: int | None = None
    groups_in_flight: int = 0
    responses_in_flight: int = 0
    response_capacity: int = 0
    preemptions: int = 0
    groups_accepted: int = 0
    canary_difference: float | None = None


class ActorDesk:
    """Answers actors; whoever is in `connected` has a session, all others must say hello first.

    Args:
        config: of the run.
        intake: leases and groups.
        router: that actors reach.
        mail: takes what is said.
        regrader: grades a sampled share again.
        weights_port: where the weight server listens, on the same host as the coordinator.
        clock: monotonic seconds.
        spans: takes what actors say of how long things took.

    Attributes:
        connected: by the session's name, in the order of joining.
    """

    def __init__(
        self,
        config: RunConfig,
        intake: Intake,
        router: Router,
        mail: Mail,
        regrader: Regrader,
        weights_port: int,
        clock: Callable[[], float],
        spans: SpanLog,
    ) -> None:
        self._config, self._intake, self.router, self._mail = config, intake, router, mail
        self._regrader, self._weights_port, self._clock = regrader, weights_port, clock
        self.connected: dict[bytes, ConnectedActor] = {}
        self._rate, self._relays = TokenRate(), RelayTree()
        self._spans, self._leased_at = spans, dict[int, float]()
        self._sessions = SessionTable(MAX_SESSIONS)
        self._max_held = (OPEN_SHARE + 1) * config.actor.groups_in_flight
        self._canary_refusals: dict[str, int] = {}
        self._num_canary_refusals = 0
        intake.start_clock(clock())

    def on_envelope(self, peer: bytes, envelope: Envelope) -> None:
        """Take a message and post its answer; one of a session that is not known here is answered by `rejoin`."""
        message, now = envelope.message, self._clock()
        if isinstance(message, Hello):
            self._join(peer, message, now)
            return
        session = self._sessions.of(peer)
        if session is None or envelope.incarnation != self._mail.incarnation:
            refusal = Reject(reason="rejoin", detail="the session is unknown here: say hello first")
            self._mail.post(self.router, peer, refusal)
        elif isinstance(message, Bye):
            self._leave(session, message)
        else:
            actor = self.connected[session.name]
            actor.heard_at = now
            self._on_message(session, actor, envelope, now)

    def on_refused(self, peer: bytes, error: ProtocolError) -> None:
        """A message could not be read: one line, and where it was a group of this session, its acknowledgement."""
        session = self._sessions.of(peer)
        log.warning("refused a message of %s: %s", quoted(session.name if session else peer), quoted(error))
        if session is not None and isinstance(error, MalformedError) and error.lease is not None:
            position, attempt = error.lease
            self._intake.fail(session.name, position, attempt, str(error), is_prompts_fault=True)
            ack = Ack(position=position, attempt=attempt, outcome="invalid", detail=str(error))
            self._post(session.name, ack)

    def _on_message(self, session: Session, actor: ConnectedActor, envelope: Envelope, now: float) -> None:
        name = session.name
        match envelope.message:
            case Want() as want:
                actor.credit = min(want.num_leases, max(0, self._max_held - self._intake.table.num_held(name)))
            case GroupMessage() as group:
                self._take_group(name, actor, group, envelope)
            case Heartbeat() as heartbeat:
                self._take_heartbeat(session, actor, heartbeat, now)
            case LeaseFailed() as failed:
                self._intake.fail(name, failed.position, failed.attempt, failed.reason, failed.is_prompts_fault)
            case other:
                self._post(name, Reject(reason="invalid", detail=f"an actor does not send {other.kind}"))

    def grant_leases(self) -> None:
        """Hand out what the gate allows, one lease at a time to each actor in turn."""
        now = self._clock()
        for _ in range(LEASES_AT_ONCE):
            if not any(actor.credit for actor in self.connected.values()):
                return
            for peer, actor in self.connected.items():
                if actor.credit == 0:
                    continue
                lease = self._intake.grant(peer, now)
                if lease is None:
                    return
                actor.credit -= 1
                self._leased_at[lease.position] = now
                self._post(peer, *lease_to_message(lease))

    def announce(self) -> None:
        """Tell everybody of the newest version."""
        for peer in self.connected:
            self._post(peer, self._newest_for(peer))

    def dismiss(self, reason: str) -> None:
        """Tell everybody that no more groups are taken."""
        for peer in self.connected:
            self._post(peer, Reject(reason="draining", detail=reason))

    def drop_silent(self) -> None:
        """Lose the sessions that have been silent for too long, and leases that no heartbeat lists any more."""
        now, limit = self._clock(), self._config.network.silence_seconds
        for peer, actor in list(self.connected.items()):
            if now - actor.heard_at >= limit:
                self._lose(peer, f"silent for {now - actor.heard_at:.0f} s")
        released = self._intake.release_unlisted(now)
        if released:
            log.warning("%d leases were listed by no heartbeat for %.0f s; they go out again", released, limit)
        self._leased_at = {at: since for at, since in self._leased_at.items() if self._intake.table.get(at)}

    def lose(self, peer: bytes, reason: str) -> None:
        """A connection cannot be reached; what its session held goes out again."""
        session = self._sessions.of(peer)
        if session is not None:
            self._lose(session.name, reason)

    def _lose(self, name: bytes, reason: str) -> None:
        released = self._end(name)
        log.warning("actor %s lost: %s; %d leases go out again", name_of(name), reason, released)

    def _end(self, name: bytes) -> int:
        """Forget a session; returns how many leases it held."""
        del self.connected[name]
        self._sessions.end(name)
        self._relays.leave(name)
        return self._intake.release_session(name)

    def metrics(self) -> dict[str, float]:
        """Actors connected, how much they generate and how full they are, and how well they hold their weights."""
        actors = [actor for actor in self.connected.values() if actor.role == "actor"]
        found = {
            "actors": float(len(actors)),
            "actor_tokens_per_second": self._rate.per_second(self._clock()),
            "responses_in_flight": float(sum(actor.responses_in_flight for actor in actors)),
            "response_capacity": float(sum(actor.response_capacity for actor in actors)),
            "preemptions": float(sum(actor.preemptions for actor in actors)),
            "canary_refusals": float(self._num_canary_refusals),
        }
        differences = [actor.canary_difference for actor in actors if actor.canary_difference is not None]
        return {**found, "canary_difference": max(differences)} if differences else found

    # ---- what comes in

    def _join(self, peer: bytes, hello: Hello, now: float) -> None:
        before = self._sessions.of(peer)
        if before is not None and before.secret != hello.session_id:
            self._lose(before.name, "its connection carries another session by now")
        session = self._sessions.join(peer, hello.session_id, hello.name.encode())
        if session is None:
            detail = f"{MAX_SESSIONS} sessions are open here, no more are taken; this one is asked again"
            self._mail.post(self.router, peer, Reject(reason="rejoin", detail=detail))
            return
        name = session.name
        if name not in self.connected:
            self.connected[name] = ConnectedActor(now, hello.host, hello.engine, hello.role, hello.gpus)
            log.info("%s %s joined from %s with %s", hello.role, name_of(name), hello.host, hello.engine)
        actor = self.connected[name]
        actor.heard_at, actor.credit = now, 0
        self._intake.reclaim(name, hello.held, now)
        # An evaluator asks the weight server: it is behind as it likes, and has nothing to hand on.
        if hello.role == "actor":
            self._relays.join(name, hello.relay)
        newest = self._newest_for(name)
        self._post(name, welcome_of(self._config, self._weights_port, newest.weights_version, newest.ask))

    def _leave(self, session: Session, bye: Bye) -> None:
        self._count_refusals(session, bye.canary_refusals)
        released = self._end(session.name)
        log.info("actor %s left (%s); %d leases go out again", name_of(session.name), bye.reason, released)

    def _take_group(self, peer: bytes, actor: ConnectedActor, group: GroupMessage, envelope: Envelope) -> None:
        ack = self._intake.accept(peer, envelope)
        if ack.outcome == "accepted":
            actor.groups_accepted += 1
            self._span_group(peer, group)
            self._regrader.sample(group, envelope.arrays, self._intake.answer_at(group.position))
        if ack.outcome == "invalid":
            log.warning("group %d of %s refused: %s", ack.position, name_of(peer), ack.detail)
            self._intake.fail(peer, group.position, group.attempt, ack.detail, is_prompts_fault=True)
        self._post(peer, ack)

    def _take_heartbeat(self, session: Session, actor: ConnectedActor, heartbeat: Heartbeat, now: float) -> None:
        """Note what the actor says of itself; the answer tells it that the learner is alive."""
        peer = session.name
        self._intake.heartbeat(peer, heartbeat.held, now)
        if heartbeat.update is not None and actor.weights_version != heartbeat.weights_version:
            fetch, pause, ago = heartbeat.update
            self._spans.add(name_of(peer), "fetch", fetch, ago + pause, version=heartbeat.weights_version)
            self._spans.add(name_of(peer), "pause", pause, ago, version=heartbeat.weights_version)
        actor.weights_version = heartbeat.weights_version
        actor.canary_difference = heartbeat.canary_difference
        self._count_refusals(session, heartbeat.canary_refusals)
        actor.groups_in_flight = heartbeat.groups_in_flight
        actor.responses_in_flight = heartbeat.responses_in_flight
        actor.response_capacity, actor.preemptions = heartbeat.response_capacity, heartbeat.preemptions
        if actor.tokens_generated is not None:
            self._rate.add(now, heartbeat.tokens_generated - actor.tokens_generated)
        actor.tokens_generated = heartbeat.tokens_generated
        if actor.role == "actor":
            self._relays.join(peer, heartbeat.relay)
        if heartbeat.lost_relay:
            self._take_out_relay(peer, heartbeat.lost_relay, now)
        self._post(peer, self._newest_for(peer))

    def _span_group(self, peer: bytes, group: GroupMessage) -> None:
        """Write down how long a group took, and what of it; the rest was on its way."""
        parts = list(zip(("wait for weights", "generate", "grade"), group.seconds, strict=True))
        lease = self._clock() - self._leased_at.pop(group.position, self._clock())
        parts.append(("send", max(0.0, lease - sum(group.seconds))))
        self._spans.chain(name_of(peer), parts, "lease", position=group.position, tokens=sum(group.lengths))

    def _take_out_relay(self, peer: bytes, relay: str, now: float) -> None:
        """Send nobody to a relay for a while; only whoever was sent there can say that it was lost there."""
        if self._relays.parent_of(peer, now) == relay:
            seconds = self._relays.take_out(relay, now)
            log.warning("%s has lost the relay %s: nobody is sent there for %.0f s", name_of(peer), relay, seconds)

    def _count_refusals(self, session: Session, canary_refusals: int) -> None:
        """Take a session's own count; it outlives the session, so that one that is lost and comes back counts once."""
        counted = self._canary_refusals.get(session.secret, 0)
        if canary_refusals > counted:
            self._canary_refusals[session.secret] = canary_refusals
            self._num_canary_refusals += canary_refusals - counted
            if len(self._canary_refusals) > MAX_SESSIONS:
                del self._canary_refusals[next(iter(self._canary_refusals))]
            name = name_of(session.name)
            log.warning("actor %s: the canary has refused %d weights versions there", name, canary_refusals)

    def _newest_for(self, peer: bytes) -> VersionMessage:
        newest = self._intake.versions.newest
        ask = self._relays.parent_of(peer, self._clock())
        return VersionMessage(weights_version=newest.weights_version, step=newest.step, ask=ask)

    def _post(self, name: bytes, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        session = self._sessions.get(name)
        assert session is not None
        self._mail.post(self.router, session.connection, message, arrays)


def name_of(session: bytes) -> str:
    """What a session is called, for people."""
    return quoted(session)
