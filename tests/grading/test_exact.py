"""Comparison without algebra."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.grading.exact import compare_exactly


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("1,000", r"\$1000"),
        (r"\frac12", "0.5"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("042", "42"),
        (".5", "1/2"),
        ("5.", "5.0"),
        ("−7", "-7"),
        (r"10{,}000", "10000"),
        (r"60^\circ", "60"),
        ("$5$", "5"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
        ("x + 1", "x+1"),
    ],
)
def test_different_spellings_of_one_answer_are_equal(answer: str, reference: str) -> None:
    assert compare_exactly(answer, reference) is True
    assert compare_exactly(reference, answer) is True


@pytest.mark.parametrize(
    ("answer", "reference"), [("0.33", "1/3"), ("1000", "100"), ("-5", "5"), (r"\frac{2}{1}", r"\frac{1}{2}")]
)
def test_different_numbers_are_told_apart_without_algebra(answer: str, reference: str) -> None:
    assert compare_exactly(answer, reference) is False


@pytest.mark.parametrize("blank", ["", r"\text{ }", r"\,", "$$", "."])
def test_a_blank_answer_equals_nothing(blank: str) -> None:
    assert compare_exactly(blank, blank) is False


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("x+1", "1+x"),
        ("1 1/2", "11/2"),
        ("1/0", "1"),
        (r"50\%", "50"),
        ("1,23", "123"),
        ("²", "2"),
        ("10^3", "1000"),
    ],
)
def test_what_may_need_algebra_is_left_open(answer: str, reference: str) -> None:
    assert compare_exactly(answer, reference) is None


@given(st.fractions(), st.fractions())
def test_fractions_compare_as_fractions_do(left: Fraction, right: Fraction) -> None:
    spelled = rf"\frac{{{right.numerator}}}{{{right.denominator}}}"
    assert compare_exactly(str(left), spelled) is (left == right)
