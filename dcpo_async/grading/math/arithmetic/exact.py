"""Exact values, where only rational arithmetic is needed and no number grows too large."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

from dcpo_async.grading.math.syntax.expressions import CALLED, Apply, Expression, Number, Symbol

MAX_BITS = 20_000
"""Exact numbers with more are compared by their leading digits."""
MAX_EXACT_FACTORIAL = 3_000

Bindings = Mapping[str, Fraction]


def exact_value(expression: Expression, bindings: Bindings | None = None) -> Fraction | None:
    """The value where only rational arithmetic is needed and no number grows beyond MAX_BITS; else None."""
    match expression:
        case Number(value):
            return value if _bits(value) <= MAX_BITS else None
        case Symbol(name):
            return (bindings or {}).get(name)
        case Apply(operator, arguments):
            function = EXACT.get(operator)
            values = [exact_value(argument, bindings) for argument in arguments] if function else [None]
            if function is None or None in values:
                return None
            result = function(*values)
            return result if result is not None and _bits(result) <= MAX_BITS else None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_quotient(numerator: Fraction, denominator: Fraction) -> Fraction | None:
    return numerator / denominator if denominator else None


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MAX_BITS or (base == 0 and exponent <= 0):
        return None
    return Fraction(base ** int(exponent))


def _exact_factorial(argument: Fraction) -> Fraction | None:
    is_small = argument.denominator == 1 and 0 <= argument <= MAX_EXACT_FACTORIAL
    return Fraction(math.factorial(int(argument))) if is_small else None


def _exact_binomial(total: Fraction, chosen: Fraction) -> Fraction | None:
    is_small = total.denominator == chosen.denominator == 1 and 0 <= chosen <= total <= MAX_EXACT_FACTORIAL
    return Fraction(math.comb(int(total), int(chosen))) if is_small else None


def _exact_sum(*terms: Fraction) -> Fraction | None:
    total = Fraction(0)
    for term in terms:
        total += term
        if _bits(total) > MAX_BITS:
            return None
    return total


def _exact_call(place: int, *arguments: Fraction) -> Fraction | None:
    """A function that is not known: for each name another one, without structure, and of no two in either order."""
    value = sum((Fraction(19 + 2 * number) * argument for number, argument in enumerate(arguments)), Fraction(0))
    return _exact_quotient((17 + place) * value + 23 + 7 * place, (5 + 3 * place) * value + 31 + place * place)


EXACT: Mapping[str, Callable[..., Fraction | None]] = {
    "+": _exact_sum,
    "-": lambda argument: -argument,
    "*": lambda one, other: one * other,
    "·": lambda one, other: one * other,
    "/": _exact_quotient,
    "^": _exact_power,
    "!": _exact_factorial,
    "binom": _exact_binomial,
    "%": lambda argument: argument / 100,
    "abs": abs,
    "floor": lambda argument: Fraction(math.floor(argument)),
    "ceil": lambda argument: Fraction(math.ceil(argument)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    **{f"{name}()": partial(_exact_call, place) for place, name in enumerate(CALLED)},
}
