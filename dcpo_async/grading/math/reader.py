"""Reads what an answer says: the structure around its expressions, from the loosest to the tightest."""

import re
from collections.abc import Sequence, Set
from functools import partial, reduce
from itertools import pairwise, product
from typing import Literal

from dcpo_async.grading.math.arithmetic.equality import are_equal
from dcpo_async.grading.math.forms.answers import (
    INFINITY,
    MAX_MEMBERS,
    MINUS_INFINITY,
    Answer,
    Based,
    Collection,
    Interval,
    Matrix,
    Quantity,
    Region,
    Relation,
    Text,
    Unread,
    as_region,
    real_value,
)
from dcpo_async.grading.math.forms.cases import read_cases
from dcpo_async.grading.math.forms.conditions import read_conditioned
from dcpo_async.grading.math.forms.congruences import read_congruence
from dcpo_async.grading.math.forms.distances import region_by_distance
from dcpo_async.grading.math.forms.quantities import read_quantity
from dcpo_async.grading.math.forms.words import is_wordy, named_answer, plain_text
from dcpo_async.grading.math.syntax.expressions import (
    Apply,
    Expression,
    Symbol,
    UnreadableError,
    difference,
    free_symbols,
)
from dcpo_async.grading.math.syntax.parser import KNOWN_COMMANDS, parse_expression
from dcpo_async.grading.math.syntax.tokens import Token, is_mark, tokenize

_CALL = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?'*(?:\^\{?\(?-?\d\)?\}?)?\([A-Za-z](?:,[A-Za-z])*\)")
MAX_NESTING = 20
MAX_CONDITIONS = 8
_BASED = re.compile(
    r"\(?(-?[\dA-F]+(?:\.\d+)?)\)?(?:_\s*|(?=\s*\\text|\s*\(base))"
    r"\{?\s*(?:\\text\s*\{)?\s*\(?\s*(?:base[ -]\s*\}?)?\s*(?:(\d{1,2})|(two|three|eight|ten|sixteen))\s*\)?\s*\}*",
    re.ASCII,
)
_BASE_NAMES = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}
_MATRIX = re.compile(r"[(\[]?\s*\\begin\{([pb]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]]?", re.DOTALL)
_LEAD_IN = re.compile(
    r"(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*|\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is)?\s*[:=]?\s*\}\s*",
    re.IGNORECASE,
)
ALGEBRA = frozenset({"sum", "prod", "int", "iint", "oint", "lim"})
"""Commands of which only algebra knows the meaning."""
_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_RELATIONS = ("=", "<", ">", "≤", "≥", "≠")
_FLIPPED = {"<": ">", "≤": "≥", ">": "<", "≥": "≤", "≠": "≠"}


def read_answer(cleaned: str, has_thousands: bool = True) -> Answer:
    r"""The answer that a text, as `clean` returns it, stands for; never raises.

    Args:
        has_thousands: read "1,000" as a number, not as a list.

    Example: read_answer("x=5") is Quantity(Number(Fraction(5)), name="x").
    """
    text = _LEAD_IN.sub("", cleaned, count=1) if _LEAD_IN.match(cleaned) else cleaned
    if (based := _BASED.fullmatch(text)) is not None:
        return Based(based[1], int(based[2]) if based[2] else _BASE_NAMES[based[3]])
    if (matrix := _MATRIX.fullmatch(text)) is not None:
        return _read_matrix(matrix[2], has_thousands)
    read = partial(read_answer, has_thousands=has_thousands)
    for form in (named_answer(text), read_congruence(text), read_cases(text, read), read_conditioned(text, read)):
        if form is not None:
            return form
    tokens = tokenize(text, has_thousands)
    try:
        if max(_depths(tokens), default=0) > MAX_NESTING:
            raise UnreadableError(f"brackets nested deeper than {MAX_NESTING}")
        return _Reader(tokens).read()
    except (UnreadableError, RecursionError):
        unknown = {token.text for token in tokens if token.kind == "command"} - KNOWN_COMMANDS
        has_unknown = bool(unknown) and unknown <= ALGEBRA
        return Text(plain_text(text)) if is_wordy(text) else Unread(text, has_unknown)


