"""The coordinator's side of its talk with actors and evaluators: sessions, leases out, groups in."""

import logging
from collections.abc import Callable, Collection, Mapping

from dcpo_async.config import RunConfig
from dcpo_async.errors import MalformedError, ProtocolError, RevokedError
from dcpo_async.limits import MAX_PEERS, quoted
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
from dcpo_async.records import LeaseName
from dcpo_async.transport.interfaces import Router
from learner.coordinator.intake import RETRY_SILENCES, Intake
from learner.coordinator.mail import Mail
from learner.coordinator.regrading import Regrader
from learner.coordinator.stragglers import Stragglers
from learner.evaluations.desk import EvaluationDesk, is_of_evaluation, of_training
from learner.evaluations.problems import HeldOut
from learner.scheduling.grants import Rotation, Untold
from learner.scheduling.relay_tree import RelayTree
from learner.scheduling.sessions import CanaryRefusals, ConnectedActor, Session, SessionTable, fleet_metrics
from learner.scheduling.token_rate import TokenRate

log = logging.getLogger(__name__)

LEASES_AT_ONCE, ROUNDS_AT_ONCE = 512, 64
"""Leases, and rounds of one to each hungry actor, before anything else is done: far fewer than a channel queues."""
UNSEEN_SECONDS = 5.0
"""A lease that has not arrived by then does not count as on its way any more."""
MAX_REFUSED = 3
"""Leases in a row for which a session's groups are refused, before the session is."""


