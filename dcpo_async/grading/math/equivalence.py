"""Symbolic comparison of two answers by math-verify."""

import logging

from math_verify import LatexExtractionConfig, parse, verify

# math-verify logs every answer that it cannot parse, and warns that its time-outs are off: they are signal
# alarms, which work in main threads alone, so our pool kills from outside instead.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

FLOAT_ROUNDING = 15
"""Decimals; math-verify's own 6 would take 1.414214 for the root of 2."""
_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]


def is_equivalent(answer: str, reference: str) -> bool:
    r"""Whether `answer` equals `reference` as mathematics; may take unbounded time and memory.

    Example: is_equivalent("(x+1)^2", "x^2+2x+1") is True.
    """
    if not _is_balanced(answer):
        return False
    return bool(verify(_parsed(reference), _parsed(answer), float_rounding=FLOAT_ROUNDING, timeout_seconds=None))


def _parsed(answer: str) -> list[object]:
    return list(parse(rf"\boxed{{{answer.strip('$ ')}}}", _LATEX, parsing_timeout=None))


def _is_balanced(answer: str) -> bool:
    """A stray brace would close the box that math-verify reads, and hide what follows it."""
    depth = 0
    for character in answer.replace(r"\{", "").replace(r"\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
