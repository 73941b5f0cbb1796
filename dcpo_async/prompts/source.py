"""Reads problems and reference answers from a file, a folder, or a Hugging Face data set."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.prompts.digest import digest_of

Row = Mapping[str, object]

_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its reference answer, as the data set has them."""

    problem: str
    answer: str


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """What was read from a source.

    Attributes:
        problems: in the order of the source.
        num_rows: all rows read.
        num_without_answer: rows left out, because problem or answer is missing or empty or does not match.
        digest: of all problems and answers in order; checked when a run resumes.
    """

    problems: tuple[Problem, ...]
    num_rows: int
    num_without_answer: int
    digest: str


def load_problems(
    source: str,
    problem_field: str = "problem",
    answer_field: str = "answer",
    split: str = "train",
    subset: str | None = None,
    answer_pattern: str | None = None,
) -> LoadedProblems:
    """The problems of a source, with the rows that cannot be graded left out and counted.

    Args:
        source: path of a .jsonl or .json file (one object per line) or a .parquet file; anything else is a
            folder or the id of a Hugging Face data set.
        problem_field, answer_field: column names; a dot reaches into nested values ("prompt.0.content").
        split, subset: of a Hugging Face data set ("openai/gsm8k" has the subset "main"); files have neither.
        answer_pattern: regular expression with one group that finds the answer in a longer solution; the last
            match counts (GSM8K: "#### (.+)").

    Raises DatasetError where the source is missing, malformed or without a usable row, ConfigError for a bad
    pattern.
    """
    pattern = _compiled(answer_pattern)
    if source.endswith(_FILE_SUFFIXES):
        path = Path(source).expanduser()
        if not path.is_file():
            raise DatasetError(f"data file {source} does not exist (looked in {Path.cwd()}); check the path")
        rows: Iterable[Row] = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    else:
        rows = _hub_rows(source, subset, split)
    return _collected(source, rows, problem_field, answer_field, pattern)


def _compiled(answer_pattern: str | None) -> re.Pattern[str] | None:
    if answer_pattern is None:
        return None
    try:
        pattern = re.compile(answer_pattern)
    except re.error as error:
        raise ConfigError(f"answer_pattern {answer_pattern!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise ConfigError(f"answer_pattern {answer_pattern!r} has {pattern.groups} groups; put one, around the answer")
    return pattern


def _collected(
    source: str, rows: Iterable[Row], problem_field: str, answer_field: str, pattern: re.Pattern[str] | None
) -> LoadedProblems:
    problems: list[Problem] = []
    num_rows = 0
    fields: set[str] = set()
    absent = {problem_field, answer_field}
    for row in rows:
        num_rows += 1
        fields.update(row)
        absent -= {field for field in absent if _value_at(row, field) is not None}
        problem = _text(_value_at(row, problem_field))
        answer = _answer(_text(_value_at(row, answer_field)), pattern)
        if problem and answer:
            problems.append(Problem(problem, answer))
    if num_rows == 0:
        raise DatasetError(f"data set {source} is empty; give one with at least one row")
    if absent:
        raise DatasetError(
            f"no row of {source} has a value in {' or '.join(sorted(absent))}; the fields found are "
            f"{', '.join(sorted(fields))}: set problem_field and answer_field to two of them"
        )
    if not problems:
        raise DatasetError(
            f"none of the {num_rows} rows of {source} has both a problem in {problem_field} and an answer in "
            f"{answer_field}; check the fields and answer_pattern ({pattern.pattern if pattern else 'none'})"
        )
    digest = digest_of(text for problem in problems for text in (problem.problem, problem.answer))
    return LoadedProblems(tuple(problems), num_rows, num_rows - len(problems), digest)


def _value_at(row: object, field: str) -> object:
    """A column may itself contain dots, so the whole name comes first."""
    if isinstance(row, Mapping) and field in row:
        return row[field]
    head, _, rest = field.partition(".")
    if isinstance(row, Mapping):
        value = row.get(head)
    elif isinstance(row, list) and head.isdecimal() and int(head) < len(row):
        value = row[int(head)]
    else:
        return None
    return _value_at(value, rest) if rest else value


def _text(value: object) -> str:
    """Numbers are answers too; anything with structure is not."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return ""


def _answer(text: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return text
    found: list[str] = pattern.findall(text)
    return found[-1].strip() if found else ""


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_row(path, number, line)
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} is not UTF-8 text: {error}; convert it") from error


def _json_row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetError(
            f"{path}, line {number}: malformed JSON ({error}); each line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise DatasetError(f"{path}, line {number}: found a {type(row).__name__}; each line must be one JSON object")
    return row


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DatasetError(f"{path} is not a readable parquet file: {error}") from error


def _hub_rows(source: str, subset: str | None, split: str) -> Iterable[Row]:
    # Imported here because it takes a second and only hub data needs it.
    from datasets import load_dataset

    try:
        rows: Iterable[Row] = load_dataset(source, subset, split=split)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"data set {source!r} (subset {subset}, split {split}) cannot be loaded: {error}; give a path "
            f"ending in {', '.join(_FILE_SUFFIXES)}, a folder, or the id of a Hugging Face data set"
        ) from error
    return rows
