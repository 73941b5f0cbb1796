"""The problems by which a run measures itself: what is refused before it starts, and how they are encoded."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.model_folder import load_tokenizer
from learner.evaluations.problems import apart_from, held_out, held_out_problems
from learner.problems import training_problems
from tests.tiny_model import make_tiny_model


def write(path: Path, *problems: str) -> str:
    path.write_text("".join(json.dumps({"problem": problem, "answer": "1"}) + "\n" for problem in problems))
    return str(path)


def config(folder: Path, *names: str, **more: Any) -> RunConfig:
    """A run that measures itself by files of these names."""
    evaluation = {"every_steps": 5, "data": tuple(f"{folder}/{name}.jsonl" for name in names), **more}
    return RunConfig(
        folder=folder,
        data={"source": f"{folder}/train.jsonl", "system_prompt": "", "max_prompt_tokens": 32},  # type: ignore[arg-type]
        evaluation=evaluation,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluation.samples", "8"], "evaluation: samples would not be read, it needs every_steps"),
        (["--evaluation.every_steps", "5"], "evaluation: every_steps 5 measures nothing: name problem sets in data"),
        (
            ["--evaluation.every_steps", "5", "--evaluation.data", '["aime24"]', "--evaluation.temperature", "0"],
            "evaluation: samples 4 at temperature 0 would be one response so many times; set samples to 1",
        ),
        (
            ["--evaluation.every_steps=5", '--evaluation.data=["aime24"]', "--data.source=reasoning-gym:chain_sum"],
            "evaluation.every_steps: reasoning-gym:chain_sum has a scorer of its own",
        ),
        (["--evaluation.max_share", "1.5"], "evaluation.max_share: Input should be less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(None, words)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_it_is_off_unless_it_is_asked_for_and_does_not_change_what_a_run_is(tmp_path: Path) -> None:
    assert load_config().evaluation.every_steps is None
    write(tmp_path / "x.jsonl", "a")
    on = config(tmp_path, "x")
    off = on.model_copy(update={"evaluation": load_config().evaluation})
    assert on.digest() == off.digest()
    assert held_out_problems(off) == {}


def test_sets_that_are_not_there_or_have_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", "a")
    with pytest.raises(DatasetError, match=r"none\.jsonl"):
        held_out_problems(config(tmp_path, "none"))
    with pytest.raises(ConfigError, match=r"evaluation\.data: two problem sets are called x"):
        held_out_problems(config(tmp_path, "x", "x"))


def test_training_prompts_that_stand_in_them_are_treated_as_those_of_other_evaluation_sets(tmp_path: Path) -> None:
    train = [f"How many of the {i} apples are left after two were eaten by the dog?" for i in range(4)]
    write(tmp_path / "train.jsonl", *train)
    write(tmp_path / "x.jsonl", train[2], "What is two and two, and nothing besides?")
    run = config(tmp_path, "x")
    assert apart_from(run).evaluation == (f"{tmp_path}/x.jsonl",)
    with pytest.raises(DatasetError, match="1 of 4 prompts of train are problems of evaluation sets"):
        training_problems(apart_from(run))


def test_they_are_encoded_as_the_prompts_of_training_and_limited(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", seed=0)
    write(tmp_path / "x.jsonl", "1+1=", "2+2=", "3+3=")
    write(tmp_path / "y.jsonl", "4+4=")
    run = config(tmp_path, "x", "y", limit=2)
    tokenizer = load_tokenizer(tmp_path / "model", "model.path")
    asked = held_out(run, held_out_problems(run), tokenizer, 99, datetime.now())
    assert {name: [prompt.problem for prompt in prompts] for name, prompts in asked.sets.items()} == {
        "x": ["1+1=", "2+2="],
        "y": ["4+4="],
    }
    assert asked.sets["x"][0].token_ids == tuple(tokenizer("1+1=")["input_ids"])
    assert (asked.vocab_size, asked.settings["samples"], asked.settings["greedy"]) == (99, 4, False)
    assert {"set x", "set y"} <= asked.settings.keys()


def test_an_own_reward_gets_the_columns_of_the_sources_that_it_grades(tmp_path: Path) -> None:
    line = {"problem": "4+4=", "answer": "8", "level": 3, "topic": "sums"}
    (tmp_path / "held.jsonl").write_text(json.dumps(line) + "\n")
    reward = "tests.grading.rewards.examples:by_length"
    sources = [
        {"source": "a.jsonl", "name": "a", "metadata_fields": ("level",)},
        {"source": "b.jsonl", "name": "b", "metadata_fields": ("topic",)},
    ]
    run = RunConfig(
        data={"sources": sources},  # type: ignore[arg-type]
        grading={"reward": reward},  # type: ignore[arg-type]
        evaluation={"every_steps": 5, "data": (f"{tmp_path}/held.jsonl",)},  # type: ignore[arg-type]
    )
    (held,) = held_out_problems(run).values()
    (found,) = held.problems
    assert json.loads(found.metadata) == {"level": 3, "topic": "sums"}
