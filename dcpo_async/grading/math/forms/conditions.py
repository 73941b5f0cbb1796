r"""Answers with a condition behind them, and families of values with a whole number in them."""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from dcpo_async.grading.math.arithmetic.digits import TooLargeError, evaluate, is_close, numbers
from dcpo_async.grading.math.forms.answers import Answer, Collection, Conditioned, Quantity, Region, Relation
from dcpo_async.grading.math.forms.words import WRAPPER
from dcpo_async.grading.math.syntax.expressions import Apply, Expression, Symbol, free_symbols

_LEAD = r"(?:(?:where|for|with|here|if|when|and)\s+)?(?:(?:any|all|every|some|each)\s+)?"
_KIND = r"(?:an?\s+|any\s+)?((?:positive |natural |non-?negative )?(?:integers?|numbers?))"
_DOMAINS = (
    re.compile(rf"{_LEAD}([A-Za-z])\s*(?:∈|\\in)\s*(\\Real|[ZN])\s*((?:\^|_)\s*\{{?\s*[+*0]\s*\}}?)?"),
    re.compile(rf"{_LEAD}([A-Za-z])\s*(?:is|are|being|an|any)?\s*{_KIND}()"),
    re.compile(rf"{_LEAD}{_KIND}\s+([A-Za-z])()"),
)
_RELATION = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z])")
_COND_LEAD = re.compile(r"(?:where|for|if|with|when)\b\s*")
_WORD_SPLIT = re.compile(r"\\text\s*\{\s*,?\s*(?:where|for|with|if|when)\b|(?<=\s)(?:where|for|if)\s")
_TRIED = (0, 1, 2, 5)
_FRACTIONS = tuple(map(Fraction, _TRIED))


def read_conditioned(text: str, read: Callable[[str], Answer]) -> Conditioned | None:
    r"""An answer with a condition behind a comma, in parentheses or behind a word; None where a text has none.

    Example: r"2k\pi, k \in \mathbb{Z}" is 2kπ for whole k.
    """
    for start, end in _tails(text):
        main = text[:start].strip().rstrip(",;").rstrip()
        tail = " ".join(WRAPPER.sub(r" \1 ", text[start:end].lstrip(",;")).split()).strip(" ,;.()")
        if not main or _RELATION.search(main) or not re.search(r"[A-Za-z]", main):
            continue
        if (domain := _domain(tail)) is not None:
            return Conditioned(read(main), *domain)
        if _RELATION.search(tail):
            condition = read(_COND_LEAD.sub("", tail, count=1) if _COND_LEAD.match(tail) else tail)
            if isinstance(condition, Region | Relation):
                return Conditioned(read(main), condition=condition)
    return None


def same_conditioned(answer: Answer, reference: Answer, same: Callable[[Answer, Answer], bool | None]) -> bool | None:
    """Whether two answers and their conditions are the same; what a letter stands for may be left out, no more."""
    one = answer if isinstance(answer, Conditioned) else Conditioned(answer)
    other = reference if isinstance(reference, Conditioned) else Conditioned(reference)
    if (one.condition is None) != (other.condition is None):
        return False
    if one.condition is not None and other.condition is not None and not same(one.condition, other.condition):
        return False
    if one.domain and other.domain and one.domain != other.domain:
        return False
    left, right = _members(one.answer), _members(other.answer)
    if len(left) != len(right):
        return False
    domain = one.domain or other.domain
    parameters = one.parameter or other.parameter, other.parameter or one.parameter
    rest = list(right)
    for member in left:
        like = next((each for each in rest if _same_family(member, each, parameters, domain, same)), None)
        if like is None:
            return False
        rest.remove(like)
    return True


def _tails(text: str) -> Iterator[tuple[int, int]]:
    """Where conditions may stand: in parentheses at the end, behind the last comma, behind a word."""
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        character = text[place]
        depth += (character in ")]}") - (character in "([{")
        if depth == 0 and character == "(" and text.rstrip().endswith(")") and place:
            yield place, len(text)
        if depth < 0:
            return
        if depth == 0 and (character in ",;" or (character == "(" and place)):
            yield place, len(text)
            break
    if (word := _WORD_SPLIT.search(text)) is not None:
        yield word.start(), len(text)


def _domain(tail: str) -> tuple[str, str] | None:
    """The letter that a text declares, and what it stands for."""
    by_set, by_kind, of_kind = (pattern.fullmatch(tail) for pattern in _DOMAINS)
    if by_set is not None:
        return by_set[1], {"Z": "integer", "N": "positive integer"}.get(by_set[2], "number") + (
            "" if by_set[2] == "N" or not by_set[3] else " " + by_set[3].strip("^_{} ")
        )
    if by_kind is not None:
        return by_kind[1], _kind(by_kind[2])
    return (of_kind[2], _kind(of_kind[1])) if of_kind is not None else None


def _kind(words: str) -> str:
    singular = words.removesuffix("s").replace("natural number", "positive integer").replace("nonneg", "non-neg")
    return singular


def _members(answer: Answer) -> tuple[Answer, ...]:
    return answer.members if isinstance(answer, Collection) and answer.kind == "list" else (answer,)


def _same_family(
    one: Answer,
    other: Answer,
    parameters: tuple[str, str],
    domain: str,
    same: Callable[[Answer, Answer], bool | None],
) -> bool:
    if isinstance(one, Quantity) and parameters[0] != parameters[1]:
        if parameters[1] in free_symbols(one.expression):
            return False
        one = Quantity(_renamed(one.expression, *parameters), one.unit, one.name)
    if same(one, other) is True:
        return True
    if domain != "integer" or not (isinstance(one, Quantity) and isinstance(other, Quantity)):
        return False
    if one.unit != other.unit or (one.name and other.name and one.name != other.name):
        return False
    return _same_progression(one.expression, other.expression, parameters[1])


def _renamed(expression: Expression, old: str, new: str) -> Expression:
    match expression:
        case Symbol(name) if name == old:
            return Symbol(new)
        case Apply(operator, arguments):
            return Apply(operator, tuple(_renamed(argument, old, new) for argument in arguments))
    return expression


def _same_progression(one: Expression, other: Expression, parameter: str) -> bool:
    """Whether two values that grow evenly with a whole number run through the same ones: 4k+1, 4k-3 and 5-4k."""
    if free_symbols(one) != {parameter} or free_symbols(other) != {parameter}:
        return False
    try:
        starts, steps = zip(*(_progression(side, parameter) for side in (one, other)), strict=True)
    except TooLargeError:
        return False
    if 0 in steps or not is_close(abs(steps[0]), abs(steps[1])):
        return False
    apart = (starts[0] - starts[1]) / steps[0]
    return bool(abs(numbers.im(apart)) < 1e-30 and abs(apart - numbers.nint(numbers.re(apart))) < 1e-30)


def _progression(expression: Expression, parameter: str) -> tuple[object, object]:
    values = [evaluate(expression, {parameter: number}) for number in _FRACTIONS]
    start, step = values[0], values[1] - values[0]
    if any(abs(start + number * step - value) > 1e-30 for number, value in zip(_TRIED, values, strict=True)):
        raise TooLargeError("it does not grow evenly")
    return start, step
