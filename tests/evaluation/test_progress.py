import io
import logging

import pytest
from rich.console import Console

from dcpo_async.evaluation.progress import EvaluationProgress
from tests.evaluation.made_results import response, result

RIGHT, WRONG = result("a", response(True)), result("b", response(False))


def test_a_terminal_shows_a_bar_with_the_share_of_right_responses() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200, color_system=None)
    with EvaluationProgress("base", {"aime24": 3}, console) as progress:
        progress.resume("aime24", [RIGHT])
        progress.advance("aime24", WRONG)
    bar = [line for line in text.getvalue().splitlines() if "base aime24" in line][-1]
    assert "2/3 50.0 % right" in bar
    assert "tokens/s" in bar


def test_without_a_terminal_the_log_says_when_a_set_is_done(caplog: pytest.LogCaptureFixture) -> None:
    text = io.StringIO()
    with (
        caplog.at_level(logging.INFO),
        EvaluationProgress("base", {"aime24": 2, "amc23": 2}, Console(file=text)) as progress,
    ):
        progress.advance("aime24", RIGHT)
        assert caplog.messages == []
        progress.advance("aime24", WRONG)
    (message,) = caplog.messages
    assert message.startswith("base, aime24: 2 of 2 problems, 50.0 % right, ")
    assert text.getvalue() == ""
