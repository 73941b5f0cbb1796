import pytest

from dcpo_async.evaluation.figures import figures_of
from tests.evaluation.made_results import response, result

RIGHT, WRONG = response(True), response(False)


def test_figures_of_one_set_by_hand() -> None:
    figures = figures_of(
        [[result("a", RIGHT, WRONG, WRONG, WRONG), result("b", RIGHT, RIGHT, RIGHT, RIGHT)]], "sampled"
    )
    assert figures is not None
    assert figures.samples == 4
    assert figures.accuracy.mean == pytest.approx((0.25 + 1) / 2)
    assert figures.pass_at == pytest.approx({1: (0.25 + 1) / 2, 2: (0.5 + 1) / 2, 4: 1.0})
    assert (figures.accuracy.low, figures.accuracy.high) == (0.25, 1.0)


def test_pass_at_1_is_the_mean_accuracy() -> None:
    figures = figures_of([[result("a", RIGHT, WRONG, WRONG), result("b", RIGHT, RIGHT, WRONG)]], "sampled")
    assert figures is not None
    assert figures.pass_at[1] == pytest.approx(figures.accuracy.mean)


def test_lengths_and_shares_count_every_response() -> None:
    cut = response(False, num_tokens=30, extracted=None, truncated=True)
    figures = figures_of([[result("a", RIGHT, cut), result("b", RIGHT, WRONG)]], "sampled")
    assert figures is not None
    assert (figures.response_length, figures.truncated, figures.no_answer) == (15.0, 0.25, 0.25)


def test_modes_are_told_apart() -> None:
    both = result("a", response(True, mode="greedy"), WRONG, WRONG)
    greedy, sampled = figures_of([[both]], "greedy"), figures_of([[both]], "sampled")
    assert greedy is not None
    assert sampled is not None
    assert (greedy.samples, greedy.accuracy.mean, greedy.pass_at) == (1, 1.0, {1: 1.0})
    assert (sampled.samples, sampled.accuracy.mean) == (2, 0.0)


def test_a_mode_that_was_left_out_has_no_figures() -> None:
    assert figures_of([[result("a", RIGHT)]], "greedy") is None


def test_the_average_over_sets_weighs_sets_not_problems() -> None:
    one = [result("a", RIGHT)]
    three = [result(name, response(False, num_tokens=40)) for name in ("b", "c", "d")]
    figures = figures_of([one, three], "sampled")
    assert figures is not None
    assert (figures.accuracy.mean, figures.response_length) == (0.5, 25.0)
