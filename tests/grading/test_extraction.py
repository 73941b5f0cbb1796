"""Where in a response the answer is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.grading import extract_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{1}, no: \boxed{ 2 }", "2"),
        (r"nested \boxed{\boxed{7}}", "7"),
        (r"escaped \boxed{\{1, 2\}} braces", r"\{1, 2\}"),
        (r"\boxed {3}", "3"),
        (r"an open { brace before \boxed{5}", "5"),
        (r"a closing } before \boxed{5}", "5"),
        (r"complete \boxed{8}, then cut off at \boxed{9", None),
        (r"\boxed{8} as asked in \boxed{}", "8"),
        (r"\boxed{x = \boxed{8}}", "8"),
        (r"\fbox{8}, and then \boxed 9.", "9"),
        (r"cut off \boxed{\frac{1}{2}", None),
        (r"\boxed{}", None),
        ("no box: the answer is 4", None),
        ("", None),
    ],
)
def test_boxed_reads_the_last_box_whose_braces_balance(response: str, answer: str | None) -> None:
    assert extract_answer(response, "boxed") == answer


def test_only_text_after_the_closing_think_tag_counts() -> None:
    assert extract_answer(r"<think>\boxed{1}</think> It is \boxed{2}.") == "2"
    assert extract_answer(r"<think>maybe \boxed{1}</think> I do not know.") is None
    assert extract_answer(r"<think>\boxed{1} cut off") is None
    assert extract_answer(r"</think> It is \boxed{2}. <think>or \boxed{3}") == "2"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("17 * 4 = 68\n#### 68", "68"),
        ("#### 1\nmore\n#### 2\nbye", "2"),
        ("The answer is 42. I hope it is correct.", "42"),
        ("The final Answer is: **3.5**.", "3.5"),
        ("the answer is\n\n$x+1$", "$x+1$"),
        (r"the answer is 1, that is \boxed{2}", "2"),
        ("there are 12 apples", None),
        ("####", None),
    ],
)
def test_answer_falls_back_on_the_text_behind_a_marker(response: str, answer: str | None) -> None:
    assert extract_answer(response, "answer") == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("first 3, then 12 apples.", "12"),
        ("it costs $1,234.50 in total", "$1,234.50"),
        ("that is 3/4 of the cake", "3/4"),
        ("it falls to -5", "-5"),
        ("so 12-5", "5"),
        ("7 of them, and the answer is 9", "9"),
        ("none at all", None),
    ],
)
def test_last_number_falls_back_on_the_last_number(response: str, answer: str | None) -> None:
    assert extract_answer(response, "last_number") == answer


@given(st.text(alphabet="ab{}\\ ", max_size=30), st.integers())
def test_a_box_at_the_end_is_found_whatever_stands_before_it(before: str, answer: int) -> None:
    assert extract_answer(f"{before} \\boxed{{{answer}}}") == str(answer)


@pytest.mark.timeout(5)
def test_white_space_behind_a_marker_costs_linear_time() -> None:
    assert extract_answer("the answer" + " " * 90_000 + "x", "answer") is None


def test_a_box_that_is_only_spoken_of_is_none() -> None:
    assert extract_answer(r"\boxed{5}. That is the \boxed answer.") == "5"
