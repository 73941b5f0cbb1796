"""An own reward between 0 and 1 through the real services: a run that is killed ends as one that nothing disturbed."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.algorithm import RewardStats
from tests.system.conftest import STEADY
from tests.system.services import Services, assert_counted_once

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
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[dict[str, Services]]:
    """One run that was killed after its sixth step and went on, and one that nothing disturbed."""
    folder, found = tmp_path_factory.mktemp("rewards"), dict[str, Services]()
    (folder / "reward_of_this_run.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        for name in ("killed", "steady"):
            (folder / name).mkdir()
            with Services(folder / name, model) as services:
                found[name] = services
                learner = services.start_learner(*WORDS)
                actor = services.start_actor("--tokens-per-second", "50" if name == "killed" else "1000000")
                if name == "killed":
                    services.until_step(6)
                    learner.signal(signal.SIGKILL)
                    learner.process.wait()
                    learner = services.start_learner(*WORDS)
                services.ends_well(learner)
                services.ends_well(actor)
        yield found


def test_statistics_are_those_of_the_replay_bit_for_bit(runs: dict[str, Services]) -> None:
    for query in (
        "SELECT * FROM prompt_stats",
        "SELECT position, rewards, advantages FROM groups ORDER BY position",
    ):
        assert runs["killed"].ledger(query) == runs["steady"].ledger(query)
    assert runs["killed"].exported_weights() == runs["steady"].exported_weights()
    assert_counted_once(runs["killed"])


def test_statistics_are_those_of_the_rewards_in_the_groups(runs: dict[str, Services]) -> None:
    replayed = dict[str, RewardStats]()
    query = "SELECT prompt_id, rewards FROM groups JOIN visits USING (position) ORDER BY position"
    rewards = set[float]()
    for prompt_id, text in runs["killed"].ledger(query):
        group = [float(reward) for reward in text.split()]
        rewards.update(group)
        replayed[prompt_id] = replayed.get(prompt_id, RewardStats()).with_rewards(group)
    assert len(rewards) > 3
    assert all(0 <= reward <= 1 for reward in rewards)
    stored = runs["killed"].ledger("SELECT prompt_id, visits, count, sum_nano, sum_sq_nano FROM prompt_stats")
    assert {row[0]: RewardStats(*map(int, row[1:])) for row in stored} == replayed


def test_failures_are_counted_and_what_the_learner_grades_again_is_the_same(runs: dict[str, Services]) -> None:
    last = runs["steady"].metrics()[-1]
    assert last["total_rewards_raised"] > 0
    assert last["total_regraded"] > 0
    assert "total_regrade_disagreements" not in last
    assert "by_digits: raised (ValueError: a three); the response has reward 0" in engine_log(runs["steady"])


def test_a_changed_reward_is_noticed_by_learner_and_actor(runs: dict[str, Services], tmp_path: Path) -> None:
    steady, (settings,) = runs["steady"], runs["steady"].ledger("SELECT settings FROM starts")
    digest = kept(settings)["grading"]["reward_digest"]
    (tmp_path / "reward_of_this_run.py").write_text(REWARD.replace("/ 3", "/ 2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        stopped = steady.start_learner(*WORDS, "--grading.reward_digest", digest)
        assert stopped.process.wait(100) == 2
        assert re.search(f"its source here has digest [0-9a-f]{{16}}, the run's has {digest}", stopped.log)
        again = steady.start_learner(*WORDS)
        assert again.process.wait(100) == 0
        assert f'grading.reward_digest "{digest}" → "' in again.log


def kept(row: tuple[str]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(row[0])
    return settings


def engine_log(services: Services) -> str:
    return next(services.folder.glob("actor-*/engine-0.log")).read_text()
