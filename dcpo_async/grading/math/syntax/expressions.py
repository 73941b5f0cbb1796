"""Expressions: a small tree of numbers, symbols and operators."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

ARROW, BOLD = "\u20d7", "\u0332"
"""Behind the name of a vector."""
CALLED = ("f", "g", "h", "F", "G", "H")
"""Letters that, in front of a parenthesis, are functions and no factors."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    r"""A variable (`x`, `a_1`, `theta`) or a constant: pi, infty, e and i."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator or function with its arguments: + * / ^ and unary -, root(n, x), !, abs, sin, log(base, x), …

    A product whose sign is written is ·, and a function that is not known has () behind its name.
    """

    operator: str
    arguments: "tuple[Expression, ...]"


Expression = Number | Symbol | Apply

CONSTANT_NAMES = frozenset({"pi", "infty", "e", "i"})


class UnreadableError(Exception):
    """The tokens are no expression that this parser knows; never leaves this folder."""


def difference(left: Expression, right: Expression) -> Expression:
    """left - right, as it stands."""
    return Apply("+", (left, Apply("-", (right,))))


def free_symbols(expression: Expression) -> frozenset[str]:
    """Names of the variables in an expression, those of its unknown functions with () behind them."""
    names = {node.name if isinstance(node, Symbol) else _called(node) for node in nodes(expression)}
    return frozenset(names - CONSTANT_NAMES - {""})


def _called(node: Expression) -> str:
    return node.operator if isinstance(node, Apply) and node.operator.endswith("()") else ""


def nodes(expression: Expression) -> Iterator[Expression]:
    """The expression and everything in it."""
    yield expression
    if isinstance(expression, Apply):
        for argument in expression.arguments:
            yield from nodes(argument)


def signed_product(mark: str, left: Expression, right: Expression) -> Expression:
    r"""A product with its sign written: · and × of two vectors are two operations, of numbers one.

    Raises UnreadableError where vectors are more than names.
    """
    if not (_is_vector(left) and _is_vector(right)):
        return Apply("*" if isinstance(left, Number) or isinstance(right, Number) else "·", (left, right))
    if not (isinstance(left, Symbol) and isinstance(right, Symbol)):
        raise UnreadableError("a product of vectors that are more than names")
    if mark == "*":
        return Symbol("·".join(sorted((left.name, right.name))))
    if left.name > right.name:
        return negative(Symbol(f"{right.name}×{left.name}"))
    return Symbol(f"{left.name}×{right.name}")


def composite(outer: Expression, inner: Expression) -> Expression:
    """Two functions, one after the other; raises UnreadableError where they are more than names."""
    if not (isinstance(outer, Symbol) and isinstance(inner, Symbol)):
        raise UnreadableError("only functions by their names are composed")
    return Symbol(f"{outer.name}∘{inner.name}")


def _is_vector(expression: Expression) -> bool:
    return any(name.endswith((ARROW, BOLD)) for name in free_symbols(expression))


def negative(expression: Expression) -> Expression:
    """-expression, a number where it is one."""
    return Number(-expression.value) if isinstance(expression, Number) else Apply("-", (expression,))
