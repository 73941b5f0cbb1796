"""Equality of expressions by exact arithmetic and by many digits."""

import pytest

from dcpo_async.grading.math.arithmetic.digits import TooLargeError, evaluate
from dcpo_async.grading.math.arithmetic.equality import are_equal, are_proportional
from dcpo_async.grading.math.syntax.expressions import Expression
from dcpo_async.grading.math.syntax.parser import parse_expression
from dcpo_async.grading.math.syntax.tokens import clean, tokenize


def parsed(text: str) -> Expression:
    return parse_expression(tokenize(clean(text)))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x+1)^2", "x^2+2x+2", False),
        (r"\sqrt{x^2}", "|x|", True),
        (r"\sqrt{x^2}", "x", False),
        (r"\sin^2 x + \cos^2 x + y", "1 + y", False),
        (r"\sin 2x", r"2 \sin x \cos x", True),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", True),
        (r"e^{i\pi} + 1", "0", True),
        ("e^{-100}", "0", False),
        ("10^{-45}", "0", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
        ("(-8)^{1/3}", "-2", True),
        (r"x + 10^{-30}", "x", False),
        ("1/0", "1/0", False),
        ("10^{10^{10}}", "10^{10^{10}}", False),
        ("(10^9)!", "1", False),
        (r"\sin(10^{10^6})", "0", False),
        ("x/0", "x/0", None),
        (r"\infty", "1", False),
    ],
)
def test_equality_of_expressions(left: str, right: str, expected: bool | None) -> None:
    assert are_equal(parsed(left), parsed(right)) is expected


@pytest.mark.parametrize(
    ("left", "right", "sign"),
    [("2x-2", "x-1", 1), ("2x-2", "1-x", -1), ("x-1", "x-2", 0), ("x", "y", 0), (r"\sqrt{x}/0", "x", None)],
)
def test_the_sign_of_a_constant_factor(left: str, right: str, sign: int | None) -> None:
    assert are_proportional(parsed(left), parsed(right)) == sign


@pytest.mark.parametrize(
    "text", ["9!!!!!!", "10^{10^{10^{10}}}", r"\ln 0", r"\vec{v}", r"\binom{10^9}{5}", r"\tan(10^{10^9})"]
)
def test_what_is_out_of_reach_is_not_computed(text: str) -> None:
    with pytest.raises(TooLargeError):
        evaluate(parsed(text), {})
