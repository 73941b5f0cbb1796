from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeState
from learner.nodes.roster import SILENCE_SECONDS, Roster


def hello(node: int, session: str = "a") -> NodeHello:
    return NodeHello(session=session * 32, node=node, num_nodes=3, num_local=2, model="digest", versions=())


def beat(node: int, round_number: int, state: NodeState, session: str = "a", reason: str = "") -> NodeBeat:
    return NodeBeat(session=session * 32, node=node, round_number=round_number, state=state, reason=reason)


def both_there() -> Roster:
    """Two machines beside node 0, both idle at time 0."""
    roster = Roster(3)
    for node in (1, 2):
        roster.join(hello(node), f"machine-{node}", 0.0)
        assert roster.hear(beat(node, 0, "idle"), 0.0)
    return roster


def test_a_round_waits_for_every_machine_and_names_who_is_missing() -> None:
    roster = Roster(3)
    assert roster.missing(0.0) == "node 1 has not come yet; node 2 has not come yet"
    roster.join(hello(2), "machine-2", 0.0)
    assert roster.missing(0.0) == "node 1 has not come yet; node 2 (machine-2) is not ready yet"
    roster.join(hello(1), "machine-1", 0.0)
    for node in (1, 2):
        roster.hear(beat(node, 0, "idle"), 1.0)
    assert roster.missing(1.0) == ""
    assert roster.missing(1.0 + SILENCE_SECONDS + 1).startswith("node 1 (machine-1) was heard of 16 s ago")


def test_machines_are_told_the_round_until_it_ends() -> None:
    roster = both_there()
    assert roster.order().round_number == 0
    assert roster.begin_round(0.0) == 1
    assert roster.order().round_number == 1
    roster.end_round()
    assert roster.order().round_number == 0
    assert roster.begin_round(0.0) == 2


def test_a_round_is_lost_with_a_machine_that_fails_falls_silent_or_starts_anew() -> None:
    roster = both_there()
    roster.begin_round(0.0)
    for node in (1, 2):
        roster.hear(beat(node, 1, "running"), 1.0)
    assert roster.lost(1.0) == ""
    assert roster.lost(SILENCE_SECONDS + 2.0) == "node 1 (machine-1) says nothing for 16 s"
    roster.hear(beat(1, 1, "failed", reason="no memory"), 2.0)
    assert roster.lost(2.0) == "node 1 (machine-1): no memory"
    roster.join(hello(1, "b"), "machine-1", 3.0)
    assert roster.lost(3.0) == "node 1 (machine-1) was started anew"
    roster.end_round()
    assert roster.lost(3.0) == ""


def test_a_round_is_lost_for_good_with_a_machine_that_joins_again_in_the_middle_of_it() -> None:
    """After a silence of 15 s its ranks have ended; told of the same round, it starts others, whom nobody knows."""
    roster = both_there()
    roster.begin_round(0.0)
    for node in (1, 2):
        roster.hear(beat(node, 1, "running"), 20.0)
    roster.join(hello(1), "machine-1", 21.0)
    for now, number in ((21.1, 0), (22.1, 1)):
        roster.hear(beat(1, number, "running" if number else "idle"), now)
    assert roster.lost(22.2) == "node 1 (machine-1) has joined again, without its ranks of before"


def test_a_machine_that_does_not_start_its_ranks_is_named() -> None:
    roster = both_there()
    roster.begin_round(0.0)
    for now in (1.0, SILENCE_SECONDS + 1):
        for node in (1, 2):
            roster.hear(beat(node, 2 - node, "running" if node == 1 else "idle"), now)
    assert roster.lost(10.0) == ""
    assert roster.lost(SILENCE_SECONDS + 1) == "node 2 (machine-2) does not start its ranks"


def test_ranks_that_have_ended_well_lose_nothing() -> None:
    roster = both_there()
    roster.begin_round(0.0)
    for node in (1, 2):
        roster.hear(beat(node, 1, "running"), 1.0)
    assert not roster.is_over_for_all()
    for node in (1, 2):
        roster.hear(beat(node, 1, "ended"), 1.0)
    assert roster.is_over_for_all()
    assert roster.lost(1.0) == ""


def test_who_was_replaced_or_never_came_is_not_heard() -> None:
    roster = both_there()
    roster.join(hello(1, "b"), "machine-1", 1.0)
    assert not roster.hear(beat(1, 0, "idle", "a"), 1.0)
    assert roster.hear(beat(1, 0, "idle", "b"), 1.0)
    assert not Roster(3).hear(beat(1, 0, "idle"), 0.0)
