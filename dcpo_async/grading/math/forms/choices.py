"""Letters of multiple choice, one or several."""

import re

from dcpo_async.grading.math.forms.words import WRAPPER

_ANOTHER_CHOICE = re.compile(r"(?<![A-Za-z])[A-E](?:[).,:]|\W*$)|\b(?:and|or)\b")
_WRAPPED = r"(?:\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{)*"
_CHOICE = re.compile(
    rf"{_WRAPPED}\s*(?:(?:option|choice|answer)\s*:?\s*)?{_WRAPPED}\s*"
    r"(?:\(\s*(?P<inside>[A-Ea-e])\s*\)|(?P<alone>[A-E]))\}*(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_SEVERAL = re.compile(r"\(?[A-E]\)?(?:\s*(?:,|;|&|\band\b)*\s*\(?[A-E]\)?)+")


def choice_of(text: str, is_reference: bool) -> str | None:
    """The letter of a choice A to E, with or without its text behind it; a reference is the letter alone."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    if _ANOTHER_CHOICE.search(match["rest"]):
        return None
    rest = match["rest"].strip(" .})")
    if match["inside"]:
        return None if is_reference and rest else match["inside"].upper()
    has_mark = match["rest"].lstrip("} ")[:1] in (")", ".", ":")
    is_letter = not rest or (not is_reference and has_mark)
    return match["alone"] if is_letter and match["alone"].isupper() else None


def same_choices(answer: str, reference: str) -> bool | None:
    """Whether two answers name the same letters, as ACD or as A, C, D; None where one of them names fewer than two.

    Letters without signs between them are a name too: BAC is no other way to write ACB.
    """
    one, other = _letters(answer), _letters(reference)
    if one is None or other is None or answer == reference:
        return None
    if _flat(answer).isalpha() and _flat(reference).isalpha():
        return None
    return sorted(one) == sorted(other)


def _flat(text: str) -> str:
    return " ".join(WRAPPER.sub(r" \1 ", text).split())


def _letters(text: str) -> str | None:
    flat = _flat(text)
    if not _SEVERAL.fullmatch(flat):
        return None
    letters = "".join(character for character in flat if character in "ABCDE")
    return letters if len(set(letters)) == len(letters) else None