class _Reader:
    """Reads what tokens stand for, from the loosest structure to the tightest."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = list(tokens)

    def read(self) -> Answer:
        tokens = _unbraced(self._tokens)
        if not tokens:
            raise UnreadableError("nothing there")
        if len(parts := _split(tokens, ("∪",))) > 1:
            return Region(tuple(interval for part in parts for interval in _region(_Reader(part).read()).intervals))
        if len(parts := _split(tokens, ("≈",))) > 1 and parts[0]:
            name = None if _top_relations(parts[0]) else _name_of(parts[0])
            return _Reader(parts[0]).read() if name is None else _named(_Reader(parts[1]).read(), name)
        if len(parts := _split(tokens, (",", ";", "and", "or"))) > 1:
            words = {token.text.lower() for token in _top_level(tokens) if token.kind == "word"}
            return _listed(_collected("list", [part for part in parts if part]), words)
        if any(is_mark(token, "±", "∓") for token in tokens) and not is_mark(tokens[0], r"\{"):
            return _collected("list", [_with_sign(tokens, "+", "-"), _with_sign(tokens, "-", "+")])
        if _encloses(tokens):
            return self._bracketed(tokens)
        if _top_relations(tokens):
            return self._relation(tokens)
        if len(parts := _split(tokens, (":",))) > 1:
            return _collected("tuple", parts, "::")
        if tokens[0].kind == "command" and tokens[0].text in ("Real", "emptyset", "varnothing"):
            return _named_set(tokens)
        return read_quantity(tokens)

    def _bracketed(self, tokens: list[Token]) -> Answer:
        opening, closing, inner = tokens[0].text, tokens[-1].text, tokens[1:-1]
        if opening == r"\{" and closing == r"\}":
            return self._set(inner)
        parts = _split(inner, (",", ";"))
        if len(parts) > 1 and closing != r"\}" and opening != r"\{":
            return _collected("tuple", parts, opening + closing)
        if (opening, closing) not in (("(", ")"), ("[", "]"), ("{", "}")):
            raise UnreadableError("brackets that do not match around one value")
        if any(is_mark(token, *_RELATIONS) for token in inner):
            return _Reader(inner).read()
        return read_quantity(tokens)

    def _set(self, inner: list[Token]) -> Answer:
        parts = _split(inner, ("|", ":"))
        is_condition = len(parts) == 2 and any(is_mark(token, *_RELATIONS, "∈") for token in parts[1])
        in_reals = [token.text for token in parts[0][1:]] in ([], ["∈", "Real"])
        if is_condition and not (in_reals and parts[0] and parts[0][0].kind == "letter"):
            raise UnreadableError("a set of more than numbers")
        if is_condition:
            return _as_set(_Reader(parts[1]).read())
        members = [part for part in _split(inner, (",", ";")) if part]
        return _collected("set", members) if members else Region(())

    def _relation(self, tokens: list[Token]) -> Answer:
        operators = _top_relations(tokens)
        sides = _split(tokens, (*_RELATIONS, "∈"))
        if len(sides) != len(operators) + 1 or not all(sides):
            raise UnreadableError("a relation without one of its sides")
        if operators == ["∈"] and (name := _name_of(sides[0])) is not None:
            return _region(_Reader(sides[1]).read(), name)
        if set(operators) == {"="}:
            return self._equation(sides)
        if "=" in operators or "∈" in operators:
            raise UnreadableError("relations of several kinds")
        return self._inequality(operators, sides)

    def _equation(self, sides: list[list[Token]]) -> Answer:
        if len(sides) == 2 and _name_of(sides[0]) is None and _name_of(sides[1]) is not None:
            sides = sides[::-1]
        name = _name_of(sides[0])
        is_chain = len(sides) > 2 and name is None and _is_symbolic(sides[0]) and not any(map(_is_symbolic, sides[1:]))
        values = sides[1:] if name is not None or is_chain else sides
        if len(sides) == 2 and name is None and any(map(_is_symbolic, sides)):
            return _equated(sides)
        if len(values) > 1 and not _is_true_chain(values):
            raise UnreadableError("a chain of equations that is not true")
        return _named(_Reader(values[-1]).read(), name)

    def _inequality(self, operators: list[str], sides: list[list[Token]]) -> Answer:
        if len(operators) == 2:
            return _between(operators, sides)
        if len(operators) > 2:
            raise UnreadableError("a chain of more than two inequalities")
        (left, right), operator = sides, operators[0]
        if is_mark(left[0], "-") and _name_of(left[1:]) is not None:
            left, right, operator = left[1:], [Token("mark", "-"), *_bracketed(right)], _FLIPPED[operator]
        if _name_of(left) is None and _name_of(right) is not None:
            left, right, operator = right, left, _FLIPPED[operator]
        name, bound = _name_of(left), read_quantity(right).expression
        if name is not None and not free_symbols(bound):
            return _bounded(name, operator, bound)
        beside = read_quantity(left).expression
        if region := region_by_distance(beside, operator, bound):
            return region
        sides_differ_by = difference(beside, bound)
        if operator in (">", "≥"):
            return Relation(_FLIPPED[operator], Apply("-", (sides_differ_by,)))
        return Relation(operator, sides_differ_by)


# ---- parts of the reader


def _named_set(tokens: Sequence[Token]) -> Region:
    r"""All reals, all but some points (\setminus), or none."""
    if len(tokens) == 1 and tokens[0].text != "Real":
        return Region(())
    ends: list[Expression] = [MINUS_INFINITY, INFINITY]
    if len(tokens) > 1:
        without = _Reader(tokens[2:]).read()
        if tokens[1].text not in ("setminus", "backslash") or not isinstance(without, Collection):
            raise UnreadableError("no set of real numbers")
        points = [interval.low for interval in _region(without).intervals]
        ends[1:1] = sorted(points, key=real_value)
    return Region(tuple(Interval(low, high, False, False) for low, high in pairwise(ends)))


def _listed(answer: Answer, words: Set[str]) -> Answer:
    """A list; regions joined by "or" are their union, by "and" what they have in common."""
    members = answer.members if isinstance(answer, Collection) else ()
    regions = [member for member in members if isinstance(member, Region)]
    are_of_one = len({region.name for region in regions if region.name}) <= 1
    if isinstance(answer, Collection) and (len(regions) < len(members) or not are_of_one):
        return Collection("list", members, "or" if "or" in words else "and" if "and" in words else "")
    if not members or not words & {"and", "or"}:
        return answer
    if "or" not in words and len(regions) <= MAX_CONDITIONS:
        common = reduce(_common, regions)
        if common.intervals:
            return common
    # "x < 1 and x > 5" is what people write for both parts of a solution.
    return Region(tuple(interval for region in regions for interval in region.intervals), regions[0].name)


def _common(one: Region, other: Region) -> Region:
    intervals = []
    for first, second in product(one.intervals, other.intervals):
        low = max(first, second, key=lambda end: (real_value(end.low), not end.has_low))
        high = min(first, second, key=lambda end: (real_value(end.high), end.has_high))
        bounds = real_value(low.low), real_value(high.high)
        if bounds[0] < bounds[1] or (bounds[0] == bounds[1] and low.has_low and high.has_high):
            intervals.append(Interval(low.low, high.high, low.has_low, high.has_high))
    return Region(tuple(intervals), one.name or other.name)


def _read_matrix(body: str, has_thousands: bool) -> Answer:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", body.replace(r"\hline", "")) if row.strip()]
    cells = tuple(tuple(read_answer(cell.strip(), has_thousands) for cell in row.split("&")) for row in rows)
    if sum(map(len, cells)) > MAX_MEMBERS or not cells:
        return Unread(body, has_unknown=False)
    return Matrix(cells)


def _depths(tokens: Sequence[Token]) -> list[int]:
    """Depth of nesting at each token; a bracket has that of what stands around it."""
    depth, depths = 0, []
    for token in tokens:
        if is_mark(token, *_CLOSING):
            depth -= 1
        depths.append(depth)
        if is_mark(token, *_OPENING):
            depth += 1
    return depths


def _top_level(tokens: Sequence[Token]) -> list[Token]:
    return [token for token, depth in zip(tokens, _depths(tokens), strict=True) if depth == 0]


def _top_relations(tokens: Sequence[Token]) -> list[str]:
    return [token.text for token in _top_level(tokens) if is_mark(token, *_RELATIONS, "∈")]


def _split(tokens: Sequence[Token], separators: Sequence[str]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token.kind in ("mark", "word") and token.text.lower() in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _encloses(tokens: Sequence[Token]) -> bool:
    """Whether the first and the last token are one pair of brackets."""
    if len(tokens) < 2 or not is_mark(tokens[0], *_OPENING) or not is_mark(tokens[-1], *_CLOSING):
        return False
    return all(depth > 0 for depth in _depths(tokens)[1:-1])


def _unbraced(tokens: list[Token]) -> list[Token]:
    while _encloses(tokens) and tokens[0].text == "{":
        tokens = tokens[1:-1]
    return tokens


def _collected(kind: Literal["list", "set", "tuple"], parts: list[list[Token]], brackets: str = "") -> Answer:
    if len(parts) > MAX_MEMBERS or not all(parts):
        raise UnreadableError("an empty place in a list, or too many")
    members = [_Reader(part).read() for part in parts]
    if kind == "list" and len(members) == 1:
        return members[0]
    if kind != "tuple":
        # a, b ± c has three members.
        members = [inner for member in members for inner in _flattened(member)]
    return Collection(kind, tuple(members), brackets)


def _flattened(member: Answer) -> tuple[Answer, ...]:
    return member.members if isinstance(member, Collection) and member.kind == "list" else (member,)


def _with_sign(tokens: Sequence[Token], plus_minus: str, minus_plus: str) -> list[Token]:
    signs = {"±": plus_minus, "∓": minus_plus}
    return [
        token._replace(text=signs[token.text]) if token.kind == "mark" and token.text in signs else token
        for token in tokens
    ]


def _name_of(tokens: Sequence[Token]) -> str | None:
    r"""The name that one side of an equation gives to the other: x, x_1, f(x), (x,y), \angle A, words; else None."""
    name = "".join(token.text for token in tokens)
    kinds = {token.kind for token in tokens}
    if "word" in kinds or _CALL.fullmatch(name) or (kinds == {"letter"} and name.isupper()):
        return name
    if _encloses(tokens) and all(map(_name_of, _split(tokens[1:-1], (",",)))):
        return name
    try:
        expression = parse_expression(tokens)
    except UnreadableError:
        return name if kinds & {"word", "letter"} else None
    return expression.name if free_symbols(expression) and isinstance(expression, Symbol) else None


def _named(answer: Answer, name: str | None) -> Answer:
    match answer:
        case Quantity(expression, unit, _):
            return Quantity(expression, unit, name or "")
        case Region(intervals, _):
            return Region(intervals, name or "")
    return answer


def _equated(sides: Sequence[Sequence[Token]]) -> Relation:
    """An equation; a+b=5 tells a value, x+2=x+1 none."""
    left, right = map(parse_expression, sides)
    is_value = not free_symbols(left) & free_symbols(right)
    return Relation("=", difference(left, right), _Reader(sides[1]).read() if is_value else None)


def _is_symbolic(side: Sequence[Token]) -> bool:
    return bool(free_symbols(parse_expression(side)))


def _is_true_chain(sides: Sequence[Sequence[Token]]) -> bool:
    expressions = [parse_expression(side) for side in sides]
    return all(are_equal(one, other) is True for one, other in pairwise(expressions))


def _between(operators: list[str], sides: list[list[Token]]) -> Region:
    name = _name_of(sides[1])
    low, high = read_quantity(sides[0]).expression, read_quantity(sides[2]).expression
    if set(operators) <= {">", "≥"}:
        low, high, operators = high, low, [_FLIPPED[operator] for operator in reversed(operators)]
    if name is None or not set(operators) <= {"<", "≤"}:
        raise UnreadableError("an inequality that bounds no variable")
    return Region((Interval(low, high, operators[0] == "≤", operators[1] == "≤"),), name)


def _bracketed(tokens: Sequence[Token]) -> list[Token]:
    return [Token("mark", "("), *tokens, Token("mark", ")")]


def _bounded(name: str, operator: str, bound: Expression) -> Region:
    below = Interval(MINUS_INFINITY, bound, False, operator == "≤")
    above = Interval(bound, INFINITY, operator == "≥", False)
    intervals = {"<": (below,), "≤": (below,), ">": (above,), "≥": (above,), "≠": (below, above)}
    return Region(intervals[operator], name)


def _region(answer: Answer, name: str = "") -> Region:
    """An answer as a set of reals; raises UnreadableError where it is none."""
    region = as_region(answer)
    if region is None:
        raise UnreadableError("no set of real numbers")
    return Region(region.intervals, name or region.name)


def _as_set(condition: Answer) -> Answer:
    return Collection("set", (condition,)) if isinstance(condition, Quantity) else condition
