"""Which leases a session asks for: by places for responses, whatever group they are of."""

from dcpo_async.protocol.messages import Want
from tests.protocol.made_session import group, lease
from tests.protocol.test_session import due, grant, kinds, working


def test_places_are_those_of_responses_not_of_groups() -> None:
    session = working(capacity=6)
    for position in (1, 2, 3):
        grant(session, position)
    assert kinds(session, 1.0) == []
    session.response_ended(lease(1), 1)
    assert kinds(session, 1.0) == [], "one free place is less than a group"
    session.response_ended(lease(3), 1)
    assert due(session, 1.0) == [Want(num_leases=1)]
    assert (session.num_working, session.num_responses) == (3, 4)
    session.response_ended(lease(1), 1)
    session.finish(group(1), 1.0)
    assert (session.num_working, session.num_responses) == (2, 3)


def test_a_lease_given_back_frees_the_places_of_all_its_responses() -> None:
    session = working(capacity=4)
    grant(session, 1)
    session.response_ended(lease(1), 1)
    session.fail(lease(1), "too long", is_prompts_fault=True)
    assert session.num_responses == 0


def test_however_slow_one_response_of_each_is_only_so_many_groups_are_open() -> None:
    session = working(capacity=4)
    for position in range(1, 8):
        grant(session, position)
        session.response_ended(lease(position), 1)
    assert session.num_responses == 7
    session.capacity = 100
    assert due(session, 1.0) == [Want(num_leases=1)], "8 = 4 · groups_in_flight"
    grant(session, 8)
    session.capacity = 200
    assert kinds(session, 1.0) == []


def test_a_capacity_that_has_fallen_below_what_is_in_flight_leaves_no_room() -> None:
    session = working(capacity=4)
    grant(session, 1)
    grant(session, 2)
    session.capacity = 2
    assert due(session, 1.0) == []
    session.finish(group(1), 2.0)
    assert kinds(session, 2.0) == ["group"]
