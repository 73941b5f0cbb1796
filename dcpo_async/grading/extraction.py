"""Finds the answer in a response, in time linear in its length."""

import re
from typing import Literal

Extraction = Literal["boxed", "answer", "last_number"]

# Answers stand at the end; what lies further back than this is not read.
MAX_RESPONSE_CHARS = 100_000

_BRACES = re.compile(r"(?P<boxed>\\boxed\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_MARKER = re.compile(r"####|\banswer\s*(?:\s+is\b|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?", re.ASCII)


def extract_answer(response_text: str, extraction: Extraction = "boxed") -> str | None:
    r"""The answer that a response gives, as it wrote it; None where it gives none.

    Only the text after the last `</think>` counts, where there is one, and of that the end
    (`MAX_RESPONSE_CHARS`).

    Args:
        extraction: `boxed` reads the last \boxed{} whose braces balance. `answer`, where there is none, the
            text behind the last "####", "answer is" or "Answer:", up to the end of the sentence or line. `last_number`,
            where there is neither, the last number (1,234.5 and $20 and 3/4 are numbers).

    Example: extract_answer(r"so \boxed{\frac{1}{2}}") is r"\frac{1}{2}".
    """
    text = response_text.rpartition("</think>")[2][-MAX_RESPONSE_CHARS:]
    answer = _last_boxed(text)
    if not answer and extraction != "boxed":
        answer = _behind_marker(text)
    if not answer and extraction == "last_number":
        answer = _last_number(text)
    return answer or None


def _last_boxed(text: str) -> str:
    """One pass with a stack of open braces, so that unclosed boxes by the thousand cost no more than one."""
    open_boxes: list[int | None] = []
    best_start, best_end = -1, -1
    first = text.find("\\boxed")
    for token in _BRACES.finditer(text, first if first >= 0 else len(text)):
        if token["boxed"]:
            open_boxes.append(token.end())
        elif token["open"]:
            open_boxes.append(None)
        elif token["close"] and open_boxes:
            start = open_boxes.pop()
            if start is not None and start > best_start:
                best_start, best_end = start, token.start()
    return text[best_start:best_end].strip() if best_start >= 0 else ""


def _behind_marker(text: str) -> str:
    marker_ends = [marker.end() for marker in _MARKER.finditer(text)]
    if not marker_ends:
        return ""
    line = text[marker_ends[-1] :].lstrip(" \t\r\n:*").partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t\r*.")


def _last_number(text: str) -> str:
    numbers: list[str] = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""
