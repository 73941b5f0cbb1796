"""Reads problems and reference answers from a file, a folder, or a Hugging Face data set."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.grading import extract_answer
from dcpo_async.limits import MAX_TEXT
from dcpo_async.prompts.answers import from_json, text_of, why_no_answer
from dcpo_async.prompts.digest import digest_of
from dcpo_async.prompts.presets import BOXED, ProblemSource
from dcpo_async.prompts.rows import Row, Rows, is_text

Language = Literal["any", "en", "zh"]

_FIRST_ROWS = 1000
_LEVEL_FIELDS = ("level", "source")
_LEVEL = re.compile(r"(?:^|Level )(\d+)$")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its reference answer, as the data set has them.

    Attributes:
        level: where the set has levels, as MATH does.
        metadata: what an own reward is given of the row, a JSON object; empty for none.
    """

    problem: str
    answer: str
    level: int | None = None
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """What was read from a source; no two problems are the same.

    Attributes:
        problems: in the order of the source.
        num_rows: all rows read.
        left_out: what is not among the problems, by reason; with them it adds up to num_rows. "no answer": the
            answer is missing or empty, does not match, or is a word such as "not found". "no problem": its text is.
            "proof", "several answers", "a structure for an answer", "a truth value for an answer": what stands there
            instead. "broken text": half of a surrogate pair. "duplicate": the problem stands in an earlier row.
            "conflicting": the problem's rows disagree about its answer. "language", "level": not the ones asked for.
    """

    problems: tuple[Problem, ...]
    num_rows: int
    left_out: Mapping[str, int]

    @property
    def digest(self) -> str:
        """Of all problems, answers and what else rewards are given, in order."""
        return digest_of(
            text
            for problem in self.problems
            for text in (problem.problem, problem.answer, *filter(None, [problem.metadata]))
        )


def load(source: ProblemSource, language: Language = "any", levels: Collection[int] = ()) -> LoadedProblems:
    """The problems of a source, with those left out that cannot be graded or are not wanted.

    A problem whose rows disagree about the answer is left out altogether: a reward for one of its answers would be
    wrong, and nothing tells which.

    Args:
        language: "zh" keeps problems with a Chinese character, "en" those without one.
        levels: keeps problems of these levels; none keeps all.

    Raises DatasetError where the source is missing, malformed or without a usable row, or has no levels to choose
    from; ConfigError for a bad pattern.
    """
    read = Rows(source, _columns(source))
    rows = iter(read)
    first = list(islice(rows, _FIRST_ROWS))
    if not first:
        raise DatasetError(f"data set {source.location} is empty; give one with at least one row")
    source = _with_fields_of(first, source)
    problems, left_out = _distinct(source, chain(first, rows), read.fields)
    num_rows = len(problems) + left_out.total()
    if levels and all(problem.level is None for problem in problems):
        raise DatasetError(
            f"levels {sorted(levels)} are asked for, but no row of {source.location} has a level in "
            f"{' or '.join(_LEVEL_FIELDS)}; take a source with levels, such as math, or all levels"
        )
    wanted = [problem for problem in problems if language in ("any", "zh" if _HAN.search(problem.problem) else "en")]
    left_out["language"] = len(problems) - len(wanted)
    kept = tuple(problem for problem in wanted if not levels or problem.level in levels)
    left_out["level"] = len(wanted) - len(kept)
    if not kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        raise DatasetError(f"none of the {num_rows} rows of {source.location} is left ({reasons}); ask for others")
    return LoadedProblems(kept, num_rows, left_out)


def _columns(source: ProblemSource) -> set[str]:
    fields = {source.problem_field, source.answer_field, *source.metadata_fields, *_LEVEL_FIELDS}
    if source.is_copy:
        fields |= {"problem", "answer"}
    return fields | {field.partition(".")[0] for field in fields}


