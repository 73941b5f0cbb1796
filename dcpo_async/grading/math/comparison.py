"""Compares two answers by the rules of docs/decisions/0012; bounded time, no sympy."""

import re
from collections.abc import Sequence
from fractions import Fraction
from operator import itemgetter

from dcpo_async.grading.math.arithmetic.equality import are_equal, are_proportional
from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.arithmetic.ordered import keeps_order
from dcpo_async.grading.math.forms.answers import (
    Answer,
    Based,
    Collection,
    Conditioned,
    Congruence,
    Interval,
    Matrix,
    Piecewise,
    Quantity,
    Region,
    Relation,
    Text,
    Unread,
    as_region,
    real_value,
)
from dcpo_async.grading.math.forms.choices import choice_of, same_choices
from dcpo_async.grading.math.forms.conditions import same_conditioned
from dcpo_async.grading.math.forms.congruences import same_congruence
from dcpo_async.grading.math.forms.numerals import INTEGER, as_integer, is_long_decimal_of, is_numeral, with_points
from dcpo_async.grading.math.forms.words import WRAPPER, plain_text
from dcpo_async.grading.math.reader import ALGEBRA, read_answer
from dcpo_async.grading.math.syntax.expressions import (
    Apply,
    Expression,
    Number,
    Symbol,
    UnreadableError,
    difference,
    free_symbols,
)
from dcpo_async.grading.math.syntax.tokens import clean, tokenize

_SEPARATED = re.compile(r"\d,[1-9]\d{2}(?!\d)", re.ASCII)
_ALGEBRA = re.compile(rf"\\(?:{'|'.join(sorted(ALGEBRA))})(?![A-Za-z])")
DIGITS = "0123456789ABCDEF"


def compare(answer: str, reference: str) -> bool | None:
    r"""Whether two answers are the same; None where only symbolic algebra could tell.

    Example: "0.5" against r"\frac{1}{2}" and "x+1" against "1+x" are True, "2+3" against "5" is False: a
    computation that is left undone may only restate the problem.
    """
    left, right = clean(answer), clean(reference)
    if not plain_text(left):
        return False
    if left == right:
        return True
    if INTEGER.fullmatch(left) and INTEGER.fullmatch(right):
        return as_integer(left) == as_integer(right)
    if (choice := choice_of(right, is_reference=True)) is not None:
        return choice_of(left, is_reference=False) == choice
    if (is_same := same_choices(left, right)) is not None:
        return is_same
    if _is_anagram(left, right):
        return False
    left, right = with_points(left, right)
    verdict = _compare_readings(left, right, has_thousands=True)
    if verdict is not True and _SEPARATED.search(left + " " + right) and ",0" not in left + right:
        # "100,200" may be a list; a side that reads as one decides.
        as_list = _compare_readings(left, right, has_thousands=False)
        verdict = verdict if as_list is None else as_list
    # What no point tells and no command that algebra knows could explain is not equal.
    return verdict if verdict is not None or _ALGEBRA.search(left + right) else False


def _is_anagram(one: str, other: str) -> bool:
    """Whether both are words of the same letters in another order; two letters alone are a product."""
    one, other = (WRAPPER.sub(r"\1", text).strip().casefold() for text in (one, other))
    return one.isalpha() and len(one) > 2 and one != other and sorted(one) == sorted(other)


def _compare_readings(left: str, right: str, has_thousands: bool) -> bool | None:
    answer, reference = read_answer(left, has_thousands), read_answer(right, has_thousands)
    if isinstance(answer, Text) and isinstance(reference, Text):
        return answer == reference
    if isinstance(answer, Text) or isinstance(reference, Text):
        # What is read as a word on one side may pass for a product of variables on the other.
        return plain_text(left) == plain_text(right)
    return same(answer, reference)


def same(answer: Answer, reference: Answer) -> bool | None:
    """Whether two answers that have been read are the same; None where one of them could not be read."""
    match answer, reference:
        case Quantity(), Quantity():
            return _same_quantity(answer, reference)
        case Collection(), Collection():
            return _same_collection(answer, reference)
        case Matrix(), Matrix():
            return _same_matrix(answer, reference)
        case Relation(), Relation():
            return _same_relation(answer, reference)
        case Text(one), Text(other):
            return one == other
        case Unread(one), Unread(other) if _tokens_of(one) == _tokens_of(other):
            return True
        case (Unread(), _) | (_, Unread()):
            return _same_unread(answer, reference)
    return _same_form(answer, reference)


def _same_form(answer: Answer, reference: Answer) -> bool | None:
    match answer, reference:
        case Piecewise(), Piecewise():
            return _same_piecewise(answer, reference)
        case Congruence(), Congruence():
            return same_congruence(answer, reference)
        case (Conditioned(), _) | (_, Conditioned()):
            return same_conditioned(answer, reference, same)
    return _same_across_kinds(answer, reference)


