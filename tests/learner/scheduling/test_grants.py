"""Whose turn it is, lease by lease."""

from learner.scheduling.grants import TOLD_AT_ONCE, Rotation, Untold


def turns(rotation: Rotation, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count and (session := rotation.first) is not None:
        rotation.granted(session)
        found.append(session)
    return found


def test_sessions_take_turns_until_their_credit_is_used() -> None:
    rotation = Rotation()
    rotation.want(b"a", 2)
    rotation.want(b"b", 1)
    assert turns(rotation, 5) == [b"a", b"b", b"a"]
    assert rotation.first is None


def test_leases_that_come_up_one_by_one_do_not_all_go_to_the_first_to_join() -> None:
    rotation = Rotation()
    found = []
    for _ in range(6):
        for session in (b"a", b"b", b"c"):
            rotation.want(session, 1 if session not in found[-2:] else 0)
        found += turns(rotation, 1)
    assert sorted(found) == [b"a", b"a", b"b", b"b", b"c", b"c"]


def test_new_credit_does_not_move_a_session_and_none_takes_it_out() -> None:
    rotation = Rotation()
    rotation.want(b"a", 1)
    rotation.want(b"b", 1)
    rotation.want(b"a", 5)
    assert (rotation.first, rotation.credit(b"a"), len(rotation)) == (b"a", 5, 2)
    rotation.want(b"a", 0)
    assert (list(rotation), rotation.credit(b"a")) == ([b"b"], 0)


def test_a_session_is_passed_over_or_called_without_losing_credit() -> None:
    rotation = Rotation()
    for session in (b"a", b"b", b"c"):
        rotation.want(session, 1)
    rotation.pass_over(b"a")
    rotation.call(b"c")
    assert list(rotation) == [b"c", b"b", b"a"]
    rotation.call(b"unknown")
    rotation.pass_over(b"unknown")
    assert len(rotation) == 3


def test_a_version_is_told_to_some_at_a_time_and_first_to_those_who_missed_the_one_before() -> None:
    names = [b"%d" % i for i in range(2 * TOLD_AT_ONCE + 1)]
    untold = Untold()
    untold.begin(names)
    assert untold.some() == names[:TOLD_AT_ONCE]
    untold.begin(names)
    told = []
    while untold:
        told.append(untold.some())
    assert [len(some) for some in told] == [TOLD_AT_ONCE, TOLD_AT_ONCE, 1]
    assert [name for some in told for name in some] == names[TOLD_AT_ONCE:] + names[:TOLD_AT_ONCE]
    assert untold.some() == []
