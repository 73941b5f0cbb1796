"""Expressions with units."""

from collections.abc import Sequence
from itertools import pairwise

from dcpo_async.grading.math.forms.answers import Quantity
from dcpo_async.grading.math.syntax.expressions import Number, UnreadableError
from dcpo_async.grading.math.syntax.parser import parse_expression
from dcpo_async.grading.math.syntax.tokens import Token, is_mark
from dcpo_async.grading.math.syntax.units import NUMBER_WORDS, OPERATION_WORDS, UNIT_LETTERS, normal_unit

MAX_UNIT_WORDS = 6
MAX_UNIT_CHARS = 100
_CURRENCIES = ("$", "€", "£", "¥", "₹")
_UNIT_MARKS = ("^", "/", "{", "}", "%", "°", "*", "-", "(", ")", "'", *_CURRENCIES)


def read_quantity(tokens: Sequence[Token]) -> Quantity:
    """An expression with a unit before (currency) or behind it; raises UnreadableError where there is none."""
    unit = ""
    rest = list(tokens)
    if rest and is_mark(rest[0], *_CURRENCIES):
        unit, rest = rest[0].text, rest[1:]
    elif len(rest) > 1 and is_mark(rest[0], "-") and is_mark(rest[1], *_CURRENCIES):
        unit, rest = rest[1].text, [rest[0], *rest[2:]]
    if rest and is_mark(rest[0], "≈"):
        rest = rest[1:]
    end = _unit_start(rest)
    expression = parse_expression(rest[:end])
    if end < len(rest) and (factor := NUMBER_WORDS.get(rest[end].text.lower())) is not None:
        if not isinstance(expression, Number):
            raise UnreadableError(f"{rest[end].text} behind what is no number")
        expression, end = Number(expression.value * factor), end + 1
    unit = " ".join(filter(None, (unit, _unit_text(rest[end:]))))
    return Quantity(expression, normal_unit(unit))


def _unit_start(tokens: Sequence[Token]) -> int:
    """Where the words at the end begin; a percent or degree sign at the very end counts as one."""
    for place, token in enumerate(tokens):
        if place and token.kind == "word":
            return place - 1 if is_mark(tokens[place - 1], "%", "°") else place
        if (
            place
            and token.kind == "letter"
            and token.is_spaced
            and _are_unit_letters(tokens[place - 1], tokens[place:])
        ):
            return place
    # A degree sign in mid-expression, as in sin 30°, is an operator; alone behind a number it is the unit.
    has_function = any(token.kind == "command" and token.text not in ("frac", "pi") for token in tokens)
    if len(tokens) > 1 and is_mark(tokens[-1], "%", "°", *_CURRENCIES) and not has_function:
        return len(tokens) - 1
    return len(tokens)


def _are_unit_letters(before: Token, tokens: Sequence[Token]) -> bool:
    is_behind_number = before.kind == "number" or is_mark(before, "}")
    return is_behind_number and all(token.text in UNIT_LETTERS or is_mark(token, "/") for token in tokens)


def _unit_text(tokens: Sequence[Token]) -> str:
    for before, token in pairwise([Token("mark", ""), *tokens]):
        is_power = token.kind == "number" and token.text in ("2", "3") and is_mark(before, "^", "{")
        if not (is_power or token.kind in ("word", "letter") or is_mark(token, *_UNIT_MARKS)):
            raise UnreadableError(f"{token.text!r} among the words of a unit")
    text = " ".join(token.text for token in tokens)
    if len(tokens) > 3 * MAX_UNIT_WORDS or len(text) > MAX_UNIT_CHARS:
        raise UnreadableError("too many words for a unit")
    if tokens and tokens[0].text.lower() in OPERATION_WORDS:
        raise UnreadableError(f"{tokens[0].text} is an operation")
    return text
