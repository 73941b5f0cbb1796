"""Values to many digits, with bounds on every size."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

from mpmath import mp

from dcpo_async.grading.math.arithmetic.exact import MAX_BITS, Bindings
from dcpo_async.grading.math.syntax.expressions import CALLED, Apply, Expression, Number, Symbol

MAX_MAGNITUDE_BITS = 10_000_000
"""Numbers beyond 2 to this power are not computed."""
MAX_FACTORIAL = 1_000_000
MAX_ANGLE_BITS = 200
"""Reducing a larger angle takes as many digits as it has."""
DIGITS = 60
TOLERANCE = mp.mpf(10) ** -40

# Of its own, so that nobody else's precision matters.
numbers = mp.clone()
numbers.dps = DIGITS

Value = Any
"""An mpmath number, real or complex."""


class TooLargeError(Exception):
    """A value beyond what is computed, or one that is not defined; never leaves this folder."""


def evaluate(expression: Expression, bindings: Bindings, peak: list[int] | None = None) -> Value:
    """The value to DIGITS digits, real or complex; raises TooLargeError where there is none or it is out of reach.

    Args:
        peak: gets the bits before the point, or noughts behind it, of the largest or tiniest number on the way.
    """
    try:
        value = _evaluate(expression, bindings, [0] if peak is None else peak)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise TooLargeError(str(error)) from None
    if not numbers.isfinite(value):
        raise TooLargeError("not finite")
    return value


def _evaluate(expression: Expression, bindings: Bindings, peak: list[int]) -> Value:
    match expression:
        case Number(value):
            return _rational(value)
        case Symbol(name) if name in bindings:
            return _rational(bindings[name])
        case Symbol(name):
            return _constant(name)
        case Apply(operator, arguments):
            values = [_evaluate(argument, bindings, peak) for argument in arguments]
            function = _FUNCTIONS.get(operator)
            if function is None:
                raise TooLargeError(f"no value for {operator}")
            value = function(*values)
            peak[0] = max(peak[0], size := _magnitude(value))
            if size > MAX_MAGNITUDE_BITS:
                raise TooLargeError(f"{operator} gives a number of {size} bits")
            return value


def is_close(one: Value, other: Value) -> bool:
    """Whether two values differ by no more than their last digits do."""
    return bool(abs(one - other) <= TOLERANCE * max(abs(one), abs(other)))


def _rational(value: Fraction) -> Value:
    return numbers.mpf(value.numerator) / value.denominator


def _constant(name: str) -> Value:
    match name:
        case "pi":
            return +numbers.pi
        case "e":
            return +numbers.e
        case "i":
            return numbers.j
    raise TooLargeError(f"no value for {name}")


def _magnitude(value: Value) -> int:
    """Bits before the point; hugely negative for tiny numbers, which are as hard to handle."""
    return 0 if value == 0 else abs(int(numbers.mag(value)))


def _power(base: Value, exponent: Value) -> Value:
    if base != 0 and abs(exponent) * max(_magnitude(base), 1) > MAX_MAGNITUDE_BITS:
        raise TooLargeError("a power out of reach")
    if _is_odd_root(exponent) and numbers.im(base) == 0 and base < 0:
        return -numbers.power(-base, exponent)
    return numbers.power(base, exponent)


def _is_odd_root(exponent: Value) -> bool:
    """Whether an exponent is 1/3, 1/5 and so on: negative numbers have real roots of these."""
    inverse = 1 / exponent if exponent != 0 else exponent
    return bool(numbers.isint(numbers.nint(inverse)) and is_close(inverse, numbers.nint(inverse)) and inverse % 2 == 1)


def _root(index: Value, radicand: Value) -> Value:
    return numbers.sqrt(radicand) if index == 2 else _power(radicand, 1 / index)


def _factorial(argument: Value) -> Value:
    if abs(argument) > MAX_FACTORIAL:
        raise TooLargeError("a factorial out of reach")
    return numbers.factorial(argument)


def _double_factorial(argument: Value) -> Value:
    if not numbers.isint(argument) or not 0 <= argument <= MAX_FACTORIAL:
        raise TooLargeError("a double factorial out of reach")
    return numbers.fac2(argument)


def _binomial(total: Value, chosen: Value) -> Value:
    if max(abs(total), abs(chosen)) > MAX_FACTORIAL:
        raise TooLargeError("a binomial coefficient out of reach")
    return numbers.binomial(total, chosen)


def _of_angle(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    def bounded(angle: Value) -> Value:
        if _magnitude(angle) > MAX_ANGLE_BITS and angle != 0:
            raise TooLargeError("an angle out of reach")
        return function(angle)

    return bounded


def _call(place: int, *arguments: Value) -> Value:
    value = numbers.fsum((19 + 2 * number) * argument for number, argument in enumerate(arguments))
    return ((17 + place) * value + 23 + 7 * place) / ((5 + 3 * place) * value + 31 + place * place)


def _log(base: Value, argument: Value) -> Value:
    return numbers.log(argument) / numbers.log(base)


def _whole(function: Callable[..., int]) -> Callable[..., Value]:
    def of_integers(*values: Value) -> Value:
        if not all(numbers.isint(value) and _magnitude(value) <= MAX_BITS for value in values):
            raise TooLargeError("defined for integers alone")
        return numbers.mpf(function(*(int(value) for value in values)))

    return of_integers


def _real(function: Callable[..., Value]) -> Callable[..., Value]:
    def of_reals(*values: Value) -> Value:
        if any(numbers.im(value) != 0 for value in values):
            raise TooLargeError("defined for real numbers alone")
        return function(*(numbers.re(value) for value in values))

    return of_reals


_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "+": lambda *terms: numbers.fsum(terms),
    "-": lambda argument: -argument,
    "*": lambda one, other: one * other,
    "·": lambda one, other: one * other,
    "/": lambda numerator, denominator: numerator / denominator,
    "^": _power,
    "root": _root,
    "!": _factorial,
    "!!": _double_factorial,
    "binom": _binomial,
    "%": lambda argument: argument / 100,
    "°": lambda argument: argument * numbers.pi / 180,
    "abs": abs,
    "floor": _real(numbers.floor),
    "ceil": _real(numbers.ceil),
    "max": _real(lambda *values: max(values)),
    "min": _real(lambda *values: min(values)),
    "gcd": _whole(math.gcd),
    "lcm": _whole(math.lcm),
    "ln": numbers.log,
    "log": _log,
    "exp": _of_angle(numbers.exp),
    **{
        name: _of_angle(getattr(numbers, name))
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    },
    **{f"{name}()": partial(_call, place) for place, name in enumerate(CALLED)},
    **{f"arc{name}": getattr(numbers, f"a{name}") for name in ("sin", "cos", "tan")},
}