class ActorDesk:
    """Answers actors; whoever is in `connected` has a session, all others must say hello first.

    Args:
        config, intake: of the run, and its leases and groups.
        router, mail: that actors reach, and what is said over it.
        regrader: grades a sampled share again.
        weights_port: where the weight server listens, on the same host as the coordinator.
        clock: monotonic seconds.
        spans: takes what actors say of how long things took.
        held_out: what actors are to measure versions by.

    Attributes:
        connected: by the session's name, in the order of joining.
        rotation, stragglers: those with credit, and what looks after leases that do not get on.
        untold: who has yet to hear of the newest version.
        evaluations: what has versions measured.
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
        held_out: HeldOut,
    ) -> None:
        self._config, self._intake, self.router, self._mail = config, intake, router, mail
        self._regrader, self._weights_port, self._clock = regrader, weights_port, clock
        self.connected: dict[bytes, ConnectedActor] = {}
        self._rate, self._relays = TokenRate(), RelayTree()
        self._spans, self._leased_at = spans, dict[int, float]()
        self._sessions = SessionTable(MAX_PEERS)
        self._canary_refusals = CanaryRefusals(MAX_PEERS)
        self._stopping: Reject | None = None
        intake.start_clock(clock())
        self.rotation, self.untold = Rotation(), Untold()
        says = intake.versions, self._post, self._post_newest
        self.evaluations = EvaluationDesk(
            config, intake.ledger, held_out, self.connected, self.rotation, *says, clock()
        )
        acts = self._describe, self._grant_newest, self._revoke, self.evaluations.is_free
        self.stragglers = Stragglers(config, intake, self.rotation, clock, *acts)

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
        """A message could not be read: one line, and where it was a group of this session, its acknowledgement.

        A session whose key is revoked ends.
        """
        session = self._sessions.of(peer)
        if isinstance(error, RevokedError):
            self.lose(peer, str(error))
            return
        who = quoted(session.name if session else peer)
        log.warning("refused a message of %s: %s", who, quoted(error))
        self.router.refusals.note(f"a message of {who}: {quoted(error)}" if session else f"a message: {quoted(error)}")
        if session is not None and isinstance(error, MalformedError) and error.lease is not None:
            (position, attempt), name = error.lease, session.name
            self._intake.refuse_unread(name, position, attempt, self._clock())
            self.evaluations.unread(name, position)
            self._answer_group(name, Ack(position=position, attempt=attempt, outcome="invalid", detail=str(error)))

    def _on_message(self, session: Session, actor: ConnectedActor, envelope: Envelope, now: float) -> None:
        name = session.name
        match envelope.message:
            case Want() as want:
                on_its_way = actor.num_granted - want.num_received if now - actor.granted_at < UNSEEN_SECONDS else 0
                self.stragglers.wanted(name, want.num_leases - max(0, on_its_way), now)
            case GroupMessage() as group if is_of_evaluation(group.position):
                self._answer_group(name, self.evaluations.take(name, group, envelope.arrays, now))
            case GroupMessage() as group:
                self._take_group(name, actor, group, envelope, now)
            case Heartbeat() as heartbeat:
                self._take_heartbeat(session, actor, heartbeat, now)
            case LeaseFailed() as failed if is_of_evaluation(failed.position):
                self.evaluations.failed(name, failed)
            case LeaseFailed() as failed:
                actor.failures += 1
                at, attempt, blamed = failed.position, failed.attempt, failed.is_prompts_fault
                self._intake.fail(name, at, attempt, failed.reason, is_prompts_fault=blamed, now=now)
            case other:
                self._post(name, Reject(reason="invalid", detail=f"an actor does not send {other.kind}"))

    def grant_leases(self) -> None:
        """Tell some of the newest version; hand out what the gate allows, then problems of an evaluation."""
        for peer in self.untold.some():
            if peer in self.connected:
                self._post_newest(peer)
        if not self._stopping:
            self._grant_in_turn(self._clock())
            self.evaluations.grant(self._clock())

    def _grant_in_turn(self, now: float) -> None:
        """One lease at a time to each actor in turn."""
        num_passed = 0
        for _ in range(min(LEASES_AT_ONCE, ROUNDS_AT_ONCE * len(self.rotation))):
            peer = self.rotation.first
            if peer is None or num_passed == len(self.rotation):
                return
            if self._grant(peer, self.connected[peer].weights_version, now):
                num_passed = 0
            elif self._intake.table.has_waiting or self.evaluations.hold_for(peer) is not None:
                # What waits now may wait for another host, or for newer weights than one that stays will have.
                self.rotation.pass_over(peer)
                num_passed += 1
            else:
                return

    def _grant(self, peer: bytes, weights_version: int, now: float) -> bool:
        """Lease the next visit to a peer whose turn it is; False while none may go out to it."""
        stays_at = self.evaluations.hold_for(peer)
        at_most = stays_at.weights_version if stays_at is not None else None
        lease = self._intake.grant(peer, now, weights_version, at_most)
        if lease is None:
            return False
        actor = self.connected[peer]
        actor.num_granted, actor.granted_at = actor.num_granted + 1, now
        self.rotation.granted(peer)
        self.stragglers.progress.granted(peer, now)
        self._leased_at[lease.position] = now
        message, arrays = lease_to_message(lease)
        self._post(peer, message.model_copy(update={"number": actor.num_granted}), arrays)
        return True

    def _grant_newest(self, peer: bytes) -> bool:
        return self._grant(peer, self._intake.versions.newest.weights_version, self._clock())

    def announce(self) -> None:
        """Begin to tell everybody of the newest version, and some to stay at it."""
        self.evaluations.published(self._clock())
        self.untold.begin(self.connected)

    def use(self, config: RunConfig) -> None:
        """Work by other settings from now on, of those that may change while the run goes on."""
        self._config = self._intake.config = config
        self._intake.blame.retry_seconds = RETRY_SILENCES * config.network.silence_seconds
        for part in (self._regrader, self.stragglers, self.evaluations):
            part.use(config)

    def dismiss(self, reason: str, only: Collection[bytes] | None = None) -> None:
        """Tell everybody, or only some, that no more groups are taken."""
        for peer in self.connected if only is None else only:
            self._post(peer, Reject(reason="draining", detail=reason))

    def pause(self, reason: str) -> None:
        """Tell everybody, and whoever joins from now on, to keep what they have and to say hello later."""
        if self._stopping is None:
            self._stopping = Reject(reason="stopping", detail=reason)
            for peer in self.connected:
                self._post(peer, self._stopping)

    def drop_silent(self) -> None:
        """Lose the sessions that have been silent for too long, and leases that no heartbeat lists any more."""
        if self._stopping:
            return
        now, limit = self._clock(), self._config.network.silence_seconds
        for peer, actor in list(self.connected.items()):
            if now - actor.heard_at >= limit:
                self._lose(peer, f"silent for {now - actor.heard_at:.0f} s")
        self.stragglers.look(now)
        self.evaluations.look(now)
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
        released = self._end(name, fell_at=self._clock())
        log.warning("actor %s lost: %s; %d leases go out again", name_of(name), reason, released)

    def _end(self, name: bytes, fell_at: float | None = None) -> int:
        """Forget a session; returns how many leases it held."""
        released = self._intake.release_session(name, fell_at=fell_at)
        del self.connected[name]
        self._sessions.end(name)
        self.stragglers.left(name)
        self.evaluations.left(name)
        self._relays.leave(name)
        self._intake.blame.leave(name)
        return released

    def metrics(self) -> dict[str, float]:
        """Actors connected, how much they generate and how full they are, and how well they hold their weights."""
        rates = {"actor_tokens_per_second": self._rate.per_second(self._clock())}
        return {
            **fleet_metrics(self.connected.values()),
            **rates,
            "canary_refusals": float(self._canary_refusals.total),
        }

    # ---- what comes in

    def _join(self, peer: bytes, hello: Hello, now: float) -> None:
        if self._stopping:
            self._mail.post(self.router, peer, self._stopping)
            return
        before = self._sessions.of(peer)
        if before is not None and before.secret != hello.session_id:
            self._lose(before.name, "its connection carries another session by now")
        session = self._sessions.join(peer, hello.session_id, hello.name.encode())
        if session is None:
            detail = f"{MAX_PEERS} sessions are open here, no more are taken; this one is asked again"
            self._mail.post(self.router, peer, Reject(reason="rejoin", detail=detail))
            return
        name = session.name
        if name not in self.connected:
            self.connected[name] = ConnectedActor(now, hello.host, hello.engine, hello.role, hello.gpus, hello.release)
            log.info("%s %s joined from %s", hello.role, name_of(name), self.connected[name])
        actor = self.connected[name]
        actor.heard_at, actor.num_granted, actor.weights_version = now, 0, hello.weights_version
        self.rotation.want(name, 0)
        self._intake.table.reclaim(name, hello.held, now)
        # An evaluator asks the weight server: it is behind as it likes, and has nothing to hand on.
        if hello.role == "actor":
            self._intake.blame.join(name, hello.host)
            self._relays.join(name, hello.relay)
        self.evaluations.joined(name, hello.held, now)
        newest = self._newest_for(name)
        version, ask, hold = newest.weights_version, newest.ask, newest.hold
        self._post(name, welcome_of(self._config, self._weights_port, version, ask, hold))

    def _leave(self, session: Session, bye: Bye) -> None:
        self._count_refusals(session, bye.canary_refusals)
        released = self._end(session.name, fell_at=self._clock() if bye.has_failed else None)
        log.info("actor %s left (%s); %d leases go out again", name_of(session.name), bye.reason, released)

    def _take_group(
        self, peer: bytes, actor: ConnectedActor, group: GroupMessage, envelope: Envelope, now: float
    ) -> None:
        slot = self._intake.table.get(group.position)
        tokens, leased_at = (slot.tokens, slot.leased_at) if slot is not None else (0, now)
        ack = self._intake.accept(peer, envelope, now)
        if ack.outcome == "accepted":
            actor.groups_accepted += 1
            actor.refused.clear()
            self.stragglers.finished(peer, group, tokens, leased_at, now)
            self._span_group(peer, group)
            self._regrader.sample(group, envelope.arrays, self._intake.prompt_at(group.position))
        self._answer_group(peer, ack)

    def _answer_group(self, name: bytes, ack: Ack) -> None:
        """Acknowledge a group; a session whose groups are not sound, again and again, ends.

        That says nothing against the prompts that it had.
        """
        self._post(name, ack)
        if ack.outcome != "invalid":
            return
        actor = self.connected[name]
        log.warning("group %d of %s refused: %s", ack.position, name_of(name), ack.detail)
        actor.refused.add(ack.position)
        actor.failures += 1
        if len(actor.refused) >= MAX_REFUSED:
            detail = f"its groups are refused: {ack.detail}; is its GPU healthy?"
            self._post(name, Reject(reason="unsound", detail=detail))
            text = "actor %s on %s is refused: %d groups in a row were not sound, at last: %s; %d leases go out again"
            log.error(text, name_of(name), actor.host, MAX_REFUSED, ack.detail, self._end(name))

    def _take_heartbeat(self, session: Session, actor: ConnectedActor, heartbeat: Heartbeat, now: float) -> None:
        """Note what the actor says of itself; the answer tells it that the learner is alive."""
        peer = session.name
        self.stragglers.heard(peer, of_training(heartbeat, self._config.evaluation.samples), now)
        self.evaluations.heard(peer, heartbeat, now)
        if heartbeat.update is not None and actor.weights_version != heartbeat.weights_version:
            fetch, pause, ago = heartbeat.update
            self._spans.add(name_of(peer), "fetch", fetch, ago + pause, version=heartbeat.weights_version)
            self._spans.add(name_of(peer), "pause", pause, ago, version=heartbeat.weights_version)
        actor.weights_version = heartbeat.weights_version
        actor.canary_difference = heartbeat.canary_difference
        self._count_refusals(session, heartbeat.canary_refusals)
        actor.activity, actor.groups_in_flight = heartbeat.activity, heartbeat.groups_in_flight
        actor.responses_in_flight = heartbeat.responses_in_flight
        actor.response_capacity, actor.preemptions = heartbeat.response_capacity, heartbeat.preemptions
        if actor.tokens_generated is not None:
            self._rate.add(now, heartbeat.tokens_generated - actor.tokens_generated)
        actor.tokens_generated = heartbeat.tokens_generated
        if actor.role == "actor":
            self._relays.join(peer, heartbeat.relay)
        if heartbeat.lost_relay:
            self._take_out_relay(peer, heartbeat.lost_relay, now)
        self._post_newest(peer)

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
        num_versions, name = self._intake.versions.newest.weights_version, name_of(session.name)
        if refused := self._canary_refusals.count(session.secret, canary_refusals, num_versions):
            log.warning("actor %s: the canary has refused %d weights versions there", name, refused)

    def _newest_for(self, peer: bytes) -> VersionMessage:
        newest = self._intake.versions.newest
        ask = self._relays.parent_of(peer, self._clock())
        hold, why = self.evaluations.hold_for(peer), self.rotation.drained.get(peer, "")
        return VersionMessage(weights_version=newest.weights_version, step=newest.step, ask=ask, hold=hold, drain=why)

    def _post_newest(self, peer: bytes) -> None:
        self._post(peer, self._newest_for(peer))

    def _describe(self, peer: bytes) -> str:
        actor = self.connected.get(peer)
        return f"{name_of(peer)} on {actor.host}" if actor is not None else name_of(peer)

    def _revoke(self, peer: bytes, name: LeaseName, reason: str) -> None:
        """Tell an actor that what it makes of a lease will change nothing."""
        self._post(peer, Ack(position=name.position, attempt=name.attempt, outcome="superseded", detail=reason))

    def _post(self, name: bytes, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        session = self._sessions.get(name)
        assert session is not None
        self._mail.post(self.router, session.connection, message, arrays)


def name_of(session: bytes) -> str:
    """What a session is called, for people."""
    return quoted(session)
