"""Own rewards: what they are asked for, what becomes of what they give, and whose source they are."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.config import GradingSettings
from dcpo_async.errors import ConfigError
from dcpo_async.grading import Submission, Verdict
from dcpo_async.grading.rewards import RewardFunction, RewardPool, grading_of, resolved_reward, source_digest
from dcpo_async.grading.rewards.judging import judged

EXAMPLES = "tests.grading.rewards.examples"
MODULES = itertools.count()

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that can be imported; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"reward_of_a_test_{next(MODULES)}"

    def written(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return name

    yield written
    sys.modules.pop(name, None)


def submission(response: str = "yes", **changes: Any) -> Submission:
    return Submission("1+1=", "2", response, "stop", 3, '{"level": 4}')._replace(**changes)


def settings(function: str, **changes: Any) -> GradingSettings:
    values = {"reward": f"{EXAMPLES}:{function}", "timeout_seconds": 1.0, "workers": 1, **changes}
    return resolved_reward(GradingSettings(**values))


# ---- the function


def test_a_function_is_given_what_its_signature_names() -> None:
    assert RewardFunction(f"{EXAMPLES}:by_length")(submission(num_tokens=1)) == 1 / 7
    verdict = RewardFunction(f"{EXAMPLES}:everything")(submission())
    assert verdict == Verdict(True, "yes", "level 4", 0.5)


def test_a_coroutine_is_run_to_its_end() -> None:
    assert RewardFunction(f"{EXAMPLES}:awaited")(submission()) == 0.25


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (f"{EXAMPLES}:needs_more", "asks for 'weather'; by name it may ask for problem, answer, response"),
        (f"{EXAMPLES}:absent", "has no function absent"),
        (f"{EXAMPLES}:NOT_CALLABLE", "has no function NOT_CALLABLE"),
        ("no_such_module_anywhere:f", "cannot be imported: ModuleNotFoundError"),
        ("math:sqrt", "positional|asks for"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_in_one_line(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        RewardFunction(name)
    assert "\n" not in str(refused.value)


def test_a_module_that_raises_while_it_is_imported_is_refused_in_one_line(write: Write) -> None:
    name = write("raise SystemExit('two\\nlines')")
    with pytest.raises(ConfigError, match="cannot be imported: SystemExit: two lines"):
        RewardFunction(f"{name}:f")


# ---- its source


def test_a_digest_changes_with_the_source_and_with_the_packages_that_it_names(write: Write) -> None:
    first = source_digest(f"{write('def f(): return 1.0')}:f")
    assert first == source_digest(f"{write('def f(): return 1.0')}:f")
    assert first != source_digest(f"{write('def f(): return 0.5')}:f")
    plain, named = write("X = ('pebble',)"), "REWARD_PACKAGES = ('pebble',)"
    assert source_digest(f"{plain}:f") != source_digest(f"{write(named)}:f")
    with pytest.raises(ConfigError, match="needs the package no-such-package"):
        source_digest(write("REWARD_PACKAGES = ['no-such-package']") + ":f")


def test_settings_are_completed_with_the_digest_and_another_one_is_refused(write: Write) -> None:
    name = write("def f(response): return 1.0") + ":f"
    resolved = resolved_reward(GradingSettings(reward=name))
    assert resolved.reward_digest == source_digest(name)
    write("def f(response): return 0.5")
    with pytest.raises(ConfigError, match=f"its source here has digest .*, the run's has {resolved.reward_digest}"):
        resolved_reward(resolved)
    with pytest.raises(ConfigError, match="install the same version"):
        grading_of(resolved)


# ---- what it gives


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (1, Verdict(True, None, "full", 1.0)),
        (True, Verdict(True, None, "full", 1.0)),
        (0.25, Verdict(False, None, "partial", 0.25)),
        (-1.0, Verdict(False, None, "least", -1.0)),
        (1 / 3, Verdict(False, None, "partial", 0.333333333)),
        (-1e-12, Verdict(False, None, "partial", 0.0)),
        (float("nan"), Verdict(False, None, "not_finite", 0.0)),
        (float("inf"), Verdict(False, None, "not_finite", 0.0)),
        (1.5, Verdict(False, None, "out_of_range", 0.0)),
        ("1.0", Verdict(False, None, "no_number", 0.0)),
        (None, Verdict(False, None, "no_number", 0.0)),
        (Verdict(True, "2", "passed 3 of 3"), Verdict(True, "2", "passed 3 of 3", 1.0)),
        (Verdict(False, "2", "passed 1 of 3", 1 / 3), Verdict(False, "2", "passed 1 of 3", 0.333333333)),
        (Verdict(True, "2", "x", 7.0), Verdict(False, None, "out_of_range", 0.0)),
    ],
)
def test_what_a_function_gives_becomes_a_verdict(result: object, expected: Verdict) -> None:
    verdict = judged(result, (-1.0, 1.0)).verdict
    assert verdict == expected
    assert verdict is not None
    assert str(verdict.reward) != "-0.0"


async def test_whatever_a_function_does_each_response_has_a_verdict() -> None:
    pool = RewardPool(settings("what_it_says"), 1)
    words = ["0.5", "raises", "exits", "dies", "hangs", "none", "nan", "2", "verdict", "1"]
    verdicts = [await pool.grade(submission(word)) for word in words]
    pool.close()
    reasons = ["partial", "raised", "raised", "crashed", "timeout", "no_number", "not_finite", "out_of_range"]
    assert [verdict.reason for verdict in verdicts] == [*reasons, "equal", "full"]
    assert [verdict.reward for verdict in verdicts] == [0.5, *[0.0] * 7, 1.0, 1.0]


async def test_a_worker_does_not_grade_by_a_source_that_was_changed(write: Write) -> None:
    name = write("def f(response): return 1.0") + ":f"
    pool = RewardPool(resolved_reward(GradingSettings(reward=name, workers=1)), 1)
    write("def f(response): return 0.5  # by another rule")
    pool._workers._pool.stop()  # as the end of a worker's life does: the next one imports anew
    pool._workers._pool.join()
    with pytest.raises(ConfigError, match="its source here has digest"):
        await pool.grade(submission())
    pool.close()
