"""What a cell of a data set says as text: numbers, lists of one, JSON text; or why it says nothing."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal

_NO_ANSWER = frozenset({"nan", "none", "null", "n/a", "not found", "notfound", "unknown"})
_PROOF = frozenset({"proof", "proof.", "prove", "see proof"})


def text_of(value: object) -> str:
    """Texts without surrounding spaces, numbers as one writes them (27 for 27.0); what a list of one item holds.

    A text that is JSON for a text, or for a list of one text, is what it holds: '["34"]' is 34. [1, 2] stays, since it
    may be an interval. Everything else is "".
    """
    if isinstance(value, str):
        return _unpacked(value.strip())
    if isinstance(value, list) and len(value) == 1:
        return text_of(value[0])
    if isinstance(value, Decimal) and value.is_finite():
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value) if value == value // 1 else value)
    return ""


def why_no_answer(value: object, answer: str) -> str | None:
    """The reason for which a row has no answer, in the words of `LoadedProblems.left_out`; None where it has one."""
    if answer.casefold() in _PROOF:
        return "proof"
    if isinstance(value, bool):
        return "a truth value for an answer"
    if (isinstance(value, list) and len(value) > 1) or (isinstance(value, str) and _several(value)):
        return "several answers"
    if isinstance(value, Mapping):
        return "a structure for an answer"
    return "no answer" if not answer or answer.casefold() in _NO_ANSWER else None


def _unpacked(text: str) -> str:
    if text[:1] == '"' or text[:2] == '["':
        value = from_json(text)
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, list) and len(value) == 1:
            return text_of(value[0])
    return text


def _several(text: str) -> bool:
    value = from_json(text) if text.strip()[:2] == '["' else None
    return isinstance(value, list) and len(value) > 1


def from_json(text: str) -> object:
    """What a text is as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
