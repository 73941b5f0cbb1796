"""The problems of a run, kept apart from its evaluation sets."""

import json
from pathlib import Path

import pytest

from dcpo_async.config import DataSettings
from dcpo_async.errors import DatasetError
from learner.problems import training_problems

TEXTS = ("What is the area of a square of side 3?", "求 1+1 的值", "What is 2+3?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three problems to train on, the second and third of which are tested too."""
    write(tmp_path / "train.jsonl", *TEXTS)
    write(tmp_path / "test.jsonl", "what is 2 + 3", TEXTS[1], "Something else")
    write(tmp_path / "clean.jsonl", "Something else")
    return tmp_path


def write(path: Path, *texts: str) -> None:
    path.write_text("\n".join(json.dumps({"problem": text, "answer": "9"}) for text in texts))


def settings(folder: Path, **values: object) -> DataSettings:
    return DataSettings.model_validate({"source": f"{folder}/train.jsonl", **values})


def test_without_evaluation_sets_all_problems_are_trained_on(folder: Path) -> None:
    assert [problem.problem for problem in training_problems(settings(folder)).problems] == list(TEXTS)


def test_filters_and_fields_are_followed(folder: Path) -> None:
    problems = training_problems(settings(folder, language="en", problem_field="problem"))
    assert [problem.problem for problem in problems.problems] == [TEXTS[0], TEXTS[2]]
    assert problems.left_out["language"] == 1


def test_contaminated_prompts_are_refused_in_one_line_that_says_what_to_do(folder: Path) -> None:
    data = settings(folder, evaluation=[f"{folder}/clean.jsonl", f"{folder}/test.jsonl"])
    with pytest.raises(DatasetError) as caught:
        training_problems(data)
    assert str(caught.value) == (
        "2 of 3 prompts of train are problems of evaluation sets (2 of the 3 of test); leave them out with "
        f"--data.contamination drop, or train on them with allow; `dcpo data check {folder}/train.jsonl "
        f"{folder}/clean.jsonl {folder}/test.jsonl --list` shows them"
    )


def test_clean_prompts_are_not_refused(folder: Path) -> None:
    assert len(training_problems(settings(folder, evaluation=[f"{folder}/clean.jsonl"])).problems) == 3


def test_contaminated_prompts_are_left_out_with_a_count_or_kept(folder: Path) -> None:
    evaluation = [f"{folder}/test.jsonl"]
    kept = training_problems(settings(folder, evaluation=evaluation, contamination="drop"))
    assert [problem.problem for problem in kept.problems] == [TEXTS[0]]
    assert kept.left_out["contaminated"] == 2
    allowed = training_problems(settings(folder, evaluation=evaluation, contamination="allow"))
    assert len(allowed.problems) == 3
    # What is left out shapes the run: a folder that was begun with other problems refuses them.
    assert kept.digest != allowed.digest == training_problems(settings(folder)).digest
