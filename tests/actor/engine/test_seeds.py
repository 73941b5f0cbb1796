from actor.engine.seeds import group_seed


def test_the_worked_example() -> None:
    assert group_seed(7, "p", 1) == 3856273325243849225


def test_run_prompt_and_visit_each_change_the_seed() -> None:
    seeds = {group_seed(7, "p", 1), group_seed(8, "p", 1), group_seed(7, "q", 1), group_seed(7, "p", 2)}
    assert len(seeds) == 4


def test_a_digit_cannot_move_from_the_seed_to_the_visit() -> None:
    assert group_seed(1, "p", 11) != group_seed(11, "p", 1)


def test_seeds_leave_room_for_the_responses_below_the_63_bits_that_engines_take() -> None:
    assert all(0 <= group_seed(run, "p", 1) < 2**62 for run in range(1000))