def _tokens_of(text: str) -> list[tuple[str, str]]:
    is_set = text.startswith(r"\{")
    return [(token.kind, ":" if is_set and token.text == "|" else token.text) for token in tokenize(text)]


def _same_piecewise(answer: Piecewise, reference: Piecewise) -> bool:
    """Whether each case has its like, value and condition, in whatever order."""
    if answer.name and reference.name and answer.name != reference.name:
        return False
    left = list(reference.branches)
    for value, condition in answer.branches:
        like = next((each for each in left if same(value, each[0]) is True and same(condition, each[1]) is True), None)
        if like is None:
            return False
        left.remove(like)
    return not left


def _same_across_kinds(answer: Answer, reference: Answer) -> bool | None:
    match answer, reference:
        case (Based(), _) | (_, Based()):
            return _same_in_base(answer, reference)
        case (Matrix(rows), Collection("tuple", members)) | (Collection("tuple", members), Matrix(rows)):
            return _all_same(_vector(rows), members)
        case (Relation("="), Quantity(value, _, name)) | (Quantity(value, _, name), Relation("=")) if (
            name and free_symbols(value)
        ):
            return _same_relation(_as_relation(answer), _as_relation(reference))
        case Relation("=", _, value), Quantity() if value:
            return same(value, reference)
        case (Collection("set", (member,)), Quantity() as single) | (
            Quantity() as single,
            Collection("set", (member,)),
        ):
            return same(member, single)
    left, right = as_region(answer), as_region(reference)
    return left is not None and right is not None and _same_region(left, right)


def _same_unread(answer: Answer, reference: Answer) -> bool | None:
    """No algebra for what it could only let through: malformed text, and anything but a number for a number."""
    match reference:
        case Quantity(expression) if is_numeral(expression):
            return False
    if all(isinstance(side, Unread) and r"\lim" in side.text for side in (answer, reference)):
        return False  # algebra takes what it does not know for a constant, and every limit of it for the same
    is_open = any(isinstance(side, Unread) and side.has_unknown for side in (answer, reference))
    return None if is_open else False


# ---- quantities


def _same_quantity(answer: Quantity, reference: Quantity) -> bool | None:
    if answer.name and reference.name and answer.name != reference.name:
        # x = y/2 is another way to write y = 2x.
        is_relation = free_symbols(answer.expression) and free_symbols(reference.expression)
        return _same_relation(_as_relation(answer), _as_relation(reference)) if is_relation else False
    if {answer.unit, reference.unit} == {"°", "radian"}:
        return are_equal(_in_unit(answer), _in_unit(reference))
    if answer.unit and reference.unit:
        return answer.unit == reference.unit and _same_value(answer.expression, reference.expression)
    if (answer.unit or reference.unit) in ("%", "°") and are_equal(_in_unit(answer), _in_unit(reference)):
        return True
    # 0.5% is no way to write 1/2, though 50% is one to write 50.
    is_share = answer.unit == "%" and not reference.unit and _is_below_one(reference.expression)
    return not is_share and _same_value(answer.expression, reference.expression)


def _is_below_one(expression: Expression) -> bool:
    value = exact_value(expression)
    return value is not None and abs(value) < 1


def _in_unit(quantity: Quantity) -> Expression:
    return Apply(quantity.unit, (quantity.expression,)) if quantity.unit in ("%", "°") else quantity.expression


def _same_value(answer: Expression, reference: Expression) -> bool | None:
    if answer == reference:
        return True
    if is_long_decimal_of(answer, reference) or is_long_decimal_of(reference, answer):
        return True
    if is_numeral(reference) and not is_numeral(answer):
        return False
    if isinstance(answer, Number) and isinstance(reference, Number):
        return False
    is_same = are_equal(answer, reference)
    return is_same and keeps_order(answer, reference)


def _same_in_base(answer: Answer, reference: Answer) -> bool:
    match answer, reference:
        case Based(), Based():
            return answer == reference
        case Quantity(Number(value), "", ""), Based(digits, _):
            return str(value) == digits
        case Based(digits, base), Quantity(expression):
            is_valid = 2 <= base <= 16 and all(digit in DIGITS[:base] for digit in digits.lstrip("-"))
            return is_valid and exact_value(expression) == Fraction(int(digits, base))
    return False


# ---- several values


def _same_collection(answer: Collection, reference: Collection) -> bool | None:
    if answer.kind == reference.kind == "tuple":
        return answer.brackets == reference.brackets and _all_same(answer.members, reference.members)
    if "tuple" in (answer.kind, reference.kind):
        # A bare list may leave the parentheses out, but not the order; a set is no tuple.
        is_bare = "list" in (answer.kind, reference.kind) and "()" in (answer.brackets, reference.brackets)
        return is_bare and _all_same(answer.members, reference.members)
    if answer.kind == reference.kind == "list" and not _same_connective(answer, reference):
        return False
    if answer.kind == reference.kind == "set":
        return _same_set(answer.members, reference.members)
    return _same_in_any_order(answer.members, reference.members)


