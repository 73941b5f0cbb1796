"""The lease table, event by event."""

from dcpo_async.records import LeaseName
from learner.scheduling.leases import SUSPECT_FALLS, LeaseTable, Slot, SlotState


def table_with(count: int, *, session: bytes | None = b"a") -> LeaseTable:
    """Visits at positions 0, 1, 2, …; all leased to the session at time 0, if there is one."""
    table = LeaseTable([], next_position=0)
    for number in range(count):
        slot = table.open_new(prompt_index=10 + number, visit=1)
        if session is not None:
            table.lease(slot, session, weights_step=3, now=0.0)
    return table


def slot_of(table: LeaseTable, position: int) -> Slot:
    slot = table.get(position)
    assert slot is not None
    return slot


def name(position: int, attempt: int = 1) -> LeaseName:
    return LeaseName(position=position, attempt=attempt)


def test_a_lease_has_a_holder_and_the_first_fencing_token() -> None:
    slot = slot_of(table_with(1), 0)
    assert (slot.state, slot.holder, slot.attempt, slot.weights_step) == (SlotState.LEASED, b"a", 1, 3)


def test_a_new_visit_goes_out_when_none_was_given_back() -> None:
    assert table_with(3).next_to_lease() == (3, None)


def test_a_visit_that_was_given_back_goes_out_first_with_its_place_and_a_new_token() -> None:
    table = table_with(3)
    table.take_back(1)
    number, slot = table.next_to_lease()
    assert slot is not None
    assert (number, slot.position) == (1, 1)
    table.lease(slot, b"b", weights_step=4, now=1.0)
    assert (slot.attempt, slot.holder, slot.weights_step) == (2, b"b", 4)
    assert table.next_to_lease() == (3, None)


def test_the_number_of_a_visit_does_not_count_those_that_are_trained() -> None:
    table = table_with(3)
    table.accept(0, weights_step=3)
    table.remove([0])
    table.take_back(2)
    assert table.next_to_lease() == (1, slot_of(table, 2))


def test_a_lost_session_gives_back_all_its_leases_and_nobody_elses() -> None:
    table = table_with(2)
    table.lease(table.open_new(99, 1), b"b", weights_step=0, now=0.0)
    assert [slot.position for slot in table.release_session(b"a")] == [0, 1]
    assert [slot.state for slot in table.open_slots] == [SlotState.WAITING, SlotState.WAITING, SlotState.LEASED]


def test_a_lease_lives_as_long_as_heartbeats_list_it() -> None:
    table = table_with(2)
    table.heartbeat(b"a", [name(0)], [0], now=10.0)
    assert table.release_unlisted(now=15.5, silence_seconds=15.0) == 1
    assert [slot.state for slot in table.open_slots] == [SlotState.LEASED, SlotState.WAITING]


def test_a_heartbeat_that_names_the_lease_of_another_or_an_old_token_keeps_nothing_alive() -> None:
    table = table_with(1)
    table.heartbeat(b"b", [name(0)], [0], now=10.0)
    table.heartbeat(b"a", [name(0, attempt=2), name(7)], [0, 0], now=10.0)
    assert table.release_unlisted(now=15.5, silence_seconds=15.0) == 1


def test_a_visit_that_may_not_go_to_this_session_is_passed_over_for_the_next_one() -> None:
    table = table_with(3)
    table.take_back(0)
    table.take_back(1)
    assert table.next_to_lease(lambda slot: slot.position != 0) == (1, slot_of(table, 1))
    assert table.next_to_lease(lambda slot: False) == (3, None)
    assert table.next_to_lease() == (0, slot_of(table, 0))


def test_suspects_go_out_after_the_others_that_were_given_back_and_in_turn() -> None:
    table = table_with(3)
    table.release_session(b"a")
    for position in (0, 1):
        slot_of(table, position).falls = SUSPECT_FALLS
    slot_of(table, 0).failures = 1
    order = []
    for _ in range(3):
        slot = table.next_to_lease()[1]
        assert slot is not None
        order.append(slot.position)
        table.lease(slot, b"b", weights_step=3, now=1.0)
    assert order == [2, 1, 0]


