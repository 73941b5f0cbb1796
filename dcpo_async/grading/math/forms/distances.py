"""Inequalities about an absolute value: |x - 2| < 3 is the interval from -1 to 5."""

from fractions import Fraction
from functools import reduce

from dcpo_async.grading.math.arithmetic.digits import TooLargeError, evaluate
from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.forms.answers import INFINITY, MINUS_INFINITY, Interval, Region
from dcpo_async.grading.math.syntax.expressions import Apply, Expression, Number, Symbol, difference, free_symbols

Line = tuple[Fraction, Fraction]
"""Slope and offset."""
FLIPPED = {"<": ">", "≤": "≥", ">": "<", "≥": "≤"}


def region_by_distance(left: Expression, operator: str, right: Expression) -> Region | None:
    """The reals that an inequality |a·x + b| < c, or one the other way round, leaves; None for any other inequality.

    Args:
        operator: one of < ≤ > ≥.

    Example: |2x| ≤ 6 gives [-3, 3], and 1 < |x| everything below -1 or above 1.
    """
    if not _is_distance(left):
        left, operator, right = right, FLIPPED.get(operator, ""), left
    if not _is_distance(left) or operator not in FLIPPED or free_symbols(right) or not _is_positive(right):
        return None
    assert isinstance(left, Apply)
    (name,) = free_symbols(left)
    line = _line(left.arguments[0], name)
    if line is None or not line[0]:
        return None
    slope, offset = line
    radius, center = Apply("/", (right, Number(abs(slope)))), Number(-offset / slope)
    low, high = difference(center, radius), Apply("+", (center, radius))
    if operator in ("<", "≤"):
        return Region((Interval(low, high, operator == "≤", operator == "≤"),), name)
    below = Interval(MINUS_INFINITY, low, False, operator == "≥")
    return Region((below, Interval(high, INFINITY, operator == "≥", False)), name)


def _is_distance(expression: Expression) -> bool:
    return isinstance(expression, Apply) and expression.operator == "abs" and len(free_symbols(expression)) == 1


def _is_positive(expression: Expression) -> bool:
    try:
        value = evaluate(expression, {})
    except TooLargeError:
        return False
    return not isinstance(value, complex) and getattr(value, "imag", 0) == 0 and value.real > 0


def _line(expression: Expression, name: str) -> Line | None:
    """Slope and offset of a·x + b, both exact; None where it is no such line."""
    match expression:
        case Symbol(found) if found == name:
            return Fraction(1), Fraction(0)
        case Apply("+", terms):
            nothing: Line | None = (Fraction(0), Fraction(0))
            return reduce(_added, (_line(term, name) for term in terms), nothing)
        case Apply("-", (inner,)):
            return _scaled(_line(inner, name), Fraction(-1))
        case Apply("*" | "·", (one, other)):
            factor = exact_value(one)
            if factor is None:
                return _scaled(_line(one, name), exact_value(other))
            return _scaled(_line(other, name), factor)
        case Apply("/", (inner, divisor)):
            value = exact_value(divisor)
            return _scaled(_line(inner, name), 1 / value if value else None)
    value = exact_value(expression)
    return None if value is None else (Fraction(0), value)


def _added(one: Line | None, other: Line | None) -> Line | None:
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


def _scaled(line: Line | None, factor: Fraction | None) -> Line | None:
    return None if line is None or factor is None else (line[0] * factor, line[1] * factor)