def _same_connective(answer: Collection, reference: Collection) -> bool:
    """Whether "and" and "or" mean the same in two lists, as in "x=1 or x=2" and "x=1 and x=2", solutions both.

    Of values with different names, and of letters, they do not; nor is "8 or 9" an answer where 8 and 9 are asked for.
    """
    words = answer.brackets, reference.brackets
    values = [member for member in reference.members if isinstance(member, Quantity)]
    names = {member.name for member in reference.members if isinstance(member, Quantity | Region)}
    if len(names) > 1:
        return (words[0] == "or") == (words[1] == "or")
    if any(not value.name and free_symbols(value.expression) for value in values):
        return set(words) != {"and", "or"}
    return words != ("or", "and") or names not in ({""}, set())


def _all_same(answers: Sequence[Answer] | None, references: Sequence[Answer] | None) -> bool | None:
    if answers is None or references is None or len(answers) != len(references):
        return False
    verdicts = [same(one, other) for one, other in zip(answers, references, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _same_in_any_order(answers: Sequence[Answer], references: Sequence[Answer]) -> bool | None:
    if len(answers) != len(references):
        return False
    left = list(references)
    is_unsure = False
    for answer in answers:
        verdicts = [same(answer, reference) for reference in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            is_unsure = True
        else:
            return False
    return None if is_unsure else True


def _same_set(answers: Sequence[Answer], references: Sequence[Answer]) -> bool | None:
    """Whether each member has its like on the other side; ends at the first of the answer's that has none."""
    found: set[int] = set()
    is_unsure = False
    for answer in answers:
        verdicts = [same(answer, reference) for reference in references]
        if True not in verdicts and None not in verdicts:
            return False
        is_unsure |= True not in verdicts
        found |= {place for place, verdict in enumerate(verdicts) if verdict}
    return None if is_unsure else len(found) == len(references)


def _same_matrix(answer: Matrix, reference: Matrix) -> bool | None:
    if [len(row) for row in answer.rows] != [len(row) for row in reference.rows]:
        return False
    return _all_same(sum(answer.rows, ()), sum(reference.rows, ()))


def _vector(rows: tuple[tuple[Answer, ...], ...]) -> Sequence[Answer] | None:
    if len(rows) == 1:
        return rows[0]
    return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else None


# ---- relations and regions


def _as_relation(answer: Answer) -> Relation:
    """An equation as it is; a value with a name as the equation that it stands for."""
    match answer:
        case Relation():
            return answer
        case Quantity(expression, _, name):
            return Relation("=", difference(Symbol(name), expression))
    raise AssertionError(f"{answer} is no equation")


def _same_relation(answer: Relation, reference: Relation) -> bool | None:
    if answer.operator != reference.operator:
        return False
    sign = are_proportional(answer.difference, reference.difference)
    if sign is None:
        return None
    return sign != 0 if answer.operator in ("=", "≠") else sign > 0


def _same_region(answer: Region, reference: Region) -> bool | None:
    if answer.name and reference.name and answer.name != reference.name:
        return False
    left, right = _merged(answer.intervals), _merged(reference.intervals)
    if left is None or right is None or len(left) != len(right):
        return False if left is not None and right is not None else None
    return all(_same_interval(one, other) for one, other in zip(left, right, strict=True))


def _same_interval(one: Interval, other: Interval) -> bool:
    return (
        (one.has_low, one.has_high) == (other.has_low, other.has_high)
        and _same_end(one.low, other.low)
        and _same_end(one.high, other.high)
    )


def _same_end(one: Expression, other: Expression) -> bool:
    return one == other or are_equal(one, other) is True


def _merged(intervals: Sequence[Interval]) -> list[Interval] | None:
    """Disjoint intervals in ascending order, empty ones dropped; None where an end has no value."""
    try:
        ends = [(real_value(item.low), not item.has_low, real_value(item.high)) for item in intervals]
    except UnreadableError:
        return None
    merged: list[Interval] = []
    for (low, _, high), item in sorted(zip(ends, intervals, strict=True), key=itemgetter(0)):
        if low > high or (low == high and not (item.has_low and item.has_high)):
            continue
        if merged and _touches(merged[-1], low, item):
            merged[-1] = _joined(merged[-1], high, item)
        else:
            merged.append(item)
    return merged


def _touches(before: Interval, low: float, item: Interval) -> bool:
    end = real_value(before.high)
    return low < end or (low == end and (before.has_high or item.has_low))


def _joined(before: Interval, high: float, item: Interval) -> Interval:
    end = real_value(before.high)
    if high < end:
        return before
    has_high = item.has_high or (high == end and before.has_high)
    return Interval(before.low, item.high, before.has_low, has_high)