def test_a_session_that_joins_again_takes_back_what_nobody_else_has_got() -> None:
    table = table_with(3)
    table.release_session(b"a")
    slot = slot_of(table, 0)
    table.lease(slot, b"b", weights_step=4, now=1.0)
    table.reclaim(b"a", [name(0), name(1), name(2, attempt=9)], now=2.0)
    assert [slot.holder for slot in table.open_slots] == [b"b", b"a", None]
    assert slot_of(table, 1).listed_at == 2.0


def test_a_lease_of_before_a_restart_is_taken_back_by_its_holder() -> None:
    table = LeaseTable([Slot(4, 0, 1, attempt=2, state=SlotState.LEASED)], next_position=5)
    table.reclaim(b"a", [name(4, attempt=2)], now=1.0)
    table.heartbeat(b"a", [name(4, attempt=2)], [0], now=20.0)
    assert table.release_unlisted(now=30.0, silence_seconds=15.0) == 0


def test_an_accepted_group_is_nobodys_lease_and_cannot_be_taken_back() -> None:
    table = table_with(1)
    table.accept(0, weights_step=2)
    table.reclaim(b"a", [name(0)], now=1.0)
    slot = slot_of(table, 0)
    assert (slot.state, slot.holder, slot.weights_step) == (SlotState.ACCEPTED, None, 2)


def test_a_prompt_is_open_until_its_visit_is_accepted_or_removed() -> None:
    table = table_with(2)
    assert table.is_prompt_open(10)
    table.accept(0, weights_step=0)
    table.remove([1])
    assert not table.is_prompt_open(10)
    assert not table.is_prompt_open(11)


def test_a_visit_that_was_given_back_twice_goes_out_once() -> None:
    table = table_with(1)
    table.release_session(b"a")
    table.reclaim(b"a", [name(0)], now=1.0)
    table.release_session(b"a")
    _, slot = table.next_to_lease()
    assert slot is not None
    table.lease(slot, b"a", weights_step=0, now=2.0)
    assert table.next_to_lease() == (1, None)


def test_a_skipped_position_stays_empty() -> None:
    table = table_with(1)
    table.skip_position()
    assert table.open_new(50, 1).position == 2
    assert table.get(1) is None


def test_thousands_of_open_visits_are_leased_in_linear_time() -> None:
    table = LeaseTable([Slot(i, i, 1, state=SlotState.ACCEPTED) for i in range(20_000)], next_position=20_000)
    for number in range(20_000):
        assert table.next_to_lease()[1] is None
        assert not table.is_prompt_open(20_000 + number)
        table.lease(table.open_new(20_000 + number, 1), b"a", weights_step=0, now=0.0)
    assert sum(slot.holder == b"a" for slot in table.open_slots) == 20_000


def test_heartbeats_tell_by_how_many_tokens_the_leases_of_a_session_have_grown() -> None:
    table = table_with(2)
    assert table.heartbeat(b"a", [name(0), name(1)], [5, 0], now=1.0) == 5
    assert table.heartbeat(b"a", [name(0), name(1)], [5, 7], now=2.0) == 7
    assert table.heartbeat(b"b", [name(0)], [100], now=3.0) == 0
    # Begun anew, as after a start of the engine: that is a sign of work too.
    assert table.heartbeat(b"a", [name(0)], [2], now=4.0) == 0
    assert [(slot.tokens, slot.changed_at) for slot in table.open_slots] == [(2, 4.0), (7, 2.0)]


def test_a_lease_that_was_taken_back_goes_to_others_first_and_its_holder_cannot_claim_it() -> None:
    table = table_with(2)
    slot = slot_of(table, 1)
    table.take_back(slot.position, shun_until=40.0)
    assert table.next_to_lease() == (1, slot)
    assert slot.is_shunning(b"a", now=39.0)
    assert not slot.is_shunning(b"b", now=11.0)
    assert not slot.is_shunning(b"a", now=40.0)
    table.reclaim(b"a", [name(1)], now=11.0)
    assert slot.state is SlotState.WAITING


def test_leases_are_found_by_their_holder() -> None:
    table = table_with(3)
    table.take_back(1)
    table.lease(slot_of(table, 1), b"b", weights_step=0, now=1.0)
    table.accept(0, weights_step=0)
    assert {session: list(slots) for session, slots in table.held.items()} == {b"a": [2], b"b": [1]}
    table.release_session(b"a")
    table.remove([1])
    assert not table.held
