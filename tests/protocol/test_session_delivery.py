"""An actor's session with the least that a coordinator does, over a network that loses, doubles and reorders."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dcpo_async.protocol.codec import decode, encode
from dcpo_async.protocol.conversion import lease_to_message
from dcpo_async.protocol.events import LeaseGranted, LeaseRevoked
from dcpo_async.protocol.messages import (
    Ack,
    Envelope,
    GroupMessage,
    Heartbeat,
    Hello,
    Message,
    Reject,
    VersionMessage,
    Want,
)
from dcpo_async.records import Lease, LeaseName
from dcpo_async.transport.memory_channel import Faults
from tests.protocol.made_session import WELCOME, group, joining, lease
from tests.protocol.test_session import due, grant, working


class Learner:
    """The least that a coordinator does: its ledger outlives it, its sessions do not."""

    def __init__(self, num_groups: int) -> None:
        self.waiting = list(range(num_groups))
        self.leased: set[int] = set()
        self.accepted: list[int] = []
        self.knows_the_actor = False

    def restart(self) -> None:
        self.knows_the_actor = False
        self.waiting, self.leased = sorted({*self.waiting, *self.leased}), set()

    def answers(self, message: Message) -> list[Envelope]:
        self.knows_the_actor |= isinstance(message, Hello)
        if not self.knows_the_actor:
            return [Envelope(Reject(reason="rejoin", detail="say hello first"), run_id="run")]
        match message:
            case Hello(held=held):
                self.hold(held)
                return [Envelope(WELCOME, run_id="run")]
            case Heartbeat(held=held):
                self.waiting = sorted({*self.waiting, *self.leased} - {name.position for name in held})
                self.leased &= {name.position for name in held}
                return [Envelope(VersionMessage(weights_version=4, step=0), run_id="run")]
            case Want(num_leases=number):
                granted, self.waiting = self.waiting[:number], self.waiting[number:]
                self.leased |= set(granted)
                return [Envelope(*lease_to_message(lease(position)), "run") for position in granted]
            case GroupMessage(position=position):
                is_new = position not in self.accepted
                if is_new:
                    self.accepted.append(position)
                    self.leased.discard(position)
                    self.waiting = [other for other in self.waiting if other != position]
                outcome: Any = "accepted" if is_new else "duplicate"
                return [Envelope(Ack(position=position, attempt=1, outcome=outcome), run_id="run")]
        return []

    def hold(self, held: tuple[LeaseName, ...]) -> None:
        for name in held:
            if name.position in self.waiting:
                self.waiting.remove(name.position)
                self.leased.add(name.position)


def carried(faults: Faults, withheld: list[Any], envelope: Envelope) -> list[Envelope]:
    """What the other end decodes of an envelope that crosses a faulty network."""
    return [decode(frames, 1 << 20) for _, frames in faults.arrivals((b"", encode(envelope)), withheld)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.sets(st.integers(1, 100), max_size=3))
def test_every_group_is_accepted_once_over_a_network_that_loses_doubles_and_reorders(
    seed: int, restarts: set[int]
) -> None:
    learner, session, chance = Learner(num_groups=12), joining(), random.Random(seed)
    faults = Faults(seed, loss=0.2, duplication=0.2, reordering=0.2)
    to_learner: list[Any] = []
    to_actor: list[Any] = []
    in_work: list[Lease] = []
    for second in range(2000):
        now = float(second)
        if second in restarts:
            learner.restart()
        session.capacity = 4 if session.welcome else 0
        for request in session.messages_due(now):
            for received in carried(faults, to_learner, request):
                for answer in learner.answers(received.message):
                    for envelope in carried(faults, to_actor, answer):
                        events = session.on_envelope(envelope, now)
                        in_work += [event.lease for event in events if isinstance(event, LeaseGranted)]
        if in_work and chance.random() < 0.5:
            session.finish(group(in_work.pop(0).position), now)
        if len(learner.accepted) == 12 and not session.held:
            break
    assert sorted(learner.accepted) == list(range(12))
    assert session.held == ()


def test_a_lease_that_another_has_got_is_given_up_and_its_places_are_free() -> None:
    session = working(capacity=4)
    grant(session, 7)
    ack = Ack(position=7, attempt=1, outcome="superseded", detail="another is sooner")
    told = session.on_envelope(Envelope(ack, run_id="run"), 1.0)
    assert told == [LeaseRevoked(LeaseName(7, 1), "another is sooner")]
    assert (session.held, session.num_responses) == ((), 0)
    assert session.on_envelope(Envelope(ack, run_id="run"), 1.0) == []


def test_an_actor_says_which_lease_came_last_so_that_those_on_their_way_are_not_granted_again() -> None:
    session = working(capacity=6)
    message, arrays = lease_to_message(lease(7))
    session.on_envelope(Envelope(message.model_copy(update={"number": 5}), arrays, "run"), 1.0)
    session.response_ended(lease(7), 1)
    session.response_ended(lease(7), 1)
    assert Want(num_leases=3, num_received=5) in due(session, 1.0)
