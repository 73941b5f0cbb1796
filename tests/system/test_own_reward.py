"""An own reward between 0 and 1 through the real services: a killed run counts what its replay counts."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from learner.ledger.copy import open_copy
from tests.system.conftest import STEADY
from tests.system.services import Service, Services, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

REWARD = """
def by_digits(problem, answer, response, finish_reason, num_tokens, metadata):
    assert problem.endswith("=") and answer and metadata == {}
    if "3" in response:
        raise ValueError("a three")
    return sum(map(str.isdigit, response)) / max(1, len(response)) / 3
"""
WORDS = (*STEADY, "--grading.reward", "reward_of_this_run:by_digits", "--actor.regrade_share", "1.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Services]:
    """A run that was killed after its sixth step, and went on to its end."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "reward_of_this_run.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with Services(folder, model) as services:
            learner, actor = services.start_learner(*WORDS), services.start_actor("--tokens-per-second", "50")
            services.until_step(6)
            learner.signal(signal.SIGKILL)
            learner.process.wait()
            learner = services.start_learner(*WORDS)
            services.ends_well(learner, seconds=200)
            services.ends_well(actor)
            yield services


def test_statistics_are_those_of_a_replay_from_the_texts_bit_for_bit(run: Services) -> None:
    """The replay has the stored texts alone: it calls the reward by itself, and counts in fractions."""
    scope: dict[str, Any] = {}
    exec(REWARD, scope)
    replayed = dict[str, list[list[Fraction]]]()
    with open_copy(run.run / "ledger", is_checked=True) as reader:
        for visit in reader.visits("accepted"):
            problem, answer = reader.prompt_text(visit.prompt_id) or ("", "")
            stored = reader.read_group(visit.position)
            group = [reward_again(scope["by_digits"], problem, answer, item.text) for item in stored.group.responses]
            assert list(stored.rewards) == [float(reward) for reward in group]
            replayed.setdefault(visit.prompt_id, []).append(group)
    assert len({reward for groups in replayed.values() for group in groups for reward in group}) > 3
    query = "SELECT prompt_id, visits, count, sum_nano, sum_sq_nano FROM prompt_stats"
    assert {row[0]: [int(number) for number in row[1:]] for row in run.ledger(query)} == {
        prompt_id: [
            len(groups),
            sum(map(len, groups)),
            10**9 * sum(reward for group in groups for reward in group),
            10**18 * sum(reward**2 for group in groups for reward in group),
        ]
        for prompt_id, groups in replayed.items()
    }
    assert_counted_once(run)


def test_failures_are_counted_and_what_the_learner_grades_again_is_the_same(run: Services) -> None:
    status = run.metrics()[-1]
    assert status["total_rewards_raised"] > 0
    assert "total_regrade_disagreements" not in status
    assert "by_digits: raised (ValueError: a three); the response has reward 0" in engine_log(run)


def test_a_changed_reward_is_refused_where_a_digest_is_given_and_else_recorded(run: Services, tmp_path: Path) -> None:
    ((settings,),) = set(run.ledger("SELECT settings FROM starts"))
    digest = json.loads(settings)["grading"]["reward_digest"]
    (tmp_path / "reward_of_this_run.py").write_text(REWARD.replace("/ 3", "/ 2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        words = [str(run.config), *WORDS]
        refused = Service(tmp_path / "refused.log", "learner.launcher", *words, "--grading.reward_digest", digest)
        assert refused.process.wait(100) == 2
        assert re.search(f"its source here has digest [0-9a-f]{{16}}, the run's has {digest}", refused.log)
        again = Service(tmp_path / "again.log", "learner.launcher", *words)
        assert again.process.wait(100) == 0
        assert f'grading.reward_digest "{digest}" → "' in again.log


def reward_again(function: Callable[..., float], problem: str, answer: str, text: str) -> Fraction:
    try:
        reward = function(problem, answer, text, "stop", 1, {})
    except ValueError:
        reward = 0.0
    return Fraction(round(reward * 10**9), 10**9)


def engine_log(services: Services) -> str:
    return next(services.folder.glob("actor-*/engine-0.log")).read_text()
