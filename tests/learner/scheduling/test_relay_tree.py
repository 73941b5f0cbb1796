"""The tree of relays: two children each, no cycles, and everyone reaches the origin, whoever comes and goes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from learner.scheduling.relay_tree import MAX_TAKEN_OUT_SECONDS, TAKEN_OUT_SECONDS, RelayTree


def tree_of(*members: str) -> RelayTree:
    """Members a, b, … with relays at A, B, …; those in upper case have none."""
    tree = RelayTree()
    for member in members:
        tree.join(member, member.upper() if member.islower() else "")
    return tree


def parents(tree: RelayTree, members: str, now: float = 0.0) -> str:
    """The parent of each member; a dot for the origin."""
    return "".join(tree.parent_of(member, now) or "." for member in members)


def test_machines_fill_the_tree_in_their_order() -> None:
    tree = tree_of(*"abcdefghijklmnop")
    assert parents(tree, "abcdefghijklmnop") == "..AABBCCDDEEFFGG"


def test_sixteen_machines_are_at_most_four_deep() -> None:
    tree = tree_of(*"abcdefghijklmnop")
    above = {member.upper(): tree.parent_of(member, 0.0) for member in "abcdefghijklmnop"}
    assert max(depth(above, machine) for machine in above) == 4


def test_several_processes_of_a_machine_count_once() -> None:
    tree = tree_of(*"abc")
    tree.join("second process of a", "A")
    assert tree.parent_of("second process of a", 0.0) == ""
    assert parents(tree, "abc") == "..A"
    tree.leave("a")
    assert parents(tree, "bc") == ".A"
    tree.leave("second process of a")
    assert parents(tree, "bc") == ".."


def test_the_last_machine_takes_the_place_of_one_that_leaves() -> None:
    tree = tree_of(*"abcdef")
    tree.leave("a")
    assert parents(tree, "bcdef") == ".FFB."


def test_machines_without_a_relay_are_leaves_in_the_free_places() -> None:
    tree = tree_of(*"XaYbZ")
    assert parents(tree, "abXYZ") == "..AAB"


def test_leaves_beyond_the_free_places_ask_the_origin() -> None:
    tree = tree_of(*"aWXYZ")
    assert parents(tree, "aWXYZ") == "..AA."


def test_a_member_that_names_another_relay_is_moved_with_it() -> None:
    tree = tree_of(*"abc")
    tree.join("a", "")
    assert parents(tree, "abc") == "C.."


def test_a_relay_that_was_taken_out_is_nobodys_parent_for_a_while() -> None:
    tree = tree_of(*"abc")
    assert tree.take_out("A", 10.0) == TAKEN_OUT_SECONDS
    assert parents(tree, "abc", 10.0) == "C.."
    assert tree.take_out("A", 11.0) == 0.0
    for leaf in "WXYZ":
        tree.join(leaf, "")
    assert parents(tree, "WXYZ", 9.0 + TAKEN_OUT_SECONDS) == "CBB."
    assert parents(tree, "WXYZ", 10.0 + TAKEN_OUT_SECONDS) == "CBBA"


def test_each_time_it_is_taken_out_for_twice_as_long_up_to_a_bound_and_joining_anew_forgives() -> None:
    tree, now, seconds = tree_of(*"ab"), 0.0, []
    for _ in range(6):
        tree.parent_of("a", now)
        seconds.append(tree.take_out("A", now))
        now += seconds[-1]
    assert seconds == [300.0, 600.0, 1200.0, 2400.0, MAX_TAKEN_OUT_SECONDS, MAX_TAKEN_OUT_SECONDS]
    tree.leave("a")
    tree.join("a", "A")
    assert tree.take_out("A", now) == TAKEN_OUT_SECONDS


def depth(above: dict[str, str], machine: str) -> int:
    seen = 1
    while machine := above[machine]:
        seen += 1
        assert seen <= len(above), "a cycle"
    return seen


Step = tuple[str, int, int]
STEPS = st.lists(st.tuples(st.sampled_from(["join", "leave", "out"]), st.integers(0, 11), st.integers(0, 8)))


@given(STEPS)
def test_whatever_happens_relays_have_two_children_at_most_and_everyone_reaches_the_origin(steps: list[Step]) -> None:
    tree, relay_of = RelayTree(), dict[int, str]()
    for now, (event, member, machine) in enumerate(steps):
        if event == "join":
            relay_of[member] = f"relay {machine}" if machine else ""
            tree.join(member, relay_of[member])
        elif event == "leave":
            relay_of.pop(member, None)
            tree.leave(member)
        else:
            tree.take_out(f"relay {machine}", 100.0 * now)
        above: dict[str, str] = {}
        for member_there, relay in relay_of.items():
            found = tree.parent_of(member_there, 100.0 * now)
            # All members of a machine are told the same.
            assert above.setdefault(relay or f"member {member_there}", found) == found
        children = Counter(parent for parent in above.values() if parent)
        assert max(children.values(), default=0) <= 2
        assert set(children) <= set(relay_of.values()), "a parent that is not there"
        assert all(depth(above, machine) <= len(above) for machine in above)
        assert not relay_of or "" in above.values()
