from typing import Any

import pytest

from dcpo_async.errors import ProtocolError, UnreachableError
from dcpo_async.protocol.conversion import lease_to_message
from dcpo_async.protocol.events import (
    Complaint,
    Dismissed,
    GroupAcknowledged,
    Joined,
    LeaseGranted,
    NewVersion,
    Refused,
)
from dcpo_async.protocol.messages import (
    Ack,
    Bye,
    Envelope,
    Heartbeat,
    Hello,
    LeaseFailed,
    Message,
    Reject,
    VersionMessage,
    Want,
)
from dcpo_async.protocol.session import ActorSession
from dcpo_async.protocol.transitions import ActorState
from dcpo_async.records import LeaseName
from tests.protocol.made_session import HELLO, WELCOME, group, joining, lease

REJOIN = Reject(reason="rejoin", detail="unknown session")


def take(session: ActorSession, message: Message, now: float = 0.0, run_id: str = "run") -> list[Any]:
    return session.on_envelope(Envelope(message, {}, run_id, incarnation=1), now)


def grant(session: ActorSession, position: int, attempt: int = 1, now: float = 0.0) -> list[Any]:
    return session.on_envelope(Envelope(*lease_to_message(lease(position, attempt)), "run", 1), now)


def due(session: ActorSession, now: float) -> list[Message]:
    return [envelope.message for envelope in session.messages_due(now)]


def kinds(session: ActorSession, now: float) -> list[str]:
    return [message.kind for message in due(session, now)]


def working(capacity: int = 4) -> ActorSession:
    """A session that has joined and has sent its first messages at second 0; groups have two responses."""
    session = joining()
    due(session, 0.0)
    take(session, WELCOME)
    session.capacity = capacity
    due(session, 0.0)
    return session


def names(*positions: int) -> tuple[LeaseName, ...]:
    return tuple(LeaseName(position=position, attempt=1) for position in positions)


# ---- joining


def test_hello_is_sent_again_until_the_welcome_comes() -> None:
    session = joining()
    assert due(session, 0.0) == [HELLO]
    assert due(session, 4.9) == []
    assert due(session, 5.0) == [HELLO]
    assert take(session, WELCOME, 6.0) == [Joined(WELCOME), NewVersion(4)]
    assert session.state is ActorState.WORKING
    assert "hello" not in kinds(session, 12.0)


def test_a_learner_that_never_answers_is_named_with_the_seconds_waited() -> None:
    session = joining()
    due(session, 59.9)
    with pytest.raises(UnreachableError, match=r"learner at tcp://learner:5557 within 60 s"):
        session.messages_due(60.0)
    assert session.ended


def test_messages_carry_the_run_and_incarnation_of_the_welcome() -> None:
    session = joining()
    [hello] = session.messages_due(0.0)
    take(session, WELCOME)
    [heartbeat] = session.messages_due(0.0)
    assert (hello.run_id, hello.incarnation) == ("", 0)
    assert (heartbeat.run_id, heartbeat.incarnation) == ("run", 1)


@pytest.mark.parametrize("reason", ["protocol_version", "run_id", "role"])
def test_a_refusal_ends_the_session(reason: Any) -> None:
    session = joining()
    reject = Reject(reason=reason, detail="upgrade")
    assert take(session, reject) == [Refused(reject)]
    assert session.state is ActorState.REFUSED
    assert due(session, 100.0) == []


def test_a_message_that_the_learner_could_not_take_is_told_and_the_session_goes_on() -> None:
    session = working()
    assert take(session, Reject(reason="invalid", detail="group: lengths.0")) == [Complaint("group: lengths.0")]
    assert session.state is ActorState.WORKING


def test_a_run_that_is_over_dismisses_its_actors() -> None:
    session = working()
    assert take(session, Reject(reason="draining", detail="done")) == [Dismissed("done")]
    assert session.state is ActorState.ENDED


def test_messages_out_of_place_change_nothing() -> None:
    session = joining()
    with pytest.raises(ProtocolError, match="'lease' in a session that is joining"):
        grant(session, 1)
    with pytest.raises(ProtocolError, match="want is not a message for an actor"):
        take(session, Want(num_leases=1))
    assert (session.state, session.held) == (ActorState.JOINING, ())


def test_a_message_of_another_run_is_refused() -> None:
    with pytest.raises(ProtocolError, match="of run 'other'; this actor joined run 'run'"):
        take(working(), VersionMessage(weights_version=9, step=1), run_id="other")


# ---- working


def test_room_is_asked_for_once_and_again_only_while_it_is_not_filled() -> None:
    session = working(capacity=4)
    session.capacity = 6
    assert due(session, 1.0) == [Want(num_leases=3)]
    for position in (1, 2, 3):
        grant(session, position, now=1.5)
    assert kinds(session, 2.0) == []
    session.finish(group(1), 2.0)
    assert due(session, 2.0)[0] == Want(num_leases=1)
    assert "want" not in kinds(session, 6.9)
    assert "want" in kinds(session, 7.0)


