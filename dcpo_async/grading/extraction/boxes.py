r"""Boxes: the last one, or the last ones that together are the answer."""

import re
from typing import NamedTuple

_BRACES = re.compile(
    r"(?P<boxed>\\f?box(?:ed)?\s*\{)"
    r"|\\boxed[ \t]*(?P<bare>[-+]?\d[\w.,/%]*|[A-Z](?![A-Za-z]))"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
# What may stand between boxes that together are the answer: a comma, "and" or "or", and the name of the next value.
_JOINT = re.compile(
    r"[\s$\\()\[\]]*(?:\\q?quad\s*)?(?:(?P<comma>[,;])|\\text\s*\{\s*(?:,\s*)?(?:and|or)\s*\}|(?:,\s*)?\b(?:and|or)\b)"
    r"(?:\s|[$\\,;()\[\]]|\\q?quad|\band\b|\bor\b)*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?[\s$]*"
)
_ADJACENT = re.compile(r"\$?\s*\$?")
_TAKEN_BACK = re.compile(
    r"\bwait\b|\bhmm+\b|\b(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right|not correct)\b"
    r"|\b(?:let me|let's|i (?:should|need to|must|have to|will)|i'll)\s+(?:first |quickly |just )?"
    r"(?:double[- ]?check|re-?check|check|verify|re-?consider|think again|re-?think)\b",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"[.!?\n](?:\s|$)")
MAX_JOINT_CHARS = 60
MAX_TAIL_CHARS = 160
MAX_BOXES = 16


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def last_boxed(text: str) -> str | None:
    """The answer in the last boxes; empty where there is none, None where it was cut off or taken back."""
    boxes, is_cut_off = _boxes(text)
    if is_cut_off or (boxes and _is_taken_back(text[boxes[-1].end :])):
        return None
    return _joined(text, boxes, are_adjacent=False)


def boxed_answers(text: str) -> str:
    """The answer in the last boxes of a reference, which may stand side by side without a sign between them."""
    return _joined(text, _boxes(text)[0], are_adjacent=True)


def _boxes(text: str) -> tuple[list[_Box], bool]:
    """The last boxes with something in them, inner ones in place of outer ones, and whether one behind has no end.

    One pass with a stack of open braces, so that unclosed boxes by the thousand cost no more than one.
    """
    open_boxes: list[tuple[int, int] | None] = []
    boxes: list[_Box] = []
    first = text.find("\\")
    for token in _BRACES.finditer(text, first if first >= 0 else len(text)):
        if token["boxed"]:
            open_boxes.append((token.start(), token.end()))
        elif token["open"]:
            open_boxes.append(None)
        elif token["bare"]:
            boxes.append(_Box(token.start(), token.end(), token["bare"].rstrip(".,")))
        elif token["close"] and open_boxes:
            opened = open_boxes.pop()
            is_outer = opened is not None and boxes and boxes[-1].start > opened[0]
            if opened is not None and not is_outer and (content := text[opened[1] : token.start()].strip()):
                boxes.append(_Box(opened[0], token.end(), content))
        if len(boxes) > 2 * MAX_BOXES:
            del boxes[:MAX_BOXES]
    last = boxes[-1].start if boxes else -1
    return boxes, any(opened is not None and opened[0] > last for opened in open_boxes)


def _joined(text: str, boxes: list[_Box], *, are_adjacent: bool) -> str:
    """The contents of the last box and of those that belong to it, separated by commas."""
    if not boxes:
        return ""
    first = len(boxes) - 1
    while first and _belong_together(text[boxes[first - 1].end : boxes[first].start], are_adjacent):
        first -= 1
    return ", ".join(box.content for box in boxes[first:])


def _belong_together(between: str, are_adjacent: bool) -> bool:
    if len(between) > MAX_JOINT_CHARS:
        return False
    return _JOINT.fullmatch(between) is not None or (are_adjacent and _ADJACENT.fullmatch(between) is not None)


def _is_taken_back(tail: str) -> bool:
    """Whether what stands behind the last box takes it back, or says that it is still to be checked, and no more."""
    tail = tail.strip(" \t\r\n$.")
    if len(tail) > MAX_TAIL_CHARS or (taken := _TAKEN_BACK.search(tail)) is None:
        return False
    rest = tail[taken.end() :]
    return ":" not in rest and len(_SENTENCES.findall(rest)) <= 1
