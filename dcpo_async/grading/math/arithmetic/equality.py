"""Decides whether two expressions are equal: exactly where they are rational, else to many digits at sample points."""

import math
from collections.abc import Iterator
from fractions import Fraction

from dcpo_async.grading.math.arithmetic.digits import (
    DIGITS,
    TOLERANCE,
    TooLargeError,
    Value,
    evaluate,
    is_close,
    numbers,
)
from dcpo_async.grading.math.arithmetic.exact import EXACT, Bindings, exact_value
from dcpo_async.grading.math.syntax.expressions import (
    CONSTANT_NAMES,
    Apply,
    Expression,
    Symbol,
    free_symbols,
    nodes,
)

NUM_POINTS = 6
MIN_POINTS = 2
MAX_CONFIRMING_DIGITS = 6_000
"""Where a confirmation would take more digits than that, two values do not count as equal."""
WHOLE_POINTS = (3, 4, 5, 2, 7, 10, -3, -4)
WHOLE_NAMES = frozenset("kmnKMN")
"""Letters that stand for whole numbers where an expression makes sense for those alone."""
_STEPS = frozenset({"floor", "ceil"})
_TURNS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


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
    ordered = sorted(names)
    has_whole_names = names <= WHOLE_NAMES
    num_known = 0
    if not (has_whole_names and _is_of_whole_numbers(left, right)):
        known = _num_agreeing(left, right, _points(ordered))
        if known is None:
            return False
        num_known = known
    if _has_steps(left) or _has_steps(right) or (has_whole_names and num_known < MIN_POINTS):
        known = _num_agreeing(left, right, _whole_points(ordered))
        if known is None:
            return False
        num_known += known
    return True if num_known >= MIN_POINTS else None


def differs_by_less(value: Fraction, expression: Expression, bound: Fraction) -> bool:
    """Whether an expression without variables is real and within a bound of a number."""
    try:
        gap = evaluate(expression, {}) - numbers.mpf(value.numerator) / value.denominator
    except TooLargeError:
        return False
    return bool(numbers.im(gap) == 0 and abs(gap) * bound.denominator < bound.numerator)


def _num_agreeing(left: Expression, right: Expression, points: Iterator[dict[str, Fraction]]) -> int | None:
    """The number of points that tell; None as soon as the two differ at one."""
    num_agreeing = 0
    for bindings in points:
        agrees = _agree_at(left, right, bindings)
        if agrees is False:
            return None
        num_agreeing += agrees is True
    return num_agreeing


def _has_steps(expression: Expression) -> bool:
    return any(isinstance(node, Apply) and node.operator in _STEPS for node in nodes(expression))


def _is_of_whole_numbers(left: Expression, right: Expression) -> bool:
    r"""Whether two expressions may differ between whole numbers: both are rounded, or one turns by n\pi."""
    if _has_steps(left) and _has_steps(right):
        return True
    return any(
        isinstance(node, Apply) and node.operator in _TURNS and Symbol("pi") in nodes(node) and free_symbols(node)
        for side in (left, right)
        for node in nodes(side)
    )


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
    if not all(is_close(ratio, ratios[0]) for ratio in ratios) or abs(numbers.im(ratios[0])) > TOLERANCE:
        return 0
    return int(numbers.sign(numbers.re(ratios[0])))


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Rational points without structure: below and above 1, well above, and the same again with negative values."""
    for point in range(NUM_POINTS):
        first = Fraction((311, 1009, 3571)[point % 3], 701 + 97 * point)
        is_signed = point >= NUM_POINTS // 2
        yield {
            name: (first + Fraction(place * 89, 503)) * (-1 if is_signed and (place + point) % 2 == 0 else 1)
            for place, name in enumerate(names)
        }


def _whole_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Whole numbers, positive ones first: some expressions have no value at others."""
    for number in WHOLE_POINTS:
        yield {name: Fraction(number + 3 * place) for place, name in enumerate(names)}


def _agree_at(left: Expression, right: Expression, bindings: Bindings) -> bool | None:
    exact_left, exact_right = exact_value(left, bindings), exact_value(right, bindings)
    if exact_left is not None and exact_right is not None:
        return exact_left == exact_right
    peak = [0]
    try:
        one, other = evaluate(left, bindings, peak), evaluate(right, bindings, peak)
    except TooLargeError:
        return None if bindings else False
    if bindings and not (_is_real(one) and _is_real(other)) and not _has_i(left, right):
        return None
    if not bindings and _is_rational(left) and _is_rational(right):
        # Too large to be exact: that leading digits agree proves nothing.
        return left == right
    agree = is_close(one, other) or (_vanishes(left, bindings, one) and _vanishes(right, bindings, other))
    return agree and _is_confirmed(left, right, bindings, peak[0])


def _is_confirmed(left: Expression, right: Expression, bindings: Bindings, peak_bits: int) -> bool:
    """Whether two values that seem equal stay so with so many digits that no number on the way hides a difference."""
    peak_digits = math.ceil(peak_bits * math.log10(2))
    digits = DIGITS + 5 * peak_digits // 2
    if digits > MAX_CONFIRMING_DIGITS:
        return False
    try:
        with numbers.workdps(digits):
            gap = abs(evaluate(left, bindings) - evaluate(right, bindings))
            return bool(gap <= numbers.mpf(10) ** -(40 + 3 * peak_digits // 2))
    except TooLargeError:
        return False


def _is_rational(expression: Expression) -> bool:
    match expression:
        case Symbol(name):
            return name not in CONSTANT_NAMES
        case Apply("^", (base, exponent)):
            value = exact_value(exponent)
            return value is not None and value.denominator == 1 and _is_rational(base)
        case Apply(operator, arguments):
            return operator in EXACT and all(map(_is_rational, arguments))
    return True


def _is_real(value: Value) -> bool:
    return bool(abs(numbers.im(value)) <= TOLERANCE * abs(value))


def _has_i(*expressions: Expression) -> bool:
    return any(node == Symbol("i") for expression in expressions for node in nodes(expression))


def _vanishes(expression: Expression, bindings: Bindings, value: Value) -> bool:
    """Whether a value is 0 but for rounding, which more digits make smaller; that of a small number stays."""
    if value == 0:
        return True
    if abs(value) > TOLERANCE:
        return False
    with numbers.workdps(2 * DIGITS):
        return bool(abs(evaluate(expression, bindings)) < abs(value) * TOLERANCE)
