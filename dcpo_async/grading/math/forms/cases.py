r"""Systems of equations and functions defined by cases."""

import re
from collections.abc import Callable

from dcpo_async.grading.math.forms.answers import MAX_MEMBERS, Answer, Collection, Piecewise, Region, Text, Unread
from dcpo_async.grading.math.forms.words import WRAPPER

_BLOCK = re.compile(
    r"(?:(?P<name>[^=<>]{1,40}?)\s*=\s*)?(?P<brace>\\\{)?\s*"
    r"\\begin\s*\{(?P<kind>[dr]?cases|aligned|align\*?|gathered|split|array|matrix)\}(?:\s*\{[lcr|\s]*\})?"
    r"(?P<body>.*)\\end\s*\{(?P=kind)\}",
    re.DOTALL,
)
_ROWS = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])|\\newline")
_LEAD = re.compile(r"(?:if|for|when|where|whenever|provided|as)\b", re.IGNORECASE)
_INLINE_CONDITION = re.compile(r",?\s*\\text\s*\{\s*,?\s*(?:if|for|when|otherwise|else)\b")
_OTHERWISE = frozenset({"otherwise", "else", "elsewhere", "in other cases", "in all other cases"})
_FILLING = re.compile(r"\b(?:is|are|an?|the|be)\b")
_RELATION = re.compile(r"[<>=≤≥≠∈|]|\\(?:leq?|geq?|neq?|lt|gt|in|mid)(?![A-Za-z])")


def read_cases(text: str, read: Callable[[str], Answer]) -> Answer | None:
    r"""A system as a list of its equations, or a function by its cases; None where a text is neither.

    Example: r"\begin{cases} x=1 \\ y=2 \end{cases}" reads like "x=1, y=2".
    """
    block = _BLOCK.fullmatch(text)
    if block is None or (block["kind"] in ("array", "matrix") and not block["brace"]):
        return None
    rows = [row.strip().rstrip(",;.").strip() for row in _ROWS.split(block["body"].replace(r"\hline", ""))]
    rows = [row for row in rows if row]
    if not rows or len(rows) > MAX_MEMBERS:
        return Unread(text, has_unknown=False)
    parts = [_value_and_condition(row) for row in rows]
    if any(condition for _, condition in parts):
        branches = tuple((read(value), _condition(condition, read)) for value, condition in parts)
        return Piecewise(branches, (block["name"] or "").replace(" ", ""))
    members = tuple(read(value) for value, _ in parts)
    if len(members) > 1 and all(isinstance(member, Region) for member in members):
        return read(r" \land ".join(value for value, _ in parts))
    return members[0] if len(members) == 1 else Collection("list", members)


def _value_and_condition(row: str) -> tuple[str, str]:
    left, sign, right = row.partition("&")
    right = right.replace("&", " ").strip()
    if sign and not right.startswith(("=", "<", ">", "≤", "≥", r"\le", r"\ge")):
        return left.strip(" ,;"), right
    row = row.replace("&", " ")
    if (inline := _INLINE_CONDITION.search(row)) is not None:
        return row[: inline.start()].strip(" ,;"), row[inline.start() :]
    return row, ""


def _condition(text: str, read: Callable[[str], Answer]) -> Answer:
    """A condition as the set that it describes, else as its words; the last case may leave its own out."""
    flat = " ".join(WRAPPER.sub(r" \1 ", text).split()).strip(" ,;.()")
    flat = _LEAD.sub("", flat, count=1).strip(" ,;.") if _LEAD.match(flat) else flat
    if not flat or flat.casefold() in _OTHERWISE:
        return Text("otherwise")
    if _RELATION.search(flat) and not isinstance(answer := read(flat), Unread):
        return answer
    return Text("".join(_FILLING.sub(" ", flat.casefold()).split()))
