"""Grading one response in-process."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpo_async.grading import Verdict, grade, reward_of
from dcpo_async.grading.grader import MAX_ANSWER_CHARS, quick_verdict


def test_a_number_is_graded_exactly() -> None:
    assert grade(r"\boxed{0.5}", r"\frac{1}{2}") == Verdict(correct=True, extracted="0.5", reason="equal")
    assert grade(r"\boxed{0.4}", r"\frac{1}{2}") == Verdict(False, "0.4", "different")


@pytest.mark.parametrize(
    ("answer", "reference", "correct"),
    [
        ("(x+1)^2", "x^2+2x+1", True),
        ("(x-1)^2", "x^2+2x+1", False),
        ("2,1", r"\{1,2\}", True),
        ("(2,1)", "(1,2)", False),
        (r"50\%", "50", True),
        ("x=5", "5", True),
        (r"3\frac12", "3.5", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("1 or 2 or 34", "34", False),
        (r"17_{8}", "15", True),
    ],
)
def test_expressions_are_compared_as_mathematics(answer: str, reference: str, correct: bool) -> None:
    reason = "equal" if correct else "different"
    assert grade(rf"\boxed{{{answer}}}", reference) == Verdict(correct, answer, reason)


def test_the_extraction_mode_decides_where_the_answer_may_stand() -> None:
    assert grade("the answer is 7", "7") == Verdict(False, None, "no_answer")
    assert grade("the answer is 7", "7", extraction="answer") == Verdict(True, "7", "equal")
    assert grade("seven is 7!", "7", extraction="last_number") == Verdict(True, "7", "equal")


def test_an_empty_answer_never_equals_an_empty_reference() -> None:
    assert grade(r"\boxed{}", "") == Verdict(False, None, "no_reference")
    assert grade(r"\boxed{\text{ }}", r"\text{}") == Verdict(False, r"\text{ }", "different")


def test_an_answer_longer_than_the_limit_is_no_answer() -> None:
    assert grade(r"\boxed{" + "1" * MAX_ANSWER_CHARS + "}", "1" * MAX_ANSWER_CHARS).correct is True
    assert grade(r"\boxed{" + "1" * (MAX_ANSWER_CHARS + 1) + "}", "1") == Verdict(False, None, "too_long")


def test_a_box_beyond_the_reach_of_extraction_is_not_read() -> None:
    assert grade(r"\boxed{1}" + " " * 200_000, "1") == Verdict(False, None, "no_answer")


def test_an_answer_cannot_close_the_box_it_is_compared_in() -> None:
    assert grade("the answer is 5}{9", "5", extraction="answer") == Verdict(False, "5}{9", "different")


@pytest.mark.parametrize(
    "hostile",
    [
        "{" * 2**20,
        "\\boxed{" * 150_000,
        "\\boxed{" + "{}" * 2**19,
        "1," * 2**19,
        "answer " * 2**17,
        "\\" * 2**20,
    ],
    ids=["open", "boxes", "pairs", "commas", "markers", "backslashes"],
)
@pytest.mark.timeout(5)
def test_a_megabyte_of_noise_is_dismissed_without_algebra(hostile: str) -> None:
    assert quick_verdict(hostile, "x+1", "answer").correct is False


@given(st.text(alphabet="0123456789xy+-*/^_{}()[]\\,.=$% \ud800\x00", max_size=12), st.text(max_size=12))
@settings(max_examples=40, deadline=None)
def test_grading_never_raises_and_is_a_pure_function(answer: str, reference: str) -> None:
    response = rf"\boxed{{{answer}}}"
    verdict = grade(response, reference)
    assert verdict == grade(response, reference)
    assert not (verdict.correct and verdict.extracted is None)


def test_input_that_is_no_text_gets_a_verdict_too() -> None:
    nothing: object = None
    assert grade(nothing, "1") == Verdict(False, None, "not_text")  # type: ignore[arg-type]


def test_the_reward_is_one_zero_or_the_penalty_for_no_answer() -> None:
    assert reward_of(Verdict(True, "1", "equal"), format_penalty=0.5) == 1.0
    assert reward_of(Verdict(False, "2", "different"), format_penalty=0.5) == 0.0
    assert reward_of(Verdict(False, None, "no_answer"), format_penalty=0.5) == -0.5
    assert str(reward_of(Verdict(False, None, "no_answer"))) == "0.0"


def test_importing_the_grader_does_not_load_sympy() -> None:
    program = "import sys, dcpo_async.grading; print('sympy' in sys.modules, 'math_verify' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.split() == ["False", "False"]


def test_grading_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    grade(r"\boxed{\frac{)}{x}+^}", r"\int")
    assert capfd.readouterr() == ("", "")
