"""Verdicts on answers labelled by hand, and why ours are right where math-verify's differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.grading import grade

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("labelled_cases.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"line {number}, {case['category']}") for number, case in enumerate(CASES, start=1)]
)
def test_the_verdict_is_the_label(case: dict[str, Any]) -> None:
    verdict = grade(case["response"], case["reference"], case.get("extraction", "boxed"))
    assert verdict.correct is case["correct"], (verdict, case["reference"], case.get("why"))


def test_the_cases_are_many_and_each_category_has_right_and_wrong_answers() -> None:
    labels = {(case["category"], case["correct"]) for case in CASES}
    categories = {category for category, _ in labels}
    assert len(CASES) >= 300
    assert len(categories) >= 30
    assert {label for label in labels if label[1]} == {(category, True) for category in categories}
    assert {label for label in labels if not label[1]} == {(category, False) for category in categories}


def test_no_case_stands_there_twice() -> None:
    keys = [(case["response"], case["reference"], case.get("extraction")) for case in CASES]
    assert len(set(keys)) == len(keys)


def test_every_difference_to_math_verify_says_why_ours_is_right() -> None:
    for case in CASES:
        assert case["math_verify"] in (True, False, None), case
        assert (case["math_verify"] is not case["correct"]) == bool(case.get("why")), case
