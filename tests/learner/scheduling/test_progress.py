"""Which leases get on and which actors are slow, by hand."""

import pytest

from learner.scheduling.leases import Slot, SlotState
from learner.scheduling.progress import MAX_HANDED_OVER, Pace, Progress

LONGEST, STALL = 1000, 120.0


def progress() -> Progress:
    """Responses of 1000 tokens at most; five batches open; eight leases are a fair share."""
    return Progress(LONGEST, STALL, batches_open=5, fair_share=8)


def works(progress: Progress, session: bytes, tokens_per_second: float, seconds: float = 60.0) -> None:
    """A session with four responses in flight, each this fast, that sends a heartbeat every 3 s."""
    for beat in range(int(seconds / 3) + 1):
        progress.heard(session, "generating", 4, 1, round(12 * tokens_per_second), now=3.0 * beat)


def lease(session: bytes = b"a", *, leased_at: float = 0.0, changed_at: float = 0.0) -> Slot:
    return Slot(0, 0, 1, attempt=1, state=SlotState.LEASED, holder=session, leased_at=leased_at, changed_at=changed_at)


def test_a_speed_is_tokens_by_seconds_of_responses_in_flight() -> None:
    found = progress()
    assert found.pace(b"a").speed is None
    works(found, b"a", 20.0)
    assert found.pace(b"a").speed == pytest.approx(20.0, rel=0.1)


def test_a_speed_counts_after_ten_seconds_at_work_or_a_group_that_is_finished() -> None:
    found = progress()
    works(found, b"a", 20.0, seconds=6.0)
    assert found.pace(b"a").speed is None
    found.finished(b"a", [100, 300], grown=0, age=10.0, now=7.0)
    assert found.pace(b"a").speed == 30.0


def test_time_without_leases_or_with_a_reason_to_stand_still_is_no_time_at_work() -> None:
    found = progress()
    for activity, num_held in (("idle", 0), ("waiting for weights", 3), ("updating", 3), ("starting", 0)):
        session = activity.encode()
        for beat in range(20):
            found.heard(session, activity, 0, num_held, 0, now=3.0 * beat)  # type: ignore[arg-type]
        assert found.pace(session).speed is None


def test_who_holds_leases_and_makes_nothing_has_a_speed_of_nought_whatever_it_says() -> None:
    found = progress()
    for beat in range(6):
        found.heard(b"hoarder", "idle", 0, 3, 0, now=3.0 * beat)
    assert found.pace(b"hoarder").speed == 0.0


def test_an_actor_is_slow_beside_the_median_of_the_fleet() -> None:
    found = progress()
    for session, speed in ((b"a", 20.0), (b"b", 22.0), (b"c", 11.5), (b"d", 9.0)):
        works(found, session, speed)
    found.look()
    assert list(found.slow()) == [b"d"]


def test_alone_or_among_its_like_nobody_is_slow() -> None:
    found = progress()
    for session in (b"a", b"b"):
        works(found, session, 0.3)
    found.look()
    assert found.slow() == {}


def test_a_lease_whose_actor_makes_nothing_goes_back_and_the_actor_gets_none_for_a_time_that_doubles() -> None:
    found, slot = progress(), lease()
    found.pace(b"a").activity = "generating"
    assert found.stalled(b"a", [slot], now=119.0) == []
    ((late, reason),) = found.stalled(b"a", [slot], now=120.0)
    assert late is slot
    assert reason == "its actor (generating) has made no token for 120 s and gets no lease for 120 s"
    assert found.allowed(b"a", 0, now=239.0) == 0
    assert found.allowed(b"a", 0, now=240.0) == 1, "what it has shown to finish"
    ((_, reason),) = found.stalled(b"a", [lease(leased_at=300.0, changed_at=300.0)], now=420.0)
    assert reason.endswith("gets no lease for 240 s")


def test_a_group_that_is_finished_wins_back_trust() -> None:
    found = progress()
    found.stalled(b"a", [lease()], now=120.0)
    found.finished(b"a", [10], grown=10, age=5.0, now=300.0)
    assert found.allowed(b"a", 0, now=300.0) == 3
    assert found.pace(b"a").strikes == 0


def test_an_actor_that_waits_for_weights_has_five_times_as_long() -> None:
    found, slot = progress(), lease()
    found.pace(b"a").activity = "waiting for weights"
    assert found.stalled(b"a", [slot], now=599.0) == []
    assert len(found.stalled(b"a", [slot], now=600.0)) == 1


