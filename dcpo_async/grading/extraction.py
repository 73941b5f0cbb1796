"""Finds the answer in a response, in time linear in its length."""

import re
from typing import Literal

Extraction = Literal["boxed", "answer", "last_number"]

# Answers stand at the end; what lies further back than this is not read.
MAX_RESPONSE_CHARS = 100_000

_BRACES = re.compile(
    r"(?P<boxed>\\f?box(?:ed)?\s*\{)"
    r"|\\boxed[ \t]*(?P<bare>[-+]?\d[\w.,/%]*|[A-Z](?![A-Za-z]))"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_MARKER = re.compile(r"####|\banswer(?:\s+is\b|\s*:)|答案(?:是|为|:|：)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|。")
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?", re.ASCII)


def extract_answer(response_text: str, extraction: Extraction = "boxed") -> str | None:
    r"""The answer that a response gives, as it wrote it; None where it gives none.

    What stands in `<think>`, or before `</think>`, is no answer; of the rest only the end is read
    (`MAX_RESPONSE_CHARS`). A box that is opened behind the last closed one and never closed leaves no answer: the
    response was cut off while it gave another one.

    Args:
        extraction: `boxed` reads the last \boxed{} or \fbox{} that holds something. `answer`, where there is no box,
            the text behind the last "####", "answer is" or "Answer:", up to the end of the sentence or line.
            `last_number`, where there is neither, the last number (1,234.5 and $20 and 3/4 are numbers).

    Example: extract_answer(r"so \boxed{\frac{1}{2}}") is r"\frac{1}{2}".
    """
    text = response_text.rpartition("</think>")[2].partition("<think>")[0][-MAX_RESPONSE_CHARS:]
    answer = _last_boxed(text)
    if answer is None or (answer == "" and extraction == "boxed"):
        return None
    if not answer:
        answer = _behind_marker(text)
    if not answer and extraction == "last_number":
        answer = _last_number(text)
    return answer or None


def _last_boxed(text: str) -> str | None:
    """Content of the last box; empty where there is none, None where a box behind it has no end.

    One pass with a stack of open braces, so that unclosed boxes by the thousand cost no more than one.
    """
    open_boxes: list[int | None] = []
    best_start, answer = -1, ""
    first = text.find("\\")
    for token in _BRACES.finditer(text, first if first >= 0 else len(text)):
        if token["boxed"]:
            open_boxes.append(token.end())
        elif token["open"]:
            open_boxes.append(None)
        elif token["bare"]:
            best_start, answer = token.start(), token["bare"].rstrip(".,")
        elif token["close"] and open_boxes:
            start = open_boxes.pop()
            if start is not None and start > best_start and (content := text[start : token.start()].strip()):
                best_start, answer = start, content
    is_cut_off = any(start is not None and start > best_start for start in open_boxes)
    return None if is_cut_off else answer


def _behind_marker(text: str) -> str:
    marker_ends = [marker.end() for marker in _MARKER.finditer(text)]
    if not marker_ends:
        return ""
    line = text[marker_ends[-1] :].lstrip(" \t\r\n:*").partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t\r*.")


def _last_number(text: str) -> str:
    numbers: list[str] = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""
