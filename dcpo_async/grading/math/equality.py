"""Decides whether two expressions are equal: exactly where they are rational, else to many digits at sample points."""

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from mpmath import mp

from dcpo_async.grading.math.expressions import CONSTANT_NAMES, Apply, Expression, Number, Symbol, free_symbols, nodes

MAX_BITS = 20_000
"""Exact numbers with more are compared by their leading digits."""
MAX_MAGNITUDE_BITS = 10_000_000
"""Numbers beyond 2 to this power are not computed."""
MAX_EXACT_FACTORIAL = 3_000
MAX_FACTORIAL = 1_000_000
MAX_ANGLE_BITS = 200
"""Reducing a larger angle takes as many digits as it has."""
DIGITS = 60
TOLERANCE = mp.mpf(10) ** -40
NUM_POINTS = 6
MIN_POINTS = 2

# Of its own, so that nobody else's precision matters.
_numbers = mp.clone()
_numbers.dps = DIGITS

Bindings = Mapping[str, Fraction]
Value = Any
"""An mpmath number, real or complex."""


class TooLargeError(Exception):
    """A value beyond what is computed, or one that is not defined; never leaves this folder."""


def are_equal(left: Expression, right: Expression) -> bool | None:
    """Whether two expressions are equal as functions of the same variables; None where no point tells.

    Variables that only one side has make them differ, even where they cancel. Points at which both are real decide;
    where there are none, complex values do. Bounded time: nothing is expanded or simplified.

    Example: (x+1)^2 and x^2+2x+1 are equal; x and sqrt(x^2) are not; sqrt(8) and 2 sqrt(2) are.
    """
    names = free_symbols(left)
    if names != free_symbols(right):
        return False
    if not names:
        return _agree_at(left, right, {})
    num_known = 0
    for bindings in _points(sorted(names)):
        agrees = _agree_at(left, right, bindings)
        if agrees is False:
            return False
        num_known += agrees is True
    return True if num_known >= MIN_POINTS else None


def are_proportional(left: Expression, right: Expression) -> int | None:
    """The sign of the constant c in left = c·right; 0 where there is none, None where no point tells.

    Example: 2x - 2 and 1 - x give -1.
    """
    names = free_symbols(left)
    if names != free_symbols(right):
        return 0
    ratios = []
    for bindings in _points(sorted(names)) if names else ({},):
        try:
            upper, lower = evaluate(left, bindings), evaluate(right, bindings)
        except TooLargeError:
            continue
        if lower == 0:
            return None if upper == 0 else 0
        ratios.append(upper / lower)
    if len(ratios) < (MIN_POINTS if names else 1):
        return None
    if not all(_is_close(ratio, ratios[0]) for ratio in ratios) or abs(_numbers.im(ratios[0])) > TOLERANCE:
        return 0
    return int(_numbers.sign(_numbers.re(ratios[0])))


def exact_value(expression: Expression, bindings: Bindings | None = None) -> Fraction | None:
    """The value where only rational arithmetic is needed and no number grows beyond MAX_BITS; else None."""
    match expression:
        case Number(value):
            return value if _bits(value) <= MAX_BITS else None
        case Symbol(name):
            return (bindings or {}).get(name)
        case Apply(operator, arguments):
            function = _EXACT.get(operator)
            values = [exact_value(argument, bindings) for argument in arguments] if function else [None]
            if function is None or None in values:
                return None
            result = function(*values)
            return result if result is not None and _bits(result) <= MAX_BITS else None