def test_a_lease_that_stands_still_beside_others_that_grow_may_wait_for_a_place() -> None:
    found, still = progress(), lease(changed_at=0.0)
    works(found, b"a", 10.0)
    # The longest response takes 100 s; starts, weights and grading up to 600.
    assert found.stalled(b"a", [still, lease(leased_at=500.0, changed_at=690.0)], now=690.0) == []
    found_late = found.stalled(b"a", [still, lease(leased_at=600.0, changed_at=710.0)], now=710.0)
    assert [late.slot for late in found_late] == [still]
    assert found.pace(b"a").strikes == 0


def test_a_lease_that_grows_goes_back_only_when_its_holders_speed_explains_no_such_age() -> None:
    found = progress()
    works(found, b"a", 10.0)
    grows = lease(changed_at=899.0)
    assert found.stalled(b"a", [grows], now=899.0) == []
    grows.changed_at = 905.0
    ((_, reason),) = found.stalled(b"a", [grows], now=905.0)
    assert reason == "it is 905 s old, at 10 tokens/s the longest response takes 100 s"


def test_another_is_sooner_by_the_speeds_of_both_and_the_age_of_the_lease() -> None:
    found = progress()
    works(found, b"slow", 0.5)
    works(found, b"fast", 20.0)
    works(found, b"like it", 0.9)
    slot = lease(b"slow", leased_at=60.0)
    # 1000 tokens are typical at first: the slow one takes 2000 s for them, and the fast one 50.
    assert found.is_sooner(slot, b"fast", now=61.0)
    assert found.is_sooner(slot, b"fast", now=60.0 + 38 * 2000.0)
    assert not found.is_sooner(slot, b"fast", now=60.0 + 40 * 2000.0)
    assert not found.is_sooner(slot, b"like it", now=61.0)
    assert not found.is_sooner(slot, b"unknown", now=61.0)
    assert not found.is_sooner(lease(b"fast"), b"slow", now=61.0)
    slot.num_handed_over = MAX_HANDED_OVER
    assert not found.is_sooner(slot, b"fast", now=61.0)


def test_how_long_the_responses_of_a_lease_are_decides_nothing() -> None:
    found = progress()
    works(found, b"slow", 0.5)
    works(found, b"fast", 20.0)
    for tokens in (0, 10, 10_000):
        slot = lease(b"slow", leased_at=60.0, changed_at=600.0)
        slot.tokens = tokens
        assert found.is_sooner(slot, b"fast", now=600.0)
        assert found.stalled(b"slow", [slot], now=600.0) == []


def test_a_session_holds_its_fair_share_whatever_credit_it_claims() -> None:
    assert progress().allowed(b"a", num_held=0, now=0.0) == 8
    assert progress().allowed(b"a", num_held=6, now=0.0) == 2
    assert progress().allowed(b"a", num_held=9, now=0.0) == 0


def fleet_at_a_pace_of(batch_seconds: float, speed: float) -> Progress:
    """Beside two at 20 tokens/s; 1000 tokens are typical."""
    found = progress()
    for session, fast in ((b"a", 20.0), (b"b", 20.0)):
        works(found, session, fast)
    works(found, b"slow", speed)
    found.look()
    found.batches_filled(1, now=0.0)
    found.batches_filled(1, now=batch_seconds)
    return found


def test_a_slow_actor_gets_as_many_leases_as_it_finishes_in_time() -> None:
    # 200 s for a group, and five batches of 100 s until one waits for it: of two it finishes five in that time.
    found = fleet_at_a_pace_of(100.0, speed=5.0)
    assert found.allowed(b"slow", num_held=2, now=60.0) == pytest.approx(3, abs=1)
    assert found.allowed(b"a", num_held=0, now=60.0) == 8


def test_one_that_finishes_none_in_time_gets_one_now_and_then() -> None:
    found = fleet_at_a_pace_of(1.0, speed=0.3)
    assert found.allowed(b"slow", num_held=0, now=60.0) == 1
    found.granted(b"slow", now=60.0)
    assert found.allowed(b"slow", num_held=0, now=119.0) == 0
    assert found.allowed(b"slow", num_held=0, now=120.0) == 1
    found.granted(b"slow", now=120.0)
    assert found.allowed(b"slow", num_held=0, now=239.0) == 0


def test_a_session_that_joins_again_begins_anew() -> None:
    found = progress()
    works(found, b"a", 1.0)
    found.leave(b"a")
    assert found.pace(b"a") == Pace()
