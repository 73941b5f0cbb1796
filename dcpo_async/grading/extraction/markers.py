"""Markers in front of an answer, and the last number of a text."""

import re

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_MARKER = re.compile(
    r"####|\banswer\*{0,3}(?:\s{1,20}is\b|\s{0,20}[:\uff1a])\*{0,3}|答案(?:是|为|:|：)"
    r"|^[ \t]{0,9}(?:#{1,6}[ \t]{0,9})?\*{0,3}(?:the )?(?:final )?answer[ \t]{0,9}\*{0,3}[ \t]{0,9}$",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAYS = {"$$": "$$", r"\[": r"\]"}
_SENTENCE_END = re.compile(r"\.(?:\s|$)|。")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,9}\s*/?>")
_FORMULA = r"(?:\$[^$\n]+\$|\\\([^\n]+?\\\))"
_FORMULAS = re.compile(rf"{_FORMULA}(?:\s*(?:,|,?\s*(?:and|or))\s*{_FORMULA})*")
_BECAUSE = re.compile(r"\s*,?\s*\b(?:since|because|as|so|which|where it|for)\b|\s*,\s+(?:and|but)\s")
_STATEMENT = re.compile(r"(?:the|there|so|we|thus|hence|therefore|this|it|final|a|an)\b", re.IGNORECASE)
_VERB = re.compile(r"(?:\bis|\bare|\bequals)(?:\s+equal\s+to)?:?\s+", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![A-Za-z])(?:(?<![\w.)])-)?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?", re.ASCII)


def behind_marker(text: str) -> str:
    """What stands in the last <answer>, or behind the last marker, up to the end of its display, sentence or line."""
    if tagged := _tagged(text):
        return "" if len(set(tagged)) > 1 else _stated(tagged[-1])
    marker_ends = [marker.end() for marker in _MARKER.finditer(text)]
    if not marker_ends:
        return ""
    rest = text[marker_ends[-1] :].lstrip(" \t\r\n:*\uff1a")
    opening = rest[:2]
    if opening in _DISPLAYS:
        content, closing, _ = rest[2:].partition(_DISPLAYS[opening])
        return content.strip(" \t\r\n.") if closing else ""
    line = _TAG.sub("", rest.partition("\n")[0])
    return _stated(_SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t\r*.\"'`\u201c\u201d"))


def _tagged(text: str) -> list[str]:
    """What stands between <answer> and </answer>, each time."""
    contents, start = [], -1
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start >= 0:
            contents.append(text[start : tag.start()].strip())
            start = -1
    return contents


def last_number(text: str) -> str:
    """The last number that is no part of a word; empty where there is none."""
    numbers: list[str] = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def _stated(line: str) -> str:
    """The answer that a line states: its formulas where it begins with one, what "is" where it begins with words."""
    formulas = _FORMULAS.match(line)
    if formulas is not None and (formulas.end() == len(line) or _BECAUSE.match(line, formulas.end())):
        return formulas[0]
    if _STATEMENT.match(line) and (verbs := list(_VERB.finditer(line))):
        return line[verbs[-1].end() :].strip()
    return line
