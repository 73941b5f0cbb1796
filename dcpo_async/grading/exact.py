"""Compares answers where no algebra is needed: numbers as exact fractions, the rest as normalized text."""

import re
from fractions import Fraction

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_REWRITES = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,()\[\]]|\^\{?\\circ\}?|\\?\$|[€£]"), ""),
    (re.compile(r"\\[;: ]|~|\\q?quad(?![A-Za-z])|\s+"), " "),
    (re.compile(r" +"), " "),
    # A space between two word characters is kept: "1 1/2" is not 11/2.
    (re.compile(r"(?<!\w) | (?!\w)"), ""),
)
_NUMBER = re.compile(r"[+-]?(?=[\d.])(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?", re.ASCII)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)(?:"
    r"\\frac ?\{(?P<a>[+-]?\d+)\}\{(?P<b>\d+)\}|\\frac ?(?P<c>\d)(?P<d>\d)|(?P<e>\d+)/(?P<f>\d+))",
    re.ASCII,
)


def compare_exactly(answer: str, reference: str) -> bool | None:
    r"""Whether two answers are equal; None where only symbolic comparison can tell.

    Integers, decimals and fractions of any spelling are compared as exact fractions; other text is equal if
    it is identical after normalization (spacing, dollar and degree signs, \text{}, \left and \right).

    Example: "1,000" equals r"\$1000" and r"\frac12" equals "0.5"; "0.33" differs from "1/3"; "x+1" against
    "1+x" is None.
    """
    left, right = _normalized(answer), _normalized(reference)
    if not left:
        return False
    if left == right:
        return True
    left_value, right_value = _value(left), _value(right)
    if left_value is None or right_value is None:
        return None
    return left_value == right_value


def _normalized(answer: str) -> str:
    text = answer.replace("{,}", ",").replace("−", "-")
    text = _WRAPPER.sub(r"\1", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".")


def _value(normalized: str) -> Fraction | None:
    if _NUMBER.fullmatch(normalized):
        return Fraction(normalized.replace(",", ""))
    match = _FRACTION.fullmatch(normalized)
    if match is None:
        return None
    numerator = int(match["a"] or match["c"] or match["e"])
    denominator = int(match["b"] or match["d"] or match["f"])
    if denominator == 0:
        return None
    return Fraction(-numerator if match["sign"] == "-" else numerator, denominator)
