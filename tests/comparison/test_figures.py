"""Means, intervals and curves across runs, against numbers worked by hand and tables of Student's distribution."""

import pytest

from dcpo_async.comparison.figures import (
    Curve,
    Measured,
    across_enough_runs,
    across_runs,
    difference,
    mean_curve,
    t_quantile,
    value_at,
    written,
)
from dcpo_async.errors import AlgorithmError


def curve(points: dict[float, float], bound: float | None = None) -> Curve:
    values = [Measured(y) if bound is None else Measured(y, y - bound, y + bound) for y in points.values()]
    return Curve(tuple(points), tuple(values))


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-5)


def test_no_degrees_of_freedom_have_no_quantile() -> None:
    with pytest.raises(AlgorithmError, match="0 degrees of freedom"):
        t_quantile(0)


def test_two_runs_have_a_mean_and_a_wide_interval() -> None:
    # s = 0.1·√2, s/√2 = 0.1, t = 12.7062.
    found = across_runs([0.2, 0.4])
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.3 - 1.27062, 0.3 + 1.27062), abs=1e-5)


def test_three_runs_have_a_narrower_one() -> None:
    # s = 1, s/√3 = 0.57735, t = 4.30265.
    found = across_runs([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - 2.48414, 2.0 + 2.48414), abs=1e-5)


def test_one_run_has_no_interval_and_no_run_no_mean() -> None:
    assert across_runs([0.5]) == Measured(0.5, None, None)
    with pytest.raises(AlgorithmError, match="no runs"):
        across_runs([])


def test_a_curve_is_interpolated_between_its_points_with_its_bounds_and_ends_with_them() -> None:
    found = curve({10: 0.2, 20: 0.4, 40: 0.0}, bound=0.1)
    assert found.at(10) == Measured(0.2, 0.1, 0.30000000000000004)
    middle = found.at(15)
    assert middle is not None
    assert (middle.mean, middle.low, middle.high) == pytest.approx((0.3, 0.2, 0.4))
    assert found.at(40) is found.values[2]
    assert found.at(9.9) is None
    assert found.at(40.1) is None
    assert Curve((), ()).at(0) is None


def test_a_curve_without_bounds_has_none_between_its_points() -> None:
    assert curve({0: 0.0, 4: 1.0}).at(1) == Measured(0.25)


def test_a_step_of_a_curve_has_the_first_of_its_values() -> None:
    assert curve({1: 0.1, 2: 0.5}).at(2) == Measured(0.5)
    assert Curve((1, 1, 2), (Measured(0.1), Measured(0.3), Measured(0.5))).at(1) == Measured(0.1)


def test_a_value_of_several_runs_needs_all_of_them() -> None:
    runs = [curve({0: 0.0, 10: 0.4}), curve({0: 0.0, 20: 0.4})]
    found = value_at(runs, 10)
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3 - 1.27062, abs=1e-5)
    assert value_at(runs, 11) is None
    assert value_at([], 0) is None


def test_a_value_of_one_run_has_its_own_interval() -> None:
    assert value_at([curve({0: 0.5}, bound=0.25)], 0) == Measured(0.5, 0.25, 0.75)


def test_the_mean_of_curves_stands_where_one_was_measured_and_all_have_values() -> None:
    found = mean_curve([curve({0: 0.0, 10: 1.0, 20: 1.0}), curve({4: 0.4, 12: 0.8})])
    assert found.x == (4, 10, 12)
    assert [value.mean for value in found.values] == pytest.approx([0.4, 0.85, 0.9])


def test_the_mean_of_one_curve_is_that_curve() -> None:
    one = curve({0: 0.0, 10: 1.0}, bound=0.1)
    assert mean_curve([one]) == one
    assert mean_curve([]) == Curve((), ())


def test_figures_are_written_with_their_interval_in_any_format_and_unit() -> None:
    assert written(Measured(0.931, 0.91, 0.95), scale=100.0) == "93.1 [91.0, 95.0]"
    assert written(Measured(0.05, -0.02, 0.12), "+.1f", 100.0, " %") == "+5.0 [-2.0, +12.0] %"
    assert written(Measured(12.34), ".0f") == "12"
    assert written(None, ".3f", unit=" %") == "–"


def test_fewer_than_three_runs_have_no_interval_that_says_anything() -> None:
    assert across_enough_runs([0.2, 0.4]) == Measured(pytest.approx(0.3))
    assert across_enough_runs([1.0, 2.0, 3.0]) == across_runs([1.0, 2.0, 3.0])
    assert difference([1.0, 2.0, 3.0], [1.0, 1.0], is_paired=False) == Measured(1.0)


def test_a_difference_has_welchs_interval_and_by_seed_students() -> None:
    found = difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], is_paired=False)
    # s²/n = 1/3 on both sides, 4 degrees of freedom, t = 2.77645.
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - 2.26696, 2.0 + 2.26696), abs=1e-4)
    assert difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], is_paired=True) == Measured(2.0, 2.0, 2.0)
    # Sides of different spread: 2 degrees of freedom and a little, rounded down.
    wide = difference([0.0, 10.0, 20.0], [0.0, 0.1, 0.2], is_paired=False)
    half = 4.30265 * (100 / 3 + 0.01 / 3) ** 0.5
    assert wide.low is not None
    assert wide.mean - wide.low == pytest.approx(half, rel=1e-4)


def test_a_difference_of_nothing_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="no runs"):
        difference([], [1.0], is_paired=False)
