"""Fields of a row that travel with its problem, for an own reward."""

import json
from pathlib import Path

import pytest

from dcpo_async.errors import DatasetError
from dcpo_async.limits import MAX_TEXT
from dcpo_async.prompts import load, problem_source


def written(folder: Path, **row: object) -> str:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1+1", "answer": "2", **row}) + "\n")
    return str(path)


def test_fields_travel_as_a_json_object_and_change_the_digest(tmp_path: Path) -> None:
    plain = load(problem_source(written(tmp_path, tests=["a"], info={"level": 3})))
    source = problem_source(str(tmp_path / "rows.jsonl"), metadata_fields=("tests", "info.level"))
    loaded = load(source)
    assert plain.problems[0].metadata == ""
    assert json.loads(loaded.problems[0].metadata) == {"tests": ["a"], "info.level": 3}
    assert loaded.digest != plain.digest


def test_a_field_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no row of .* has a value in tests"):
        load(problem_source(written(tmp_path), metadata_fields=("tests",)))


def test_what_is_too_long_for_a_lease_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a row has .* characters in tests, at most"):
        load(problem_source(written(tmp_path, tests="x" * MAX_TEXT), metadata_fields=("tests",)))
