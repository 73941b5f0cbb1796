"""The problems of a run, kept apart from its evaluation sets."""

import json
from pathlib import Path

import pytest

from dcpo_async.config import DataSettings
from dcpo_async.errors import ConfigError, DatasetError
from learner.problems import training_problems, with_names

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
    digests = [found.sources[0].loaded.digest for found in (kept, allowed, training_problems(settings(folder)))]
    assert digests[0] != digests[1] == digests[2]


# ---- several sources


def answers(path: Path, **pairs: str) -> dict[str, str]:
    """Writes problems with their answers; returns the table of a source."""
    path.write_text("\n".join(json.dumps({"problem": text, "answer": answer}) for text, answer in pairs.items()))
    return {"source": str(path)}


def test_a_problem_of_two_sources_stays_in_the_first_and_is_counted(tmp_path: Path) -> None:
    sources = [answers(tmp_path / "one.jsonl", a="1", b="2"), answers(tmp_path / "two.jsonl", b="2", c="3")]
    found = training_problems(DataSettings.model_validate({"sources": sources}))
    assert [(source.name, [p.problem for p in source.loaded.problems]) for source in found.sources] == [
        ("one", ["a", "b"]),
        ("two", ["c"]),
    ]
    assert found.sources[1].loaded.left_out["in an earlier source"] == 1
    assert found.left_out["in an earlier source"] == 1
    assert len(found.problems) + sum(found.left_out.values()) == found.num_rows == 4


def test_a_problem_whose_sources_give_two_answers_is_in_none(tmp_path: Path) -> None:
    sources = [answers(tmp_path / "one.jsonl", a="1", b="2"), answers(tmp_path / "two.jsonl", b="9", c="3")]
    found = training_problems(DataSettings.model_validate({"sources": sources}))
    assert [problem.problem for problem in found.problems] == ["a", "c"]
    assert [source.loaded.left_out["conflicting with another source"] for source in found.sources] == [1, 1]


def test_a_source_of_which_nothing_is_left_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    one = answers(tmp_path / "one.jsonl", a="1")
    again = {"source": one["source"], "name": "again"}
    with pytest.raises(DatasetError, match=r"source again: none of its 1 rows is left \(1 in an earlier source\)"):
        training_problems(DataSettings.model_validate({"sources": [one, again]}))
    with pytest.raises(ConfigError, match="two are called one; give one of them another name"):
        training_problems(DataSettings.model_validate({"sources": [one, one]}))


def test_contaminated_prompts_are_dropped_from_the_source_that_has_them(folder: Path) -> None:
    sources = [{"source": f"{folder}/train.jsonl"}, answers(folder / "more.jsonl", x="1")]
    data = {"sources": sources, "evaluation": [f"{folder}/test.jsonl"], "contamination": "drop"}
    found = training_problems(DataSettings.model_validate(data))
    assert [source.loaded.left_out.get("contaminated") for source in found.sources] == [2, None]


def test_the_name_of_a_source_goes_with_the_settings_to_ranks_and_tools(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    sources = [answers(tmp_path / "a b/it's one.jsonl", a="1"), {"source": "reasoning-gym:chain_sum"}]
    named = with_names(DataSettings.model_validate({"sources": sources}))
    assert [source.name for source in named.sources] == ["it_s_one", "chain_sum"]
    assert DataSettings.model_validate_json(named.model_dump_json()) == with_names(named) == named
