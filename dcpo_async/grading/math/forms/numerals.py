"""Numbers as people write them: whole ones of any length, decimals with a comma, decimals of other values."""

import re
from fractions import Fraction

from dcpo_async.grading.math.arithmetic.equality import differs_by_less
from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.syntax.expressions import Apply, Expression, Number, free_symbols

INTEGER = re.compile(r"[+-]?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)(?:\.0*)?", re.ASCII)
_COMMA = re.compile(r"-?(?:0,\d+|\d+,(?:\d{1,2}|\d{4,}))", re.ASCII)
_POINT = re.compile(r"-?\d*\.\d+", re.ASCII)
MIN_DECIMAL_DIGITS = 10
"""Significant digits from which on a decimal stands for a value that has no finite one."""
MAX_DECIMAL_PLACES = 50
NO_PLACES = -1


def as_integer(text: str) -> str:
    """Digits without sign of plus, separators and leading zeros: no conversion, so that any length is quick."""
    digits = text.partition(".")[0].replace(",", "").lstrip("+")
    sign = "-" if digits.startswith("-") else ""
    digits = digits.lstrip("-").lstrip("0")
    return sign + digits if digits else "0"


def with_points(one: str, other: str) -> tuple[str, str]:
    """A decimal with a comma, where the other side is one with a point and no separated thousands can be meant."""
    if _COMMA.fullmatch(one) and _POINT.fullmatch(other):
        return one.replace(",", "."), other
    if _COMMA.fullmatch(other) and _POINT.fullmatch(one):
        return one, other.replace(",", ".")
    return one, other


def is_numeral(expression: Expression) -> bool:
    """Whether an expression is a number as people write it: a decimal, a fraction, a power, a scientific notation."""
    match expression:
        case Number():
            return True
        case Apply("-" | "%", (inner,)):
            return is_numeral(inner)
        case Apply("/", (one, other)):
            return is_numeral(one) and is_numeral(other)
        case Apply("^", (base, Number(exponent))):
            return is_numeral(base) and exponent.denominator == 1
        case Apply("*", (Number(), Apply("^", (Number(base), exponent)))):
            return base == 10 and is_numeral(exponent)
    return False


def is_long_decimal_of(decimal: Expression, exact: Expression) -> bool:
    """Whether one is the other to all the digits that it has, at least ten, of a value that has no finite decimal."""
    if not isinstance(decimal, Number) or free_symbols(exact) or (places := _decimal_places(decimal.value)) < 1:
        return False
    if len(str(abs(int(decimal.value * 10**places)))) < MIN_DECIMAL_DIGITS:
        return False
    fraction = exact_value(exact)
    if fraction is not None and (_decimal_places(fraction) != NO_PLACES or not is_numeral(exact)):
        return False
    # Floating point gives no more than fifteen digits, whatever is printed.
    return differs_by_less(decimal.value, exact, max(Fraction(1, 10**places), abs(decimal.value) / 10**15))


def _decimal_places(value: Fraction) -> int:
    """The digits behind the point of a number; NO_PLACES where they have no end that counts."""
    return next((places for places in range(MAX_DECIMAL_PLACES) if 10**places % value.denominator == 0), NO_PLACES)
