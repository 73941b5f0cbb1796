r"""Congruences, however they write the modulus: \pmod{3}, \mod 3, \bmod 3, (mod 3)."""

import re
from collections.abc import Sequence

from dcpo_async.grading.math.arithmetic.equality import are_equal
from dcpo_async.grading.math.arithmetic.exact import exact_value
from dcpo_async.grading.math.forms.answers import Congruence
from dcpo_async.grading.math.forms.words import WRAPPER
from dcpo_async.grading.math.syntax.expressions import Expression, UnreadableError
from dcpo_async.grading.math.syntax.parser import parse_expression
from dcpo_async.grading.math.syntax.tokens import tokenize

_MODULUS = re.compile(r"\(?\s*(?:\\[pb]?mod(?![A-Za-z])|\bmod(?:ulo)?\b)\s*(?:\{([^{}]+)\}|([^{}()]+?))\s*\)?$")
_SEPARATOR = re.compile(r",|;|\bor\b|\band\b|\\lor\b")
MAX_RESIDUES = 64


def read_congruence(text: str) -> Congruence | None:
    r"""A congruence, its left side left out or not; None where a text is none.

    Example: r"x \equiv 1, 3 \pmod{8}" has the residues 1 and 3.
    """
    if "mod" not in text:
        return None
    flat = WRAPPER.sub(r" \1 ", text).strip()
    modulus = _MODULUS.search(flat)
    if modulus is None:
        return None
    left, sign, right = flat[: modulus.start()].rpartition("≡")
    residues = [part for part in _SEPARATOR.split(right) if part.strip()]
    if "≡" in left or "≢" in right or not 0 < len(residues) <= MAX_RESIDUES:
        return None
    try:
        name = _parsed(left) if sign else None
        return Congruence(name, tuple(map(_parsed, residues)), _parsed(modulus[1] or modulus[2]))
    except UnreadableError:
        return None


def same_congruence(answer: Congruence, reference: Congruence) -> bool:
    """Whether two congruences have the same modulus and residues; 13 and 4 are the same one modulo 9."""
    if are_equal(answer.modulus, reference.modulus) is not True:
        return False
    if answer.left is not None and reference.left is not None and are_equal(answer.left, reference.left) is not True:
        return False
    modulus = exact_value(reference.modulus)
    one, other = _reduced(answer.residues, modulus), _reduced(reference.residues, modulus)
    if one is not None and other is not None:
        return one == other
    pairs = (answer.residues, reference.residues), (reference.residues, answer.residues)
    return all(any(are_equal(each, like) is True for like in likes) for some, likes in pairs for each in some)


def _reduced(residues: Sequence[Expression], modulus: object) -> frozenset[object] | None:
    values = [exact_value(residue) for residue in residues]
    if not modulus or any(value is None or value.denominator != 1 for value in values):
        return None
    return frozenset(value % modulus for value in values)  # type: ignore[operator]


def _parsed(text: str) -> Expression:
    return parse_expression(tokenize(text.strip()))