def test_leases_beyond_the_capacity_are_kept_and_leave_no_room() -> None:
    session = working(capacity=2)
    grant(session, 1)
    assert grant(session, 2) != []
    session.finish(group(1), 0.0)
    assert "want" not in kinds(session, 0.0)


def test_groups_that_nobody_acknowledges_hold_back_the_credit() -> None:
    session = working(capacity=4)
    for position in (1, 2):
        grant(session, position)
        session.finish(group(position), 1.0)
    assert kinds(session, 1.0) == ["group", "group"]
    take(session, Ack(position=1, attempt=1, outcome="accepted"), 1.5)
    assert due(session, 1.5) == [Want(num_leases=2)]


def test_a_lease_is_granted_once_however_often_it_arrives() -> None:
    session = working()
    [granted] = grant(session, 7)
    assert isinstance(granted, LeaseGranted)
    assert (granted.lease.position, granted.lease.prompt_token_ids.tolist()) == (7, [1, 2])
    assert grant(session, 7) == []
    assert session.held == names(7)


def test_a_group_is_sent_again_after_5_10_20_and_40_seconds_until_it_is_acknowledged() -> None:
    session = working()
    grant(session, 7)
    session.finish(group(7), 1.0)
    sent_at = []
    for second in range(1, 130):
        take(session, VersionMessage(weights_version=4, step=0), float(second))
        if "group" in kinds(session, float(second)):
            sent_at.append(second)
    assert sent_at == [1, 6, 16, 36, 76, 116]
    ack = Ack(position=7, attempt=1, outcome="accepted")
    assert take(session, ack, 130.0) == [GroupAcknowledged(ack)]
    assert take(session, ack, 130.0) == []
    assert "group" not in kinds(session, 140.0)
    assert session.held == ()


def test_a_lease_that_comes_again_after_its_group_brings_the_group_forward() -> None:
    session = working()
    grant(session, 7)
    session.finish(group(7), 0.0)
    due(session, 0.0)
    assert grant(session, 7, now=1.0) == []
    assert "group" in kinds(session, 1.0)


def test_heartbeats_list_leases_in_work_and_groups_not_acknowledged() -> None:
    session = working()
    for position in (9, 7):
        grant(session, position)
    session.finish(group(7), 0.0)
    session.adopted(4, canary_difference=2e-6)
    session.preemptions = 5
    session.response_ended(lease(9), 1)
    due(session, 0.0)
    session.running_tokens = {names(9)[0]: 5}
    session.engine_steps, session.activity = 17, "generating"
    [beat] = due(session, 3.0)
    assert beat == Heartbeat(
        held=names(7, 9),
        tokens=(2, 6),
        engine_steps=17,
        activity="generating",
        weights_version=4,
        tokens_generated=2,
        groups_in_flight=1,
        responses_in_flight=1,
        response_capacity=4,
        preemptions=5,
        canary_difference=2e-6,
    )


def test_heartbeats_and_the_bye_tell_how_often_the_canary_refused() -> None:
    session = working()
    session.canary_refusals = 2
    due(session, 0.0)
    [beat] = due(session, 3.0)
    assert isinstance(beat, Heartbeat)
    assert (beat.canary_refusals, beat.canary_difference) == (2, None)
    session.drain(3.0, 0.0, "no weights")
    assert due(session, 3.0) == [Bye(reason="no weights", canary_refusals=2)]


def test_heartbeats_and_hellos_name_the_relay_that_the_machine_has_by_now() -> None:
    session = working()
    session.relay = "tcp://here:1"
    due(session, 0.0)
    [beat] = due(session, 3.0)
    assert isinstance(beat, Heartbeat)
    assert (beat.relay, beat.lost_relay) == ("tcp://here:1", "")
    take(session, REJOIN, 3.0)
    [hello] = due(session, 3.0)
    assert isinstance(hello, Hello)
    assert hello.relay == "tcp://here:1"


def test_whom_to_ask_is_what_the_coordinator_said_last() -> None:
    session = joining()
    take(session, WELCOME.model_copy(update={"ask": "tcp://a:1"}))
    assert session.ask == "tcp://a:1"
    assert take(session, VersionMessage(weights_version=4, step=0, ask="tcp://b:1")) == []
    assert session.ask == "tcp://b:1"
    assert take(session, WELCOME) == [], "another relay is no other run"
    assert session.ask == ""


def test_a_lost_relay_is_in_every_heartbeat_until_another_is_named() -> None:
    session = working()
    take(session, VersionMessage(weights_version=4, step=0, ask="tcp://a:1"))
    session.lose_relay("tcp://a:1")
    due(session, 0.0)
    lost = []
    for second, ask in ((3, "tcp://a:1"), (6, "tcp://b:1"), (9, "tcp://b:1")):
        lost += [beat.lost_relay for beat in due(session, float(second)) if isinstance(beat, Heartbeat)]
        take(session, VersionMessage(weights_version=4, step=0, ask=ask), float(second))
    assert lost == ["tcp://a:1", "tcp://a:1", ""]


