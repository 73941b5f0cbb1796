"""When a fetch that failed is tried again."""

import pytest

from actor.weights_follower import MAX_FAILURES, MAX_WITHOUT_ROOM, Retry
from dcpo_async.errors import NoRoomError, NotHereError, UnusableError, WeightsError


def test_what_can_never_succeed_is_not_tried_again() -> None:
    with pytest.raises(UnusableError, match="belongs to user 7"):
        Retry().seconds_after(UnusableError("/dev/shm/x belongs to user 7"), is_away=False)


def test_temporary_failures_are_tried_again_more_and_more_rarely_and_not_for_ever() -> None:
    retry = Retry()
    waits = [retry.seconds_after(NotHereError("not here"), is_away=False) for _ in range(MAX_FAILURES)]
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    with pytest.raises(WeightsError, match="not here"):
        retry.seconds_after(NotHereError("not here"), is_away=False)


def test_while_the_learner_is_away_failures_do_not_count() -> None:
    retry = Retry()
    assert {retry.seconds_after(WeightsError("silent"), is_away=True) for _ in range(100)} == {2.0}


def test_room_may_come_up_when_others_let_go_of_a_version_but_not_later() -> None:
    retry = Retry()
    assert [retry.seconds_after(NoRoomError("full"), is_away=False) for _ in range(MAX_WITHOUT_ROOM)] == [2.0] * 4
    with pytest.raises(NoRoomError, match="full"):
        retry.seconds_after(NoRoomError("full"), is_away=False)
