"""Problems of Reasoning Gym as a source: kept once, refused with a reason, scored by their task."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from dcpo_async.config import GYM_REWARD as REWARD
from dcpo_async.config import SourceSettings
from dcpo_async.config.loading import load_config
from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.grading import Submission
from dcpo_async.grading.rewards import RewardFunction, resolved_rewards
from dcpo_async.gym import REFUSED, gym_problems
from dcpo_async.prompts.digest import digest_of
from learner.problems import training_problems, with_names

IS_INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
installed = pytest.mark.skipif(not IS_INSTALLED, reason="reasoning-gym is an optional extra")

SUMS = SourceSettings(source="reasoning-gym:chain_sum", gym_size=20, gym_seed=3, gym_settings={"max_terms": 3})


def stored(folder: Path, lines: list[str]) -> Path:
    """A file as a run leaves it, for SUMS."""
    request = {"task": "chain_sum", "size": 20, "seed": 3, "settings": {"max_terms": 3}}
    path = folder / f"reasoning-gym-chain_sum-{digest_of([json.dumps(request, sort_keys=True)])}.jsonl"
    header = json.dumps({**request, "package": "0.1.25", "digest": digest_of(lines)})
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


LINES = [
    json.dumps({"problem": f"{i} + 1 =\u2028", "answer": str(i + 1), "metadata": json.dumps({"task": "chain_sum"})})
    for i in (1, 2, 1)
]


def test_what_was_generated_is_read_from_the_folder_and_needs_no_package(tmp_path: Path) -> None:
    stored(tmp_path, [line.replace("\\u2028", "\u2028") for line in LINES])
    loaded = gym_problems(SUMS, tmp_path)
    assert [problem.answer for problem in loaded.problems] == ["2", "3"]
    assert json.loads(loaded.problems[0].metadata) == {"task": "chain_sum"}
    assert (loaded.num_rows, dict(loaded.left_out)) == (3, {"duplicate": 1})


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, LINES)
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(DatasetError, match="is not what was written: its lines have digest"):
        gym_problems(SUMS, tmp_path)


@pytest.mark.parametrize("task", REFUSED)
def test_a_task_that_one_should_not_train_on_is_refused_with_the_reason(task: str) -> None:
    with pytest.raises(ConfigError, match=f"reasoning-gym:{task} is refused: "):
        gym_problems(SourceSettings(source=f"reasoning-gym:{task}"), None)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"needs the package reasoning-gym .* install it with `pip install"):
        gym_problems(SUMS, None)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--data.gym_size", "9"], "data.gym_size would not be read, data.source is dapo-math-17k"),
        (["--data.source", "reasoning-gym:chain_sum", "--data.split", "test"], "data.split would not be read"),
        (["--data.source", "reasoning-gym:chain_sum", "--grading.format_penalty", "0.5"], "would not be read"),
        (["--data.metadata_fields", '["level"]'], "data.metadata_fields would not be read, it needs grading.reward"),
        (["--grading.reward_range", "[-1, 1]"], "grading.reward_range would not be read, it needs grading.reward"),
        (["--grading.reward", "a:b", "--grading.reward_range", "[1, 2]"], "and 0 is among them"),
        (["--grading.reward", "a:b", "--grading.reward_range", "[0, 1e9]"], "grading.reward_range"),
        (["--grading.reward", "a.b"], "grading.reward"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(overrides=words)
    assert complaint in str(refused.value)


@installed
def test_a_task_generates_once_and_brings_its_own_reward(tmp_path: Path) -> None:
    loaded = gym_problems(SUMS, tmp_path)
    assert len(loaded.problems) + loaded.left_out["duplicate"] == 20
    assert gym_problems(SUMS, tmp_path).digest == loaded.digest
    assert len(list(tmp_path.iterdir())) == 1
    words = ["--data.source", SUMS.source, "--actor.regrade_share", "0.5"]
    grading = resolved_rewards(load_config(overrides=words)).grading
    assert grading.reward == REWARD
    assert len(grading.reward_digest) == 16


@installed
def test_a_task_beside_another_source_brings_its_own_reward(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"problem": "1+1=", "answer": "2"}')
    text = """
        [[data.sources]]
        source = "reasoning-gym:chain_sum"
        gym_size = 20
        gym_settings = {max_terms = 3}
        [[data.sources]]
        source = "OWN"
    """
    path = tmp_path / "run.toml"
    path.write_text(text.replace("OWN", str(tmp_path / "own.jsonl")))
    config = load_config(path)
    config = resolved_rewards(config.model_copy(update={"data": with_names(config.data)}))
    assert [config.grading_of(name).reward for name in ("chain_sum", "own")] == [REWARD, None]
    assert len(config.grading_of("chain_sum").reward_digest) == 16
    found = training_problems(config.data, tmp_path / "run")
    assert [(source.name, bool(source.loaded.problems[0].metadata)) for source in found.sources] == [
        ("chain_sum", True),
        ("own", False),
    ]


@installed
@pytest.mark.parametrize(
    ("response", "reward", "reason"),
    [
        ("<answer>1</answer> no, <answer> {} </answer>", 1.0, "full"),
        (r"it is \boxed{{{}}}", 1.0, "full"),
        ("<answer>{}</answer> of <think>another</think>", 0.0, "no_answer"),
        ("it is {}", 0.0, "no_answer"),
        ("<answer>what?</answer>", 0.0, "least"),
    ],
)
def test_the_answer_is_taken_from_the_last_tags_or_else_the_last_box(
    tmp_path: Path, response: str, reward: float, reason: str
) -> None:
    problem = gym_problems(SUMS, tmp_path).problems[0]
    text = response.format(problem.answer)
    verdict = RewardFunction(REWARD)(
        Submission(problem.problem, problem.answer, text, "stop", 3, problem.metadata),
    )
    assert (verdict.reward, verdict.reason) == (reward, reason)  # type: ignore[attr-defined]


@installed
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"source": "reasoning-gym:chain_sums"}, "has no such task; there are .*chain_sum"),
        ({"gym_settings": {"max_term": 3}}, "max_term"),
        ({"gym_settings": {"min_terms": 5, "max_terms": 3}}, "with gym_settings .*max_terms"),
    ],
)
def test_what_the_package_refuses_is_one_line(data: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        gym_problems(SUMS.model_copy(update=data), None)
    assert "\n" not in str(refused.value)
