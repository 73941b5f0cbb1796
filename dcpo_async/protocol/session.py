"""An actor's session as a state machine: envelopes and seconds go in, messages and events come out."""

import math
from collections.abc import Iterable, Mapping

from dcpo_async.errors import ProtocolError, UnreachableError
from dcpo_async.limits import OPEN_SHARE
from dcpo_async.protocol.conversion import group_to_message, lease_from_message, sampling_of
from dcpo_async.protocol.events import (
    Complaint,
    Dismissed,
    Event,
    GroupAcknowledged,
    Joined,
    LeaseGranted,
    LeaseRevoked,
    LetGo,
    NewVersion,
    Paused,
    Refused,
)
from dcpo_async.protocol.in_work import InWork, name_of
from dcpo_async.protocol.messages import (
    Ack,
    Array,
    Bye,
    Envelope,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseMessage,
    Message,
    Reject,
    VersionMessage,
    Want,
    Welcome,
)
from dcpo_async.protocol.outbox import Outbox
from dcpo_async.protocol.transitions import ActorInput, ActorState, actor_input, next_state
from dcpo_async.records import Activity, Group, Hold, Lease, LeaseName


class ActorSession:
    """What one engine process owes the coordinator, and when.

    A group is sent again until it is acknowledged; it and the leases being worked on are listed by every
    heartbeat and hello. A coordinator that says nothing for silence_seconds (it answers heartbeats with the
    newest version), or that does not know the session, is sent hellos while work goes on.

    Attributes:
        state: where the session stands.
        capacity: responses that the engine is given at once; 0 until it runs.
        weights_version, canary_difference: as the last call of `adopted` says.
        tokens_generated: of the groups that were finished.
        preemptions, canary_refusals, engine_steps, activity: what heartbeats report; the service keeps them up to date.
        running_tokens: of the responses in the engine, by lease; the service keeps them up to date.
        update: fetch and pause of the last change of weights, in seconds, and when it ended; the service sets it.
        relay: where this machine hands on the weights that it has; empty for nowhere.
        ask: the relay to ask for weights, as the coordinator last said; empty for the weight server.
        hold: the version that the engine is to stay at, as the coordinator last said; None for the newest.
        takes_leases: whether there is room for leases at all; the service sets it.
        welcome: the run's settings, once joined.
    """

    def __init__(
        self,
        hello: Hello,
        address: str,
        now: float,
        *,
        join_timeout_seconds: float,
        rejoin_timeout_seconds: float,
        resend_seconds: float = 5.0,
    ) -> None:
        """Begin to join.

        Args:
            hello: who this is; `held` is filled in by the session.
            address: of the coordinator, for errors.
            now: monotonic seconds, here and everywhere.
            join_timeout_seconds: how long a first welcome may take.
            rejoin_timeout_seconds: how long the coordinator may be away later.
            resend_seconds: what is not answered is sent again after this long; groups then after 2, 4 and 8
                times as long.
        """
        self._hello, self._address = hello, address
        self._join_timeout_seconds, self._rejoin_timeout_seconds = join_timeout_seconds, rejoin_timeout_seconds
        self._resend_seconds = resend_seconds
        self.state = ActorState.JOINING
        self.capacity = self.weights_version = 0
        self.tokens_generated = self.preemptions = self.canary_refusals = self.engine_steps = 0
        self.activity: Activity = "starting"
        self.running_tokens: Mapping[LeaseName, int] = {}
        self.canary_difference: float | None = None
        self.update: tuple[float, float, float] | None = None
        self.takes_leases, self._has_failed = True, False
        self.welcome: Welcome | None = None
        self.relay, self.ask, self._lost_relay = hello.relay, "", ""
        self.hold: Hold | None = None
        self._run_id, self._incarnation, self._newest_version = "", 0, 0
        self._is_known = self._is_paused = False
        self._in_work = InWork()
        self._outbox = Outbox(resend_seconds)
        self._failures: list[LeaseFailed] = []
        self._credit = self._num_received = 0
        self._bye_reason = ""
        self._waiting_since = self._heard_at = now
        self._hello_due_at = self._want_due_at = self._heartbeat_due_at = now
        self._drain_deadline = math.inf

    @property
    def run_id(self) -> str:
        """The run that was joined; empty before."""
        return self._run_id

    @property
    def ended(self) -> bool:
        """Nothing more will be sent or understood."""
        return self.state in (ActorState.REFUSED, ActorState.ENDED)

    @property
    def held(self) -> tuple[LeaseName, ...]:
        """Leases being worked on, and those whose groups are not acknowledged yet."""
        return tuple(sorted({*self._in_work, *self._outbox}))

    @property
    def num_working(self) -> int:
        """Leases being worked on."""
        return len(self._in_work)

    @property
    def num_responses(self) -> int:
        """Responses in flight: those of the leases being worked on that have not ended."""
        return self._in_work.num_responses

    def adopted(self, weights_version: int, canary_difference: float | None) -> None:
        """The engine's next token comes from this version, whose canary it met within this many nats."""
        self.weights_version, self.canary_difference = weights_version, canary_difference
        if self.hold is not None:
            # Problems for this version come once the coordinator knows that it is here.
            self._heartbeat_due_at = -math.inf

    def lose_relay(self, relay: str) -> None:
        """The relay that was to be asked is silent or sends wrong bytes: heartbeats say so until another is named."""
        self._lost_relay = relay

    def response_ended(self, lease: Lease, num_tokens: int) -> None:
        """One response to a lease being worked on has ended: its place is free, whatever the others still do."""
        self._in_work.response_ended(name_of(lease), num_tokens)

    def finish(self, group: Group, now: float) -> None:
        """A lease is answered: its group goes out until it is acknowledged."""
        self.tokens_generated += sum(len(response.token_ids) for response in group.responses)
        self._outbox.put(*group_to_message(group), now)
        self._in_work.end(name_of(group))

    def fail(self, lease: Lease, reason: str, is_prompts_fault: bool) -> None:
        """A lease is given back."""
        self._in_work.end(name_of(lease))
        self._give_back(lease, reason, is_prompts_fault)

    def drain(self, now: float, timeout_seconds: float, reason: str, *, has_failed: bool = False) -> None:
        """Take no more leases; say bye when nothing is held, or at the deadline with what is held then.

        Args:
            has_failed: the engine failed, perhaps by what is held.
        """
        self._advance(ActorInput.DRAIN)
        self._drain_deadline = min(self._drain_deadline, now + timeout_seconds)
        self._bye_reason, self._has_failed = self._bye_reason or reason, self._has_failed or has_failed

    def messages_due(self, now: float) -> list[Envelope]:
        """What must be sent now, in order; a failed send needs no care, what matters falls due again.

        Raises:
            UnreachableError: the coordinator has not answered hellos for too long.
        """
        if self.ended:
            return []
        self._notice_silence(now)
        if self.state is ActorState.DRAINING and (now >= self._drain_deadline or not self.held):
            self._advance(ActorInput.DEADLINE if self.held else ActorInput.EMPTIED)
            return [*self._failures_due(), self._envelope(self._bye())]
        if not self._is_known:
            self._notice_deadline(now)
            return self._hello_due(now)
        return [
            *self._failures_due(),
            *self._want_due(now),
            *self._groups_due(now),
            *self._heartbeat_due(now),
        ]

    def seconds_until_due(self, now: float) -> float:
        """How long the service may wait for the network before it asks for messages again."""
        if not self._is_known:
            due_at = [self._hello_due_at]
        elif self._failures or self._room != self._credit:
            due_at = [now]
        else:
            due_at = [self._heartbeat_due_at, *self._outbox.due_at()]
        return max(0.0, min(*due_at, self._drain_deadline) - now)

    def on_envelope(self, envelope: Envelope, now: float) -> list[Event]:
        """Take a message of the coordinator.

        Raises:
            ProtocolError: it has no place in this state, is not for an actor, or is of another run; then
                nothing has changed.
        """
        message = envelope.message
        happened = actor_input(message)
        if self._run_id and envelope.run_id != self._run_id and not isinstance(message, Reject):
            raise ProtocolError(f"{message.kind} of run {envelope.run_id!r}; this actor joined run {self._run_id!r}")
        self._advance(happened)
        self._heard_at = now
        match message:
            case Welcome():
                self._run_id, self._incarnation = envelope.run_id, envelope.incarnation
                return self._on_welcome(message, now)
            case LeaseMessage():
                if message.terms is None:
                    self._num_received = message.number
                return self._on_lease(lease_from_message(message, envelope.arrays), now)
            case Ack():
                return self._on_ack(message)
            case VersionMessage():
                return [*self._on_version(message), *self._on_drain(message.drain, now)]
            case Reject():
                return self._on_reject(message, happened, now)
        raise AssertionError(message.kind)

    def _advance(self, happened: ActorInput) -> None:
        self.state = next_state(self.state, happened)

    def _envelope(self, message: Message, arrays: Mapping[str, Array] | None = None) -> Envelope:
        return Envelope(message, arrays or {}, self._run_id, self._incarnation)

    # ---- what came in

    def _on_welcome(self, welcome: Welcome, now: float) -> list[Event]:
        self._is_paused = False
        if not self._is_known:
            self._is_known = True
            self._want_due_at = self._heartbeat_due_at = now
            self._outbox.hurry_all(now)
        before, self.welcome = self.welcome, welcome
        of_now = {"weights_version": 0, "ask": "", "hold": None}
        is_same = before is not None and before.model_copy(update=of_now) == welcome.model_copy(update=of_now)
        news = self._on_version(welcome)
        return news if is_same else [Joined(welcome), *news]

    def _on_lease(self, lease: Lease, now: float) -> list[Event]:
        name = name_of(lease)
        if name in self._outbox:
            self._outbox.hurry(name, now)
            return []
        if name in self._in_work:
            return []
        self._credit = max(0, self._credit - 1)
        if self.state is ActorState.DRAINING:
            self._give_back(lease, "the actor drains", is_prompts_fault=False)
            return []
        assert self.welcome is not None
        self._in_work.begin(name, sampling_of(self.welcome, lease).group_size)
        return [LeaseGranted(lease, self.welcome)]

    def _on_ack(self, ack: Ack) -> list[Event]:
        name = LeaseName(ack.position, ack.attempt)
        if self._outbox.acknowledge(name):
            return [GroupAcknowledged(ack)]
        if name in self._in_work and ack.outcome == "superseded":
            self._in_work.end(name)
            return [LeaseRevoked(name, ack.detail)]
        return []

    def _on_version(self, message: Welcome | VersionMessage) -> list[Event]:
        self.ask = message.ask
        if self.ask != self._lost_relay:
            self._lost_relay = ""
        before, self.hold = self.hold, message.hold
        if message.weights_version <= self._newest_version and self.hold == before:
            return []
        self._newest_version = max(self._newest_version, message.weights_version)
        return [NewVersion(message.weights_version)]

    def _on_drain(self, why: str, now: float) -> list[Event]:
        if not why or self.state is ActorState.DRAINING:
            return []
        self.drain(now, math.inf, why)
        # The next heartbeat, which says that it drains, goes out at once.
        self._heartbeat_due_at = -math.inf
        return [LetGo(why, self.num_working)]

    def _on_reject(self, reject: Reject, happened: ActorInput, now: float) -> list[Event]:
        if happened is ActorInput.REJOIN:
            self._forget_welcome(now)
            return []
        if happened is ActorInput.STOP:
            is_news, self._is_paused = not self._is_paused, True
            self._forget_welcome(now)
            # A coordinator that answers is not away, however long it keeps an actor waiting.
            self._waiting_since, self._hello_due_at = now, now + self._resend_seconds
            return [Paused(reject.detail)] if is_news else []
        if happened is ActorInput.COMPLAIN:
            return [Complaint(reject.detail)]
        return [Dismissed(reject.detail) if happened is ActorInput.DISMISS else Refused(reject)]

    def _give_back(self, lease: Lease, reason: str, is_prompts_fault: bool) -> None:
        self._failures.append(
            LeaseFailed(
                position=lease.position, attempt=lease.attempt, reason=reason, is_prompts_fault=is_prompts_fault
            )
        )

    # ---- what time brings

    def _notice_silence(self, now: float) -> None:
        if self._is_known and self.welcome and now - self._heard_at >= self.welcome.silence_seconds:
            self._advance(ActorInput.SILENCE)
            self._forget_welcome(now)

    def _forget_welcome(self, now: float) -> None:
        if self._is_known:
            self._is_known = False
            self._waiting_since = self._hello_due_at = now
            self._num_received = 0

    def _notice_deadline(self, now: float) -> None:
        allowed = self._rejoin_timeout_seconds if self.welcome else self._join_timeout_seconds
        if now - self._waiting_since >= allowed:
            self._advance(ActorInput.DEADLINE)
            raise UnreachableError(
                f"no answer from the learner at {self._address} within {allowed:g} s; "
                "is dcpo-learner running there, and are its keys the ones given here?"
            )

    # ---- what goes out

    @property
    def _room(self) -> int:
        if self.welcome is None or self.state is ActorState.DRAINING or not self.takes_leases:
            return 0
        groups_in_flight = self.welcome.actor.groups_in_flight
        if len(self._outbox) >= groups_in_flight:
            return 0
        return self._in_work.room(self.capacity, self.welcome.sampling.group_size, OPEN_SHARE * groups_in_flight)

    def _hello_due(self, now: float) -> list[Envelope]:
        if now < self._hello_due_at:
            return []
        self._hello_due_at = now + self._resend_seconds
        of_now = {"held": self.held, "relay": self.relay, "weights_version": self.weights_version}
        return [self._envelope(self._hello.model_copy(update=of_now))]

    def _failures_due(self) -> Iterable[Envelope]:
        failures, self._failures = self._failures, []
        return map(self._envelope, failures)

    def _want_due(self, now: float) -> list[Envelope]:
        room = self._room
        if room == self._credit and (room == 0 or now < self._want_due_at):
            return []
        self._credit, self._want_due_at = room, now + self._resend_seconds
        return [self._envelope(Want(num_leases=room, num_received=self._num_received))]

    def _groups_due(self, now: float) -> list[Envelope]:
        return [self._envelope(message, arrays) for message, arrays in self._outbox.due(now)]

    def _heartbeat_due(self, now: float) -> list[Envelope]:
        if self.welcome is None or now < self._heartbeat_due_at:
            return []
        self._heartbeat_due_at = now + self.welcome.heartbeat_seconds
        held = self.held
        heartbeat = Heartbeat(
            held=held,
            tokens=tuple(self._tokens_of(name) for name in held),
            engine_steps=self.engine_steps,
            activity="draining" if self.state is ActorState.DRAINING else self.activity,
            weights_version=self.weights_version,
            tokens_generated=self.tokens_generated,
            groups_in_flight=self.num_working,
            responses_in_flight=self.num_responses,
            response_capacity=self.capacity,
            preemptions=self.preemptions,
            update=None if self.update is None else (*self.update[:2], max(0.0, now - self.update[2])),
            canary_difference=self.canary_difference,
            canary_refusals=self.canary_refusals,
            relay=self.relay,
            lost_relay=self._lost_relay,
        )
        return [self._envelope(heartbeat)]

    def _tokens_of(self, name: LeaseName) -> int:
        """Response tokens so far of a lease, wherever it stands."""
        return self._outbox.tokens(name) or self._in_work.tokens(name) + self.running_tokens.get(name, 0)

    def _bye(self) -> Bye:
        return Bye(reason=self._bye_reason, canary_refusals=self.canary_refusals, has_failed=self._has_failed)
