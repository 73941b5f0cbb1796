"""The answers of the problem sets themselves: each equals itself, and none equals its neighbour."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from dcpo_async.grading import grade

DATA = Path(__file__).parents[3] / "shared" / "data"
SETS = ["gsm8k_test", "math_test", "math500", "aime24", "aime25", "amc23"]

# Neighbours that are spelled differently and equal all the same, by hand: \frac{3}{4} and \frac34, 120^\circ and 120,
# 7\% and 7, 5 and x=5.
EQUAL_TO_THE_NEXT = {"math-test-01660", "math-test-03596", "math-test-04159", "math500-022"}


@pytest.fixture(params=SETS)
def problems(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    path = DATA / f"{request.param}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the local copies of the problem sets")
    return [json.loads(line) for line in path.read_text().splitlines()]


def response_with(answer: str) -> str:
    return f"Adding up what we found, the answer is $\\boxed{{{answer}}}$, as required."


def test_each_answer_is_right_against_itself(problems: list[dict[str, str]]) -> None:
    wrong = [
        (problem["id"], problem["answer"])
        for problem in problems
        if not grade(response_with(problem["answer"]), problem["answer"]).correct
    ]
    assert wrong == []


def test_each_answer_is_wrong_against_the_next_that_differs(problems: list[dict[str, str]]) -> None:
    equal = {
        problem["id"]
        for problem, following in pairwise(problems)
        if "".join(problem["answer"].split()) != "".join(following["answer"].split())
        and grade(response_with(following["answer"]), problem["answer"]).correct
    }
    assert equal == EQUAL_TO_THE_NEXT & {problem["id"] for problem in problems}
