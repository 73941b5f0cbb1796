"""Whom failures are blamed on, event by event."""

from learner.scheduling.blame import WAVE_SECONDS, Blame
from learner.scheduling.leases import SUSPECT_FALLS, LeaseTable, Slot

RETRY = 30.0


def fleet(*hosts: str, num_prompts: int = 4) -> tuple[LeaseTable, Blame]:
    """Visits at positions 0, 1, …, and a session of each host, which is called as its host."""
    table = LeaseTable([], next_position=0)
    for number in range(num_prompts):
        table.open_new(prompt_index=number, visit=1)
    blame = Blame(table, RETRY)
    for host in hosts:
        blame.join(host.encode(), host)
    return table, blame


def slot_of(table: LeaseTable, position: int) -> Slot:
    slot = table.get(position)
    assert slot is not None
    return slot


def fail(table: LeaseTable, blame: Blame, position: int, host: str, now: float = 0.0) -> int:
    """A host blames a prompt; how many failures the prompt has now."""
    slot = slot_of(table, position)
    blame.failed(slot, host.encode(), now)
    return slot.failures


def fall(table: LeaseTable, blame: Blame, host: str, *positions: int, now: float) -> list[int]:
    """The session of a host ends without a word while it holds these; their failures then."""
    held = [slot_of(table, position) for position in positions]
    for slot in held:
        table.lease(slot, host.encode(), 0, now)
    table.release_session(host.encode())
    blame.fell(held, host.encode(), now)
    return [slot.failures for slot in held]


# ---- failures that a host reports


def test_a_failure_counts_once_for_each_host_while_there_are_others_to_try() -> None:
    table, blame = fleet("a", "b", "c")
    assert [fail(table, blame, 0, host) for host in ("a", "a", "b", "a", "c")] == [1, 1, 2, 2, 3]


def test_in_a_fleet_of_one_host_its_failures_count_again() -> None:
    table, blame = fleet("a")
    assert [fail(table, blame, 0, "a") for _ in range(3)] == [1, 2, 3]


def test_a_lease_goes_to_another_host_at_once_and_back_to_the_same_one_only_later() -> None:
    table, blame = fleet("a", "b")
    fail(table, blame, 0, "a", now=100.0)
    slot = slot_of(table, 0)
    assert blame.may_lease(slot, b"b", 100.0)
    assert not blame.may_lease(slot, b"a", 100.0 + RETRY - 1)
    assert blame.may_lease(slot, b"a", 100.0 + RETRY)


def test_engines_of_one_machine_are_one_host() -> None:
    table, blame = fleet("a")
    blame.join(b"second engine", "a")
    fail(table, blame, 0, "a")
    assert not blame.may_lease(slot_of(table, 0), b"second engine", 1.0)


def test_a_host_that_fails_at_everything_is_not_believed_until_it_delivers() -> None:
    table, blame = fleet("a", "b")
    assert [fail(table, blame, position, "a") for position in (0, 1)] == [1, 1]
    assert not blame.is_doubted(b"a")
    assert fail(table, blame, 2, "a") == 0
    assert blame.is_doubted(b"a")
    assert [slot.failures for slot in table.open_slots] == [0, 0, 0, 0]
    assert fail(table, blame, 3, "a") == 0
    blame.delivered(b"a")
    assert not blame.is_doubted(b"a")
    table.open_new(9, 1)
    assert fail(table, blame, 4, "a") == 1


def test_what_a_host_reported_before_it_delivered_again_stands() -> None:
    table, blame = fleet("a", "b")
    for position in range(3):
        assert fail(table, blame, position, "a") == 1
        blame.delivered(b"a")
    assert [slot.failures for slot in table.open_slots] == [1, 1, 1, 0]


def test_a_refused_group_counts_against_no_prompt_but_the_lease_goes_elsewhere() -> None:
    table, blame = fleet("a", "b")
    slot = slot_of(table, 0)
    assert blame.failed(slot, b"a", 0.0, is_prompts_fault=False) == []
    assert (slot.failures, blame.may_lease(slot, b"a", 1.0), blame.may_lease(slot, b"b", 1.0)) == (0, False, True)


# ---- holders that fall


def test_a_prompt_whose_holders_fall_is_leased_apart_and_then_counted() -> None:
    table, blame = fleet("a", "b")
    now = 0.0
    for number in range(SUSPECT_FALLS):
        now += 2 * WAVE_SECONDS
        assert fall(table, blame, "ab"[number % 2], 0, 1, now=now) == [0, 0]
    slot, other = slot_of(table, 0), slot_of(table, 1)
    assert slot.is_suspect
    assert other.is_suspect
    table.lease(slot, b"a", 0, now)
    assert not blame.may_lease(other, b"a", now), "a session holds one suspect at a time"
    assert blame.may_lease(other, b"b", now)
    table.release_session(b"a")
    table.accept(1, 0)
    blame.delivered(b"b")
    counted = []
    for host in ("a", "b"):
        now += 2 * WAVE_SECONDS
        counted += fall(table, blame, host, 0, now=now)
    assert counted == [1, 2]


def test_a_wave_that_ends_sessions_whatever_they_hold_makes_no_suspects() -> None:
    hosts = [f"host-{number}" for number in range(12)]
    table, blame = fleet(*hosts, num_prompts=12)
    for wave in range(50):
        for number, host in enumerate(hosts):
            fall(table, blame, host, number, now=wave * 600.0 + number)
    # Only the first of each wave looks like a death of its own, and that is another one each time in a real fleet.
    assert [slot.position for slot in table.open_slots if slot.is_suspect] == [0]
    assert all(slot.failures <= 1 for slot in table.open_slots)


def test_a_prompt_that_kills_one_host_after_the_other_is_no_wave() -> None:
    table, blame = fleet("a", "b", "c")
    for number in range(SUSPECT_FALLS):
        fall(table, blame, "abc"[number % 3], 0, now=float(number))
    assert slot_of(table, 0).is_suspect


def test_a_host_on_which_every_engine_dies_quarantines_nothing() -> None:
    table, blame = fleet("a")
    now = 0.0
    for _ in range(SUSPECT_FALLS):
        now += 2 * WAVE_SECONDS
        fall(table, blame, "a", 0, 1, 2, 3, now=now)
    for _ in range(40):
        now += 2 * WAVE_SECONDS
        slot = table.next_to_lease(lambda slot, now=now: blame.may_lease(slot, b"a", now))[1]  # type: ignore[misc]
        assert slot is not None
        fall(table, blame, "a", slot.position, now=now)
        assert max(slot.failures for slot in table.open_slots) < 3
    assert blame.is_doubted(b"a")