def _with_fields_of(first: Iterable[Row], source: ProblemSource) -> ProblemSource:
    """A copy of whose first rows none has its preset's fields has the plain ones."""
    fields = (source.problem_field, source.answer_field)
    if not source.is_copy or any(all(_value_at(row, field) is not None for field in fields) for row in first):
        return source
    return replace(source, problem_field="problem", answer_field="answer", answer_pattern=None)


def _distinct(
    source: ProblemSource, rows: Iterable[Row], fields: Collection[str]
) -> tuple[list[Problem], Counter[str]]:
    """Every problem once; large data sets repeat theirs by the hundred, so that rows are not kept."""
    answer_in = _answer_finder(source.answer_pattern)
    before, after = source.instructions
    problems: dict[str, Problem] = {}
    conflicting: set[str] = set()
    left_out = Counter({"no answer": 0, "duplicate": 0})
    absent = {source.problem_field, source.answer_field, *source.metadata_fields}
    for row in rows:
        absent -= {field for field in absent if _value_at(row, field) is not None}
        text = text_of(_value_at(row, source.problem_field)).removeprefix(before).removesuffix(after).strip()
        value = _value_at(row, source.answer_field)
        answer = answer_in(text_of(value))
        reason = why_no_answer(value, answer)
        if not text or reason:
            left_out[reason or "no problem"] += 1
        elif not is_text(text + answer + (metadata := _metadata(source, row))):
            left_out["broken text"] += 1
        elif text in problems:
            left_out["duplicate"] += 1
            if answer != problems[text].answer:
                conflicting.add(text)
        else:
            problems[text] = Problem(text, answer, _level(row), metadata)
    if absent:
        raise DatasetError(
            f"no row of {source.location} has a value in {' or '.join(sorted(absent))}; the fields found are "
            f"{', '.join(sorted(fields))}: set problem_field and answer_field to two of them"
        )
    if not problems:
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        raise DatasetError(
            f"none of the {left_out.total()} rows of {source.location} ({reasons}) has both a problem in "
            f"{source.problem_field} and an answer in {source.answer_field}; check the fields and answer_pattern "
            f"({source.answer_pattern or 'none'})"
        )
    left_out["conflicting"] = len(conflicting)
    return [problem for text, problem in problems.items() if text not in conflicting], left_out


def _metadata(source: ProblemSource, row: Row) -> str:
    if not source.metadata_fields:
        return ""
    text = json.dumps(
        {field: _value_at(row, field) for field in source.metadata_fields}, ensure_ascii=False, default=str
    )
    if len(text) > MAX_TEXT:
        raise DatasetError(
            f"{source.location}: a row has {len(text)} characters in {', '.join(source.metadata_fields)}, at most "
            f"{MAX_TEXT} can travel with a problem"
        )
    return text


def _answer_finder(pattern: str | None) -> Callable[[str], str]:
    if pattern is None:
        return str
    if pattern == BOXED:
        return lambda text: extract_answer(text, BOXED) or ""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"answer_pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ConfigError(f"answer_pattern {pattern!r} has {compiled.groups} groups; put one, around the answer")
    return lambda text: (compiled.findall(text) or [""])[-1].strip()


def _value_at(row: object, field: str) -> object:
    """A column may itself contain dots, so the whole name comes first."""
    if isinstance(row, Mapping) and field in row:
        return row[field]
    head, _, rest = field.partition(".")
    if isinstance(row, str):
        row = from_json(row)
    if isinstance(row, Mapping):
        value = row.get(head)
    elif isinstance(row, list) and head.isdecimal() and int(head) < len(row):
        value = row[int(head)]
    else:
        return None
    return _value_at(value, rest) if rest else value


def _level(row: Row) -> int | None:
    """3 of 3, "Level 3" and "hendrycks_math/train/Algebra/Level 3"."""
    found = (_LEVEL.search(text_of(row.get(field))) for field in _LEVEL_FIELDS)
    return next((int(match[1]) for match in found if match), None)
