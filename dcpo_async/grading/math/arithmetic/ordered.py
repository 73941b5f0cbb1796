"""Products of capital letters side by side, which keep their order: they may be matrices."""

from collections.abc import Mapping
from fractions import Fraction

from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.syntax.expressions import Apply, Expression, Number, Symbol, UnreadableError, nodes

Square = tuple[Fraction, Fraction, Fraction, Fraction]
"""A matrix of two rows and two columns, row by row."""

_ENTRIES = (3, 7, -2, 5, 11, 13, -4, 9, 17, 6, 23, -8)
MAX_POWER = 9


def keeps_order(left: Expression, right: Expression) -> bool:
    r"""Whether two expressions that are equal for numbers are equal for matrices as well.

    Capital letters side by side are matrices. A written sign between two of them, a fraction with one below its line or
    a function of one shows that they are numbers; then there is nothing to keep.

    Example: B^{-1}A^{-1} and (AB)^{-1} are, A^{-1}B^{-1} and (AB)^{-1} are not.
    """
    names = {node.name for side in (left, right) for node in nodes(side) if isinstance(node, Symbol)}
    capitals = sorted(name for name in names if _is_capital(name))
    if len(capitals) < 2 and not ({"T"} & names and capitals):
        return True
    matrices = {name: _matrix(place) for place, name in enumerate(capitals)}
    scalars = {name: Fraction(29 + 4 * place, 31) for place, name in enumerate(sorted(names - set(capitals)))}
    try:
        return _value(left, matrices, scalars) == _value(right, matrices, scalars)
    except (UnreadableError, ZeroDivisionError):
        return True


def _is_capital(name: str) -> bool:
    return name[0].isascii() and name[0].isupper() and (len(name) == 1 or name[1] == "_")


def _matrix(place: int) -> Square:
    first = place * 3 % len(_ENTRIES)
    a, b, c, d = (Fraction(_ENTRIES[(first + number) % len(_ENTRIES)] + place) for number in range(4))
    return (a, b, c, d)


def _value(expression: Expression, matrices: Mapping[str, Square], scalars: Mapping[str, Fraction]) -> Square:
    def value(argument: Expression) -> Square:
        return _value(argument, matrices, scalars)

    match expression:
        case Number(number):
            return _scaled(number)
        case Symbol(name) if name in matrices:
            return matrices[name]
        case Symbol(name) if name in scalars:
            return _scaled(scalars[name])
        case Apply("+", terms):
            a, b, c, d = (sum(entries, Fraction(0)) for entries in zip(*map(value, terms), strict=True))
            return (a, b, c, d)
        case Apply("-", (term,)):
            a, b, c, d = value(term)
            return (-a, -b, -c, -d)
        case Apply("*", (one, other)):
            return _product(value(one), value(other))
        case Apply("/", (one, other)) if (divisor := exact_value(other, scalars)) is not None:
            return _product(value(one), _scaled(1 / divisor))
        case Apply("^", (base, exponent)):
            return _power(value(base), exponent)
    raise UnreadableError("no expression of matrices")


def _power(base: Square, exponent: Expression) -> Square:
    if exponent == Symbol("T"):
        return (base[0], base[2], base[1], base[3])
    power = exact_value(exponent)
    if power is None or power.denominator != 1 or abs(power) > MAX_POWER:
        raise UnreadableError("no power of a matrix")
    factor = base if power >= 0 else _inverse(base)
    result = _scaled(Fraction(1))
    for _ in range(abs(int(power))):
        result = _product(result, factor)
    return result


def _scaled(number: Fraction) -> Square:
    return (number, Fraction(0), Fraction(0), number)


def _product(one: Square, other: Square) -> Square:
    (a, b, c, d), (e, f, g, h) = one, other
    return (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)


def _inverse(matrix: Square) -> Square:
    a, b, c, d = matrix
    size = a * d - b * c
    return (d / size, -b / size, -c / size, a / size)
