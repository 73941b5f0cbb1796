r"""Answers in words: how they are compared, and the sets that have names."""

import re

from dcpo_async.grading.math.forms.answers import INFINITY, MINUS_INFINITY, Answer, Interval, Region, Text

WRAPPER = re.compile(r"\\(?:text|math|mbox|operatorname)[a-z]*\s*\{([^{}]*)\}")
_NO_WORDS = re.compile(r"[\\^_{}=<>+*/|!≤≥≠≡≢∈∉⊂⊆⊃⊇∩∪⊥∥∼≅∤∞]")
_ARTICLE = re.compile(r"(?:the|an?) (?=\w\w)")
_EVERYTHING = frozenset(
    {
        "all real numbers",
        "all reals",
        "all real x",
        "all real values",
        "all real values of x",
        "set of all real numbers",
        "set of real numbers",
        "real numbers",
        "x is any real number",
        "any real number",
        "\\mathbf{r}",
    }
)
_NOTHING = frozenset(
    {
        "no solution",
        "no solutions",
        "no real solution",
        "no real solutions",
        "no real roots",
        "empty set",
        "there is no solution",
        "there are no solutions",
        "there are no real solutions",
    }
)
_SAME_WORDS = {
    "dne": "does not exist",
    "all integers": "\u2124",
    "integers": "\u2124",
    "set of all integers": "\u2124",
    "set of integers": "\u2124",
    "\\mathbb{z}": "\u2124",
    "infinitely many solutions": "infinitely many",
    "infinite solutions": "infinitely many",
}


def plain_text(text: str) -> str:
    r"""Words in lower case without \text{}, an article in front, spacing and punctuation at the ends.

    Example: plain_text(r"\text{The circle.}") is "circle".
    """
    words = " ".join(WRAPPER.sub(r" \1 ", text).casefold().split()).strip(" .,;:!\"'")
    return _ARTICLE.sub("", words, count=1) if _ARTICLE.match(words) else words


def is_wordy(text: str) -> bool:
    r"""Whether a text is words, with no command but \text{} and no sign of arithmetic."""
    unwrapped = WRAPPER.sub(r"\1", text)
    return re.search(r"[^\W\d_]", unwrapped) is not None and _NO_WORDS.search(unwrapped) is None


def named_answer(text: str) -> Answer | None:
    r"""What a text that is a name stands for, such as "all real numbers" or "no solution"; None where it is none."""
    words = plain_text(text)
    if words in _EVERYTHING or text.casefold() in _EVERYTHING:
        return Region((Interval(MINUS_INFINITY, INFINITY, False, False),))
    if words in _NOTHING:
        return Region(())
    known = _SAME_WORDS.get(words) or _SAME_WORDS.get(text.casefold())
    return Text(known) if known else None
