"""Reading expressions: precedence, what may be left out, what is refused."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.syntax.expressions import (
    Apply,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    free_symbols,
)
from dcpo_async.grading.math.syntax.parser import MAX_DEPTH, parse_expression
from dcpo_async.grading.math.syntax.tokens import clean, tokenize

X, TWO = Symbol("x"), Number(Fraction(2))


def parsed(text: str) -> Expression:
    return parse_expression(tokenize(clean(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2x", Apply("*", (TWO, X))),
        ("-x^2", Apply("-", (Apply("^", (X, TWO)),))),
        (r"\sqrt x", Apply("root", (TWO, X))),
        (r"\sin^2 x", Apply("^", (Apply("sin", (X,)), TWO))),
        (r"\sin^{-1} x", Apply("arcsin", (X,))),
        (r"\sin 2x", Apply("sin", (Apply("*", (TWO, X)),))),
        ("|x|", Apply("abs", (X,))),
        (r"x_{12}", Symbol("x_12")),
        (r"\lfloor x \rfloor", Apply("floor", (X,))),
        (r"x!!", Apply("!!", (X,))),
        (r"\log_2 x", Apply("log", (TWO, X))),
    ],
)
def test_an_expression_is_read_as_people_mean_it(text: str, expected: Expression) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac12", "1/2"),
        (r"\frac1{12}", "1/12"),
        (r"2\frac{1}{2}", "5/2"),
        ("-2 1/2", "-5/2"),
        (r"0.1\overline{6}", "1/6"),
        ("1/2/2", "1/4"),
        ("2^3^1", None),
        ("2^10", "1024"),
        ("1.5e-3", "3/2000"),
        (r"3\times10^2", "300"),
        ("5!", "120"),
        (r"\binom{5}{2}", "10"),
        ("1/0", None),
        ("0^0", None),
        ("2^{100000}", None),
    ],
)
def test_rational_values_are_exact(text: str, value: str | None) -> None:
    try:
        found = exact_value(parsed(text))
    except UnreadableError:
        found = None
    assert found == (None if value is None else Fraction(value))


@pytest.mark.parametrize("text", ["", "2 3", "x+", "(", "(x", r"\frac{1}", r"\unknown{x}", "x)", "_", "+"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        parsed(text)


def test_nesting_has_a_bound() -> None:
    assert parsed("(" * (MAX_DEPTH - 1) + "x" + ")" * (MAX_DEPTH - 1)) == X
    with pytest.raises(UnreadableError, match="nested deeper"):
        parsed("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1))


def test_constants_are_no_variables() -> None:
    assert free_symbols(parsed(r"\pi e i x y_1")) == {"x", "y_1"}


@st.composite
def spelled(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """An expression in LaTeX with the value that Python's own arithmetic gives it."""
    if depth == 0:
        number = draw(st.integers(0, 20))
        return str(number), Fraction(number)
    left, left_value = draw(spelled(depth - 1))
    right, right_value = draw(spelled(depth - 1))
    match draw(st.sampled_from(["+", "-", "*", "frac", "power"])):
        case "+":
            return f"({left}) + {right}", left_value + right_value
        case "-":
            return f"{left} - ({right})", left_value - right_value
        case "*":
            return rf"({left}) \cdot ({right})", left_value * right_value
        case "frac" if right_value:
            return rf"\frac{{{left}}}{{{right}}}", left_value / right_value
    return rf"\left({left}\right)^{{2}}", left_value**2


@given(spelled())
def test_values_agree_with_pythons_arithmetic(example: tuple[str, Fraction]) -> None:
    text, value = example
    assert exact_value(parsed(text)) == value
