"""The rewards of docs/rewards.md do what the page says."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.grading import Submission, Verdict
from dcpo_async.grading.rewards import RewardFunction

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
SOURCE = textwrap.dedent(PAGE.partition("## Three examples\n\n")[2].partition("\n\nThe last one bounds")[0])
PROGRAM = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\n"
ENDLESS = "```python\ndef double(x):\n    while True: pass\n```"
TESTS = '{"tests": ["assert double(2) == 4", "assert double(2) == 5"]}'


@pytest.mark.parametrize(
    ("name", "response", "changes", "expected"),
    [
        ("formatted", r"<think>1</think> <answer>\boxed{2}</answer>", {}, 1.0),
        ("formatted", r"<think>1</think> <answer>\boxed{3}</answer>", {}, 0.2),
        ("formatted", r"\boxed{2}", {}, 0.0),
        ("concise", r"\boxed{2}", {"num_tokens": 1024}, 0.75),
        ("concise", r"\boxed{2}", {"num_tokens": 4000}, 0.5),
        ("concise", r"\boxed{2}", {"finish_reason": "length"}, 0.0),
        ("passes_tests", PROGRAM, {"metadata": TESTS}, Verdict(False, None, "passed 1 of 2", 0.5)),
        ("passes_tests", ENDLESS, {"metadata": TESTS}, Verdict(False, None, "passed 0 of 2", 0.0)),
        ("passes_tests", "none", {"metadata": TESTS}, Verdict(False, None, "no program", 0.0)),
    ],
)
def test_an_example_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    response: str,
    changes: dict[str, Any],
    expected: float | Verdict,
) -> None:
    (tmp_path / "documented_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    submission = Submission("1+1", "2", response, "stop", 10)._replace(**changes)
    assert RewardFunction(f"documented_rewards:{name}")(submission) == expected
