"""Names of problem sets."""

from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.prompts import PRESETS, ProblemSource, problem_source


def test_every_set_of_the_field_has_a_preset() -> None:
    assert set(PRESETS) == {
        *("dapo-math-17k", "deepscaler", "gsm8k", "gsm8k-test", "math", "math-test"),
        *("aime24", "aime25", "amc23", "math500"),
    }
    assert all(problem_source(name) == PRESETS[name] for name in PRESETS)


def test_a_file_under_a_presets_name_is_a_copy_of_it() -> None:
    source = problem_source("gsm8k=local/train.jsonl")
    assert (source.name, source.location, source.is_copy) == ("gsm8k", "local/train.jsonl", True)
    assert source.problem_field == "question"


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("local/own.jsonl", ProblemSource("own", "local/own.jsonl")),
        ("~/own.parquet", ProblemSource("own", "~/own.parquet")),
        ("owner/set", ProblemSource("owner/set", "owner/set")),
        ("./math", ProblemSource("./math", "./math")),
    ],
)
def test_any_other_file_or_set_has_the_plain_fields(word: str, source: ProblemSource) -> None:
    assert problem_source(word) == source


def test_what_is_given_overrides_the_preset() -> None:
    source = problem_source("gsm8k", split="test", answer_pattern="= (.+)")
    assert (source.split, source.answer_pattern, source.subset) == ("test", "= (.+)", "main")
    # Fields that are named are read, whatever a copy has.
    assert not problem_source("gsm8k=a.jsonl", problem_field="text").is_copy
    assert problem_source("gsm8k=a.jsonl", split="test").is_copy


@pytest.mark.parametrize("word", ["gsm9k", "gsm9k=a.jsonl", "gsm9k=owner/set", ""])
def test_a_word_that_names_nothing_is_refused_with_the_presets(word: str) -> None:
    with pytest.raises(ConfigError, match="names no problems; give one of dapo-math-17k, gsm8k"):
        problem_source(word)


def test_a_folder_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert problem_source("mine") == ProblemSource("mine", "mine")