def test_only_versions_newer_than_all_before_are_news() -> None:
    session = working()
    assert take(session, VersionMessage(weights_version=6, step=2)) == [NewVersion(6)]
    assert take(session, VersionMessage(weights_version=5, step=1)) == []
    assert take(session, VersionMessage(weights_version=6, step=2)) == []


def test_a_failed_lease_is_given_back_with_its_reason() -> None:
    session = working()
    grant(session, 7)
    session.fail(lease(7), "too long", is_prompts_fault=True)
    assert due(session, 0.0)[0] == LeaseFailed(position=7, attempt=1, reason="too long", is_prompts_fault=True)
    assert session.held == ()


def test_the_service_may_wait_until_the_next_message_is_due() -> None:
    session = working()
    assert session.seconds_until_due(1.0) == 2.0
    grant(session, 7)
    session.finish(group(7), 1.0)
    assert session.seconds_until_due(1.0) == 0.0
    due(session, 1.0)
    assert session.seconds_until_due(1.0) == 2.0


# ---- rejoining


def test_a_rejoin_lists_what_is_held_and_sends_groups_again_after_the_welcome() -> None:
    session = working(capacity=6)
    for position in (1, 2):
        grant(session, position)
    session.finish(group(1), 0.0)
    due(session, 0.0)
    assert take(session, REJOIN, 1.0) == []
    assert session.state is ActorState.REJOINING
    assert due(session, 1.0) == [HELLO.model_copy(update={"held": names(1, 2)})]
    session.finish(group(2), 2.0)
    assert due(session, 2.0) == []
    assert take(session, WELCOME, 3.0) == []
    assert kinds(session, 3.0) == ["want", "group", "group", "heartbeat"]


def test_a_second_rejoin_does_not_double_the_hello() -> None:
    session = working()
    take(session, REJOIN, 1.0)
    due(session, 1.0)
    take(session, REJOIN, 1.1)
    assert due(session, 1.1) == []


def test_other_settings_after_a_restart_are_told_to_the_service() -> None:
    session = working()
    take(session, REJOIN)
    moved = WELCOME.model_copy(update={"weights_port": 6000, "weights_version": 5})
    assert take(session, moved) == [Joined(moved), NewVersion(5)]


def test_a_silent_coordinator_is_sent_hellos_while_acknowledgements_still_count() -> None:
    session = working()
    grant(session, 1)
    session.finish(group(1), 0.0)
    assert "hello" not in kinds(session, 14.9)
    assert kinds(session, 15.0) == ["hello"]
    ack = Ack(position=1, attempt=1, outcome="accepted")
    assert take(session, ack, 16.0) == [GroupAcknowledged(ack)]
    assert due(session, 20.0) == [HELLO]
    with pytest.raises(UnreachableError, match="within 600 s"):
        session.messages_due(615.0)


# ---- draining


def test_a_drained_session_says_bye_once_its_last_group_is_acknowledged() -> None:
    session = working()
    grant(session, 1)
    session.drain(1.0, timeout_seconds=100.0, reason="SIGTERM")
    assert due(session, 1.0) == [Want(num_leases=0)]
    session.finish(group(1), 2.0)
    assert "group" in kinds(session, 2.0)
    take(session, Ack(position=1, attempt=1, outcome="accepted"), 3.0)
    assert due(session, 3.0) == [Bye(reason="SIGTERM")]
    assert session.state is ActorState.ENDED
    assert due(session, 4.0) == []


def test_a_lease_that_meets_a_draining_actor_goes_back_without_blame() -> None:
    session = working()
    grant(session, 1)
    session.drain(1.0, timeout_seconds=100.0, reason="SIGTERM")
    assert grant(session, 2, now=1.0) == []
    assert due(session, 1.0)[0] == LeaseFailed(position=2, attempt=1, reason="the actor drains", is_prompts_fault=False)


def test_a_drain_ends_at_its_deadline_whatever_is_held() -> None:
    session = working()
    grant(session, 1)
    session.drain(1.0, timeout_seconds=10.0, reason="SIGTERM")
    assert session.seconds_until_due(2.9) <= 10.0
    assert "bye" not in kinds(session, 10.9)
    assert due(session, 11.0) == [Bye(reason="SIGTERM")]


def test_a_second_drain_can_only_bring_the_end_forward() -> None:
    session = working()
    grant(session, 1)
    session.drain(0.0, timeout_seconds=10.0, reason="SIGTERM")
    session.drain(0.0, timeout_seconds=99.0, reason="again")
    assert kinds(session, 9.9) != ["bye"]
    assert due(session, 10.0) == [Bye(reason="SIGTERM")]


def test_a_draining_session_that_the_coordinator_forgot_joins_again() -> None:
    session = working()
    grant(session, 1)
    session.drain(0.0, timeout_seconds=100.0, reason="SIGTERM")
    take(session, REJOIN, 1.0)
    assert due(session, 1.0) == [HELLO.model_copy(update={"held": names(1)})]
    take(session, WELCOME, 2.0)
    assert session.state is ActorState.DRAINING
    assert "heartbeat" in kinds(session, 2.0)
