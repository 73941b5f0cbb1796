"""Groups that wait for their acknowledgement."""

from dcpo_async.protocol.conversion import group_to_message
from dcpo_async.protocol.outbox import Outbox
from dcpo_async.records import LeaseName
from tests.protocol.made_session import group


def holding(*positions: int) -> Outbox:
    outbox = Outbox(resend_seconds=5.0)
    for position in positions:
        outbox.put(*group_to_message(group(position)), now=0.0)
    return outbox


def due(outbox: Outbox, now: float) -> list[int]:
    return [message.position for message, _ in outbox.due(now)]


def test_a_group_is_due_at_once_and_then_after_longer_and_longer() -> None:
    outbox = holding(3)
    times = [now for now in range(200) if due(outbox, now)]
    assert times == [0, 5, 15, 35, 75, 115, 155, 195]


def test_an_acknowledged_group_is_forgotten_and_acknowledged_once() -> None:
    outbox = holding(3, 4)
    assert [outbox.acknowledge(LeaseName(3, 1)) for _ in range(2)] == [True, False]
    assert (list(outbox), len(outbox)) == ([LeaseName(4, 1)], 1)


def test_a_group_that_is_asked_for_is_due_at_once() -> None:
    outbox = holding(3, 4)
    due(outbox, 0)
    outbox.hurry(LeaseName(4, 1), 1.0)
    assert due(outbox, 1.0) == [4]


def test_a_new_coordinator_is_sent_all_with_new_patience() -> None:
    outbox = holding(3)
    for now in (0, 5, 15):
        due(outbox, now)
    outbox.hurry_all(16.0)
    assert [now for now in range(16, 40) if due(outbox, now)] == [16, 21, 31]
