"""`dcpo eval` grades as a run would: by the built-in grader, or by an own reward."""

import json
from pathlib import Path
from typing import Any

import pytest

from actor.evaluation.__main__ import _parser, main
from actor.evaluation.command import asked_grading
from dcpo_async.config import GradingSettings
from dcpo_async.errors import ConfigError
from dcpo_async.grading.rewards import source_digest
from tests.tiny_model import make_tiny_model

BY_LENGTH, EVERYTHING = "tests.grading.rewards.examples:by_length", "tests.grading.rewards.examples:everything"
SHORT = ("--max-prompt-tokens", "32", "--max-response-tokens", "16", "--system-prompt", "", "--engine", "scripted")


def asked(*words: str) -> GradingSettings | None:
    return asked_grading(_parser().parse_args(["model", "--data", "set.jsonl", *words]))


def results(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("model/*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    make_tiny_model(tmp_path / "model", 0)
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1), "level": i} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [str(tmp_path / "model"), "--data", str(tmp_path / "sums.jsonl"), "--out", str(tmp_path / "out")]
    return [*places, "--no-greedy", "--samples", "4", *SHORT]


def test_an_own_reward_says_what_a_response_is_worth_and_the_highest_is_right(words: list[str], tmp_path: Path) -> None:
    main([*words, "--reward", BY_LENGTH])
    responses = [response for line in results(tmp_path / "out") for response in line["responses"]]
    assert len(responses) == 24
    for response in responses:
        assert response["reward"] == round(min(1.0, response["num_tokens"] / 7) * 10**9) / 10**9
        assert response["correct"] is (response["num_tokens"] >= 7)
    assert {response["correct"] for response in responses} == {True, False}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["reward"], settings["reward_digest"]) == (BY_LENGTH, source_digest(BY_LENGTH))
    with pytest.raises(SystemExit):
        main(words)
    main([*words, "--reward", BY_LENGTH])


def test_it_is_given_what_it_asks_for(words: list[str], tmp_path: Path) -> None:
    main([*words, "--reward", EVERYTHING, "--reward-range", "-1", "1", "--metadata-fields", "level"])
    for line in results(tmp_path / "out"):
        level = int(line["problem"].split("+")[0])
        assert {response["reason"] for response in line["responses"]} == {f"level {level}"}
        assert {(response["reward"], response["correct"]) for response in line["responses"]} == {(0.5, False)}


def test_without_one_the_built_in_grader_gives_1_to_what_is_right(words: list[str], tmp_path: Path) -> None:
    main(words)
    responses = [response for line in results(tmp_path / "out") for response in line["responses"]]
    assert all(response["reward"] == float(response["correct"]) for response in responses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--reward-range", "0", "2"], "--reward-range would not be read, it needs --reward"),
        (["--metadata-fields", "level"], "--metadata-fields would not be read, it needs --reward"),
        (["--reward", BY_LENGTH, "--reward-range", "1", "2"], "--reward-range 1 2: from the lowest to the highest"),
        (["--reward", "no function"], "--reward no function: String should match pattern"),
        (["--reward", "nowhere:f"], "grading.reward nowhere:f: nowhere cannot be imported"),
    ],
)
def test_a_grading_that_makes_no_sense_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        asked(*given)
    assert str(refusal.value).startswith(message)


def test_beside_a_run_the_grading_is_the_runs() -> None:
    options = _parser().parse_args(["--learner", "tcp://127.0.0.1:1", "--data", "x.jsonl"])
    assert asked_grading(options) is None
    options.extraction = "boxed"
    with pytest.raises(ConfigError, match="--extraction with --learner: an evaluation grades as the run does"):
        asked_grading(options)
