r"""The last mathematics of a text that marks no answer."""

import re
from typing import NamedTuple

from dcpo_async.grading.extraction.markers import last_number

MAX_BARE_CHARS = 300
MAX_READ_CHARS = 6_000
"""Of a text without any mark, more than its end is not looked at."""
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]+)\$\$|\\\[(?P<bracket>.{1,600}?)\\\]"
    r"|(?<![\\\d])\$(?!\d[\d,.]*\s+[a-z]{3,})(?P<dollar>[^$\n]{1,600}?)(?<!\\)\$|\\\((?P<paren>[^\n]{1,600}?)\\\)"
    r"|\\begin\{(?P<name>align\*?|aligned|equation\*?|gather\*?)\}(?P<block>.{1,2000}?)\\end\{(?P=name)\}",
    re.DOTALL,
)
_UNIT = re.compile(r"\s*(?:\\?%|percent\b|pct\b|per cent\b|percentage\b)", re.IGNORECASE)
_JOINT = re.compile(r"\s*(?:,|,?\s*(?:and|or)\b)\s*")
_NAME_ALONE = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Z]{1,6})\s*")
_RUN = re.compile(
    r"(?<![A-Za-z])(?:\\[A-Za-z]+|[{}()\[\]\d+\-*/^_=<>|!%.,²³\u2264\u2265\u2260\u221a\u03c0\u221e&]|\\[{}\\,;! ]"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[ \t](?=[^\s]))+"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$])|\n+")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_UNIT_LETTER = re.compile(r"(?<=\d)[mgshlL][²³]?$")
_UNCLEAR = re.compile(r"\b(?:not|no|never|or|between|than|least|most|about|unless|if)\b|n't\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"[^.]{0,200}[,;]\s+(?:hence|thus|so|therefore|that is)\b[^.$]{0,40}\$?\d")
_ARTICLES = re.compile(r"^(?:a|A|I)\s+")


class _Found(NamedTuple):
    start: int
    end: int
    content: str


def last_mathematics(text: str) -> str:
    r"""The last mathematics: the whole of a text that is nothing else, else that of the last sentence with any.

    In a sentence, formulas between $…$, \(…\), \[…\] come before mathematics without delimiters, and that before
    numbers; a formula that is a letter or a name alone, as in "the value of $x$ is 5", does not count where there is
    anything else.
    """
    text = text.strip()[-MAX_READ_CHARS:]
    if not text:
        return ""
    if _is_bare(text):
        return text.rstrip(" .*").lstrip("*= ")
    formulas = _formulas(text)
    for start, end in reversed(_spans(text, formulas)):
        within = [formula for formula in formulas if start <= formula.start < end]
        if (answer := _of_sentence(text[start:end], within, start)) is not None:
            return answer
    return last_number(text)


def only_mathematics(line: str) -> str:
    """The one formula or number in a line of words, as in "she left 3 hours ago"; empty where that is not clear."""
    if _is_bare(line) or _UNCLEAR.search(line):
        return ""
    formulas = _formulas(line)
    outside = line
    for formula in reversed(formulas):
        outside = outside[: formula.start] + " " + outside[formula.end :]
    real = [formula.content for formula in formulas if not _NAME_ALONE.fullmatch(formula.content)]
    runs = [match[0] for match in _RUN.finditer(outside) if re.search(r"\d", match[0])]
    if len(real) + len(runs) != 1:
        return ""
    return real[0] if real else _last_run(outside) or ""


def _is_bare(text: str) -> bool:
    """Whether a text is an answer and nothing else: one line, and hardly a word in it."""
    if len(text) > MAX_BARE_CHARS or "\n" in text:
        return False
    words = _WORDS.findall(re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?", "", text))
    return not words or (len(words) <= 2 and (re.match(r"[-+$(\[\\]*\d", text) is not None or words == text.split()))


def _formulas(text: str) -> list[_Found]:
    """Formulas between delimiters, those of a list in one, with a percent sign behind them."""
    found: list[_Found] = []
    for match in _FORMULA.finditer(text):
        content = next(match[name] for name in ("display", "bracket", "dollar", "paren", "block") if match[name])
        unit = _UNIT.match(text, match.end())
        content = content.strip() + (r"\%" if unit else "")
        end = unit.end() if unit else match.end()
        if match["name"]:
            content = re.split(r"\\\\", content.rstrip("\\ \n"))[-1].rpartition("=")[2]
        if found and _JOINT.fullmatch(text, found[-1].end, match.start()):
            found[-1] = _Found(found[-1].start, end, f"{found[-1].content}, {content}")
        else:
            found.append(_Found(match.start(), end, content))
    return found


def _spans(text: str, formulas: list[_Found]) -> list[tuple[int, int]]:
    """Sentences and lines; a boundary within a formula is none."""
    inside = [(formula.start, formula.end) for formula in formulas]
    cuts = [0]
    place = 0
    for match in _SENTENCE.finditer(text):
        while place < len(inside) and inside[place][1] <= match.start():
            place += 1
        if place == len(inside) or match.start() < inside[place][0]:
            cuts.append(match.end())
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _of_sentence(sentence: str, formulas: list[_Found], offset: int) -> str | None:
    real = [formula for formula in formulas if not _NAME_ALONE.fullmatch(formula.content)]
    behind = sentence[formulas[-1].end - offset :] if formulas else sentence
    if real and real[-1] == formulas[-1] and not _CONCLUSION.match(behind):
        return real[-1].content
    if (run := _last_run(behind)) is not None:
        return run
    if real:
        return real[-1].content
    return None


def _last_run(text: str) -> str | None:
    """The last stretch of mathematics without delimiters that holds a number; else None."""
    runs = [match[0].strip(" .,;:&=*") for match in _RUN.finditer(text)]
    runs = [_ARTICLES.sub("", run) for run in runs if re.search(r"\d", run) or re.search(r"\\(?:infty|pi|sqrt)", run)]
    if not runs:
        return None
    run = runs[-1]
    if _is_statement(run):
        run = run.rpartition("=")[2].strip()
    return _UNIT_LETTER.sub("", run)


def _is_statement(run: str) -> bool:
    """Whether a run is a computation whose result stands behind its last sign of equality, as in 3 + 4 = 7."""
    left, sign, _ = run.rpartition("=")
    return bool(sign) and not re.search(r"[<>≤≥(]", run) and re.search(r"\d", left) is not None
