"""Reading problem sets."""

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.prompts import Problem, load_problems

TWO_ROWS = '{"problem": "1+1?", "answer": "2"}\n{"problem": "2+2?", "answer": "4"}\n'
TWO_PROBLEMS = (Problem("1+1?", "2"), Problem("2+2?", "4"))


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines_are_read_in_order(tmp_path: Path, name: str) -> None:
    loaded = load_problems(written(tmp_path / name, TWO_ROWS + "\n"))
    assert (loaded.problems, loaded.num_rows, loaded.num_without_answer) == (TWO_PROBLEMS, 2, 0)


def test_parquet_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"question": ["1+1?", "2+2?"], "answer": [2, 4]}), path)
    assert load_problems(str(path), problem_field="question").problems == TWO_PROBLEMS


def test_a_folder_is_read_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", tmp_path / "modules")
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", TWO_ROWS)
    assert load_problems(str(tmp_path / "data"), split="train").problems == TWO_PROBLEMS
    with pytest.raises(DatasetError, match="split test"):
        load_problems(str(tmp_path / "data"), split="test")


def test_rows_without_problem_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"problem": "1+1?", "answer": "2"},
        {"problem": "2+2?", "answer": 4},
        {"problem": "no answer", "answer": None},
        {"problem": "no field"},
        {"problem": " ", "answer": "5"},
        {"problem": "structure", "answer": [1, 2]},
    ]
    loaded = load_problems(written(tmp_path / "data.jsonl", "\n".join(map(json.dumps, rows))))
    assert (loaded.problems, loaded.num_rows, loaded.num_without_answer) == (TWO_PROBLEMS, 6, 4)


def test_a_pattern_takes_the_answer_from_a_solution(tmp_path: Path) -> None:
    rows = [{"problem": "q", "answer": "step #### 1\n#### 1,234 "}, {"problem": "r", "answer": "unfinished"}]
    source = written(tmp_path / "data.jsonl", "\n".join(map(json.dumps, rows)))
    loaded = load_problems(source, answer_pattern="#### (.+)")
    assert (loaded.problems, loaded.num_without_answer) == ((Problem("q", "1,234"),), 1)


def test_a_dot_reaches_into_nested_fields(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "reward": {"truth": "2"}}
    source = written(tmp_path / "data.jsonl", json.dumps(row))
    loaded = load_problems(source, problem_field="prompt.0.content", answer_field="reward.truth")
    assert loaded.problems == (Problem("1+1?", "2"),)


def test_the_digest_tells_data_apart_and_repeats(tmp_path: Path) -> None:
    texts = {
        "a": TWO_ROWS,
        "b": TWO_ROWS.replace("4", "5"),
        "c": "".join(reversed(TWO_ROWS.splitlines(keepends=True))),
    }
    digests = {name: load_problems(written(tmp_path / f"{name}.jsonl", text)).digest for name, text in texts.items()}
    assert len(set(digests.values())) == 3
    assert load_problems(str(tmp_path / "a.jsonl")).digest == digests["a"]
    assert len(digests["a"]) == 16


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (TWO_ROWS + '{"problem": ', r"data\.jsonl, line 3: malformed JSON"),
        ("[1, 2]\n", r"data\.jsonl, line 1: found a list"),
        (
            '{"question": "1+1?", "answer": "2"}',
            "no row of .* value in problem; the fields found are answer, question",
        ),
        ('{"problem": "1+1?", "answer": ""}', "none of the 1 rows"),
    ],
)
def test_unusable_files_are_refused_with_the_place_of_the_fault(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        load_problems(written(tmp_path / "data.jsonl", text))


def test_files_in_another_encoding_or_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'{"problem": "\xff"}')
    with pytest.raises(DatasetError, match="UTF-8"):
        load_problems(str(tmp_path / "data.jsonl"))
    with pytest.raises(DatasetError, match="not a readable parquet file"):
        load_problems(written(tmp_path / "data.parquet", TWO_ROWS))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load_problems(str(tmp_path / "none.jsonl"))
    with pytest.raises(DatasetError, match="cannot be loaded"):
        load_problems(str(tmp_path / "none"))


@pytest.mark.parametrize("pattern", ["#### .+", "(a)(b)", "("])
def test_a_pattern_needs_exactly_one_group(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="answer_pattern"):
        load_problems(written(tmp_path / "data.jsonl", TWO_ROWS), answer_pattern=pattern)


@pytest.fixture
def data_folder() -> Path:
    folder = Path(os.environ.get("DCPO_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real problem sets in {folder}; set DCPO_DATA to their folder")
    return folder


def test_real_problem_sets_are_read_whole(data_folder: Path) -> None:
    math = load_problems(str(data_folder / "math_train.jsonl"))
    assert (math.num_rows, math.num_without_answer) == (7495, 2)
    assert len(load_problems(str(data_folder / "dapo_math_17k.jsonl")).problems) == 16511
