"""The kinds of answers: quantities, lists, regions, matrices, relations, text."""

from dataclasses import dataclass
from typing import Literal

from dcpo_async.grading.math.arithmetic.digits import TooLargeError, evaluate
from dcpo_async.grading.math.syntax.expressions import Apply, Expression, Symbol, UnreadableError

MAX_MEMBERS = 64


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression, with its unit and the name it is given (x of x=5) where it has them."""

    expression: Expression
    unit: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers: list and set in any order, tuple with its brackets (:: for a ratio) in order.

    A list has no brackets, but the word between its members, "and" or "or", where there is one.
    """

    kind: Literal["list", "set", "tuple"]
    members: "tuple[Answer, ...]"
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """Reals between two ends, each included or not."""

    low: Expression
    high: Expression
    has_low: bool
    has_high: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals; the variable where one is named."""

    intervals: tuple[Interval, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal or unequal length."""

    rows: "tuple[tuple[Answer, ...], ...]"


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or an inequality that is no region.

    Attributes:
        operator: one of = ≠ < ≤.
        difference: left - right.
        value: the right side of an equation, which "a+b=5" gives where a number was asked for.
    """

    operator: str
    difference: Expression
    value: "Answer | None" = None


@dataclass(frozen=True, slots=True)
class Piecewise:
    """A function by its cases: each value with its condition, in any order; the name where it has one."""

    branches: "tuple[tuple[Answer, Answer], ...]"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Congruence:
    """What a left side, where there is one, leaves when it is divided by the modulus."""

    left: Expression | None
    residues: tuple[Expression, ...]
    modulus: Expression


@dataclass(frozen=True, slots=True)
class Conditioned:
    """An answer that holds for what a letter stands for (its domain), or under a condition."""

    answer: "Answer"
    parameter: str = ""
    domain: str = ""
    condition: "Answer | None" = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words without mathematics in them."""

    text: str


@dataclass(frozen=True, slots=True)
class Unread:
    """What could not be read: for a command that algebra knows, or because it is malformed or of another kind."""

    text: str
    has_unknown: bool


Answer = (
    Quantity | Based | Collection | Region | Matrix | Relation | Piecewise | Congruence | Conditioned | Text | Unread
)

INFINITY = Symbol("infty")
MINUS_INFINITY = Apply("-", (INFINITY,))


def as_region(answer: Answer) -> Region | None:
    """An answer as a set of reals: a region, a pair in brackets as an interval, a set of points; else None."""
    match answer:
        case Region():
            return answer
        case Collection("tuple", (Quantity(low), Quantity(high)), brackets) if _is_ascending(low, high):
            return Region((Interval(low, high, brackets[0] == "[", brackets[1] == "]"),))
        case Collection("set", members) if all(isinstance(member, Quantity) for member in members):
            points = [member.expression for member in members if isinstance(member, Quantity)]
            return Region(tuple(Interval(point, point, True, True) for point in points))
    return None


def _is_ascending(low: Expression, high: Expression) -> bool:
    """Whether a pair may be an interval; (3,2) and (5,5) are points, and no way to write the empty set."""
    try:
        return real_value(low) < real_value(high)
    except UnreadableError:
        return False


def real_value(end: Expression) -> float:
    """An end of an interval as a number to sort by; raises UnreadableError where it is none."""
    if end in (INFINITY, MINUS_INFINITY):
        return float("inf") if end == INFINITY else float("-inf")
    try:
        value = evaluate(end, {})
    except TooLargeError as error:
        raise UnreadableError(str(error)) from None
    if abs(value.imag) > 0:
        raise UnreadableError("an end that is not real")
    return float(value.real)