def evaluate(expression: Expression, bindings: Bindings) -> Value:
    """The value to DIGITS digits, real or complex; raises TooLargeError where there is none or it is out of reach."""
    try:
        value = _evaluate(expression, bindings)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise TooLargeError(str(error)) from None
    if not _numbers.isfinite(value):
        raise TooLargeError("not finite")
    return value


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Rational points without structure: below and above 1, well above, and the same again with negative values."""
    for point in range(NUM_POINTS):
        first = Fraction((311, 1009, 3571)[point % 3], 701 + 97 * point)
        is_signed = point >= NUM_POINTS // 2
        yield {
            name: (first + Fraction(place * 89, 503)) * (-1 if is_signed and (place + point) % 2 == 0 else 1)
            for place, name in enumerate(names)
        }


def _agree_at(left: Expression, right: Expression, bindings: Bindings) -> bool | None:
    exact_left, exact_right = exact_value(left, bindings), exact_value(right, bindings)
    if exact_left is not None and exact_right is not None:
        return exact_left == exact_right
    try:
        one, other = evaluate(left, bindings), evaluate(right, bindings)
    except TooLargeError:
        return None if bindings else False
    if bindings and not (_is_real(one) and _is_real(other)) and not _has_i(left, right):
        return None
    if not bindings and _is_rational(left) and _is_rational(right):
        # Too large to be exact: that leading digits agree proves nothing.
        return left == right
    return _is_close(one, other) or (_vanishes(left, bindings, one) and _vanishes(right, bindings, other))


def _is_rational(expression: Expression) -> bool:
    match expression:
        case Symbol(name):
            return name not in CONSTANT_NAMES
        case Apply("^", (base, exponent)):
            value = exact_value(exponent)
            return value is not None and value.denominator == 1 and _is_rational(base)
        case Apply(operator, arguments):
            return operator in _EXACT and all(map(_is_rational, arguments))
    return True


def _is_close(one: Value, other: Value) -> bool:
    return bool(abs(one - other) <= TOLERANCE * max(abs(one), abs(other)))


def _is_real(value: Value) -> bool:
    return bool(abs(_numbers.im(value)) <= TOLERANCE * abs(value))


def _has_i(*expressions: Expression) -> bool:
    return any(node == Symbol("i") for expression in expressions for node in nodes(expression))


def _vanishes(expression: Expression, bindings: Bindings, value: Value) -> bool:
    """Whether a value is 0 but for rounding, which more digits make smaller; that of a small number stays."""
    if value == 0:
        return True
    if abs(value) > TOLERANCE:
        return False
    with _numbers.workdps(2 * DIGITS):
        return bool(abs(evaluate(expression, bindings)) < abs(value) * TOLERANCE)


# ---- exact arithmetic


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


_EXACT: Mapping[str, Callable[..., Fraction | None]] = {
    "+": _exact_sum,
    "-": lambda argument: -argument,
    "*": lambda one, other: one * other,
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
}


# ---- many digits


def _evaluate(expression: Expression, bindings: Bindings) -> Value:
    match expression:
        case Number(value):
            return _rational(value)
        case Symbol(name) if name in bindings:
            return _rational(bindings[name])
        case Symbol(name):
            return _constant(name)
        case Apply(operator, arguments):
            values = [_evaluate(argument, bindings) for argument in arguments]
            function = _FUNCTIONS.get(operator)
            if function is None:
                raise TooLargeError(f"no value for {operator}")
            value = function(*values)
            if _magnitude(value) > MAX_MAGNITUDE_BITS:
                raise TooLargeError(f"{operator} gives a number of {_magnitude(value)} bits")
            return value


def _rational(value: Fraction) -> Value:
    return _numbers.mpf(value.numerator) / value.denominator


def _constant(name: str) -> Value:
    match name:
        case "pi":
            return +_numbers.pi
        case "e":
            return +_numbers.e
        case "i":
            return _numbers.j
    raise TooLargeError(f"no value for {name}")


def _magnitude(value: Value) -> int:
    """Bits before the point; hugely negative for tiny numbers, which are as hard to handle."""
    return 0 if value == 0 else abs(int(_numbers.mag(value)))


def _power(base: Value, exponent: Value) -> Value:
    if base != 0 and abs(exponent) * max(_magnitude(base), 1) > MAX_MAGNITUDE_BITS:
        raise TooLargeError("a power out of reach")
    if _is_odd_root(exponent) and _numbers.im(base) == 0 and base < 0:
        return -_numbers.power(-base, exponent)
    return _numbers.power(base, exponent)


def _is_odd_root(exponent: Value) -> bool:
    """Whether an exponent is 1/3, 1/5 and so on: negative numbers have real roots of these."""
    inverse = 1 / exponent if exponent != 0 else exponent
    return bool(
        _numbers.isint(_numbers.nint(inverse)) and _is_close(inverse, _numbers.nint(inverse)) and inverse % 2 == 1
    )


def _root(index: Value, radicand: Value) -> Value:
    return _numbers.sqrt(radicand) if index == 2 else _power(radicand, 1 / index)


def _factorial(argument: Value) -> Value:
    if abs(argument) > MAX_FACTORIAL:
        raise TooLargeError("a factorial out of reach")
    return _numbers.factorial(argument)


def _double_factorial(argument: Value) -> Value:
    if not _numbers.isint(argument) or not 0 <= argument <= MAX_FACTORIAL:
        raise TooLargeError("a double factorial out of reach")
    return _numbers.fac2(argument)


def _binomial(total: Value, chosen: Value) -> Value:
    if max(abs(total), abs(chosen)) > MAX_FACTORIAL:
        raise TooLargeError("a binomial coefficient out of reach")
    return _numbers.binomial(total, chosen)


def _of_angle(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    def bounded(angle: Value) -> Value:
        if _magnitude(angle) > MAX_ANGLE_BITS and angle != 0:
            raise TooLargeError("an angle out of reach")
        return function(angle)

    return bounded


def _log(base: Value, argument: Value) -> Value:
    return _numbers.log(argument) / _numbers.log(base)


def _whole(function: Callable[..., int]) -> Callable[..., Value]:
    def of_integers(*values: Value) -> Value:
        if not all(_numbers.isint(value) and _magnitude(value) <= MAX_BITS for value in values):
            raise TooLargeError("defined for integers alone")
        return _numbers.mpf(function(*(int(value) for value in values)))

    return of_integers


def _real(function: Callable[..., Value]) -> Callable[..., Value]:
    def of_reals(*values: Value) -> Value:
        if any(_numbers.im(value) != 0 for value in values):
            raise TooLargeError("defined for real numbers alone")
        return function(*(_numbers.re(value) for value in values))

    return of_reals


_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "+": lambda *terms: _numbers.fsum(terms),
    "-": lambda argument: -argument,
    "*": lambda one, other: one * other,
    "/": lambda numerator, denominator: numerator / denominator,
    "^": _power,
    "root": _root,
    "!": _factorial,
    "!!": _double_factorial,
    "binom": _binomial,
    "%": lambda argument: argument / 100,
    "°": lambda argument: argument * _numbers.pi / 180,
    "abs": abs,
    "floor": _real(_numbers.floor),
    "ceil": _real(_numbers.ceil),
    "max": _real(lambda *values: max(values)),
    "min": _real(lambda *values: min(values)),
    "gcd": _whole(math.gcd),
    "lcm": _whole(math.lcm),
    "ln": _numbers.log,
    "log": _log,
    "exp": _of_angle(_numbers.exp),
    **{
        name: _of_angle(getattr(_numbers, name))
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    },
    **{f"arc{name}": getattr(_numbers, f"a{name}") for name in ("sin", "cos", "tan")},
}
