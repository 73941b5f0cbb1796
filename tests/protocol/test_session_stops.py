"""A learner that stops for a while, and an engine that stops for good."""

import pytest

from dcpo_async.errors import UnreachableError
from dcpo_async.protocol.events import Paused
from dcpo_async.protocol.messages import Bye, Hello, Reject, Want
from dcpo_async.protocol.transitions import ActorState
from tests.protocol.made_session import WELCOME, group, joining
from tests.protocol.test_session import due, grant, kinds, names, take, working


def test_a_learner_that_stops_is_asked_again_every_few_seconds_and_then_gets_all_that_was_kept() -> None:
    session = working()
    for position in (1, 2):
        grant(session, position)
    session.finish(group(1), 1.0)
    stopping = Reject(reason="stopping", detail="back soon")
    assert take(session, stopping, 1.0) == [Paused("back soon")]
    assert session.state is ActorState.REJOINING
    # Work goes on, nothing is sent but the question whether it is back.
    session.finish(group(2), 2.0)
    assert kinds(session, 2.0) == []
    [hello] = due(session, 6.0)
    assert isinstance(hello, Hello)
    assert hello.held == names(1, 2)
    assert take(session, stopping, 6.1) == []
    assert kinds(session, 11.0) == []
    assert kinds(session, 11.2) == ["hello"]
    take(session, WELCOME, 20.0)
    assert sorted(kinds(session, 20.0)) == ["group", "group", "heartbeat"]


def test_a_learner_that_never_comes_back_is_given_up_after_the_time_out() -> None:
    session = working()
    take(session, Reject(reason="stopping", detail="back soon"), 1.0)
    session.messages_due(600.9)
    with pytest.raises(UnreachableError, match="within 600 s"):
        session.messages_due(601.0)


def test_a_learner_that_answers_is_waited_for_without_end() -> None:
    session = working()
    for minute in range(120):
        take(session, Reject(reason="stopping", detail="back once there is room"), 60.0 * minute)
        session.messages_due(60.0 * minute + 30.0)
    with pytest.raises(UnreachableError, match="within 600 s"):
        session.messages_due(60.0 * 119 + 600.0)


def test_an_actor_that_joins_a_learner_which_waits_says_so_once() -> None:
    session = joining()
    waiting = Reject(reason="stopping", detail="back once there is room")
    assert take(session, waiting, 1.0) == [Paused("back once there is room")]
    assert take(session, waiting, 6.0) == []
    take(session, WELCOME, 11.0)
    assert take(session, waiting, 12.0) == [Paused("back once there is room")]


def test_a_session_that_takes_no_leases_gives_its_credit_back() -> None:
    session = working()
    session.takes_leases = False
    assert due(session, 1.0) == [Want(num_leases=0)]
    session.takes_leases = True
    assert due(session, 2.0) == [Want(num_leases=2)]


def test_what_an_engine_held_when_it_failed_is_told_at_its_end() -> None:
    session = working()
    grant(session, 1)
    session.drain(1.0, 0.0, "the engine has died", has_failed=True)
    assert due(session, 1.0) == [Bye(reason="the engine has died", has_failed=True)]


def test_an_actor_that_never_joined_can_leave() -> None:
    session = joining()
    session.drain(0.0, timeout_seconds=100.0, reason="SIGTERM")
    assert due(session, 0.0) == [Bye(reason="SIGTERM")]
    assert session.ended
