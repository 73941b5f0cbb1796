"""Reading problem sets."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.prompts import PRESETS, LoadedProblems, Problem, load, problem_source

TWO_ROWS = '{"problem": "1+1?", "answer": "2"}\n{"problem": "2+2?", "answer": "4"}\n'
TWO_PROBLEMS = (Problem("1+1?", "2"), Problem("2+2?", "4"))


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def loaded(folder: Path, *rows: object, name: str = "", **fields: str) -> LoadedProblems:
    """What is read from these rows, as a copy of a preset where one is named."""
    file = written(folder / "data.jsonl", "\n".join(map(json.dumps, rows)))
    return load(problem_source(f"{name}={file}" if name else file, **fields))


def reasons(problems: LoadedProblems) -> dict[str, int]:
    return {reason: count for reason, count in problems.left_out.items() if count}


# ---- files and folders


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_lines_are_read_in_order(tmp_path: Path, name: str) -> None:
    problems = load(problem_source(written(tmp_path / name, TWO_ROWS + "\n")))
    assert (problems.problems, problems.num_rows, reasons(problems)) == (TWO_PROBLEMS, 2, {})


def test_parquet_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"question": ["1+1?", "2+2?"], "answer": [2, 4]}), path)
    assert load(problem_source(str(path), problem_field="question")).problems == TWO_PROBLEMS


def test_a_folder_is_read_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", tmp_path / "modules")
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", TWO_ROWS)
    assert load(problem_source(str(tmp_path / "data"))).problems == TWO_PROBLEMS
    with pytest.raises(DatasetError, match="split test"):
        load(problem_source(str(tmp_path / "data"), split="test"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (TWO_ROWS + '{"problem": ', r"data\.jsonl, line 3: malformed JSON"),
        ("[1, 2]\n", r"data\.jsonl, row 1: found int"),
        (
            '{"question": "1+1?", "answer": "2"}',
            "no row of .* value in problem; the fields found are answer, question",
        ),
        ('{"problem": "1+1?", "answer": ""}', r"none of the 1 rows of .* \(1 no answer\)"),
    ],
)
def test_unusable_files_are_refused_with_the_place_of_the_fault(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        load(problem_source(written(tmp_path / "data.jsonl", text)))


def test_files_in_another_encoding_or_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'{"problem": "\xff"}')
    with pytest.raises(DatasetError, match="UTF-8"):
        load(problem_source(str(tmp_path / "data.jsonl")))
    with pytest.raises(DatasetError, match="not a readable parquet file"):
        load(problem_source(written(tmp_path / "data.parquet", TWO_ROWS)))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load(problem_source(str(tmp_path / "none.jsonl")))
    with pytest.raises(DatasetError, match="cannot be loaded"):
        load(problem_source(str(tmp_path / "none")))


# ---- fields


def test_a_dot_reaches_into_nested_fields(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "reward": {"truth": "2"}}
    problems = loaded(tmp_path, row, problem_field="prompt.0.content", answer_field="reward.truth")
    assert problems.problems == (Problem("1+1?", "2"),)


def test_a_pattern_takes_the_answer_from_a_solution(tmp_path: Path) -> None:
    rows = [{"problem": "q", "answer": "step #### 1\n#### 1,234 "}, {"problem": "r", "answer": "unfinished"}]
    problems = loaded(tmp_path, *rows, answer_pattern="#### (.+)")
    assert (problems.problems, reasons(problems)) == ((Problem("q", "1,234"),), {"no answer": 1})


@pytest.mark.parametrize("pattern", ["#### .+", "(a)(b)", "("])
def test_a_pattern_needs_exactly_one_group(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="answer_pattern"):
        loaded(tmp_path, {"problem": "1+1?", "answer": "2"}, answer_pattern=pattern)


def test_a_number_is_an_answer_and_a_whole_one_has_no_point(tmp_path: Path) -> None:
    answers = [27.0, 3, 0.5]
    problems = loaded(tmp_path, *({"problem": f"{answer}?", "answer": answer} for answer in answers))
    assert [problem.answer for problem in problems.problems] == ["27", "3", "0.5"]


# ---- presets, by rows as the hub has them


def test_dapo_is_freed_of_its_instructions_and_repetitions(tmp_path: Path) -> None:
    before, after = PRESETS["dapo-math-17k"].instructions
    assert before.endswith("where $Answer is the answer to the problem.")
    assert after.startswith("Remember to put your answer on its own line")
    row = {
        "prompt": [{"content": f"{before}\n\nWhat is $1+1$?\n\n{after}", "role": "user"}],
        "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4"},
    }
    problems = loaded(tmp_path, row, row, row, name="dapo-math-17k")
    assert (problems.problems, reasons(problems)) == ((Problem("What is $1+1$?", "2"),), {"duplicate": 2})


def test_gsm8k_is_freed_of_its_solutions(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "There are 600*2=<<600*2=1200>>1200.\n#### 1,200"}
    assert loaded(tmp_path, row, name="gsm8k").problems == (Problem("How many?", "1,200"),)


def test_math_has_levels_and_answers_in_boxes(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "level": "Level 5", "type": "Algebra", "solution": r"$\boxed{1}$, no: $\boxed{\frac{1}{2}}$."},
        {"problem": "b", "level": "Level ?", "type": "Geometry", "solution": r"\boxed 3"},
        {"problem": "c", "level": "Level 1", "type": "Geometry", "solution": "see the figure"},
    ]
    problems = loaded(tmp_path, *rows, name="math")
    assert problems.problems == (Problem("a", r"\frac{1}{2}", 5), Problem("b", "3"))
    assert reasons(problems) == {"no answer": 1}


def test_a_copy_may_have_plain_fields_instead_of_its_presets(tmp_path: Path) -> None:
    row = {"id": "m-0", "problem": "a", "answer": "the answer", "source": "hendrycks_math/train/Algebra/Level 3"}
    assert loaded(tmp_path, row, name="math").problems == (Problem("a", "the answer", 3),)
    assert loaded(tmp_path, row, name="dapo-math-17k").problems == (Problem("a", "the answer", 3),)


# ---- what is left out


def test_rows_without_problem_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"problem": "1+1?", "answer": "2"},
        {"problem": "2+2?", "answer": 4},
        {"problem": "no answer", "answer": None},
        {"problem": "no field"},
        {"problem": " ", "answer": "5"},
        {"problem": "structure", "answer": [1, 2]},
    ]
    problems = loaded(tmp_path, *rows)
    assert (problems.problems, problems.num_rows, reasons(problems)) == (
        TWO_PROBLEMS,
        6,
        {"no answer": 2, "no problem": 1, "several answers": 1},
    )


def test_a_problem_whose_rows_disagree_is_left_out_altogether(tmp_path: Path) -> None:
    rows = [{"problem": problem, "answer": answer} for problem, answer in ("a1", "b2", "a3", "b2", "a1")]
    problems = loaded(tmp_path, *rows)
    assert problems.problems == (Problem("b", "2"),)
    assert reasons(problems) == {"duplicate": 3, "conflicting": 1}


def test_languages_are_told_apart_by_chinese_characters(tmp_path: Path) -> None:
    rows = [{"problem": problem, "answer": "2"} for problem in ("1+1?", "求 $1+1$ 的值", "Wie groß ist 1+1?")]
    file = written(tmp_path / "data.jsonl", "\n".join(map(json.dumps, rows)))
    english, chinese = (load(problem_source(file), language) for language in ("en", "zh"))
    assert [problem.problem for problem in english.problems] == ["1+1?", "Wie groß ist 1+1?"]
    assert [problem.problem for problem in chinese.problems] == ["求 $1+1$ 的值"]
    assert (reasons(english), reasons(chinese)) == ({"language": 1}, {"language": 2})


def test_levels_are_chosen_where_there_are_some(tmp_path: Path) -> None:
    rows = [{"problem": str(level), "answer": "2", "level": level} for level in (1, "Level 4", 5, "Level ?")]
    file = written(tmp_path / "data.jsonl", "\n".join(map(json.dumps, rows)))
    problems = load(problem_source(file), levels=(4, 5))
    assert [problem.level for problem in problems.problems] == [4, 5]
    assert reasons(problems) == {"level": 2}
    with pytest.raises(DatasetError, match=r"none of the 4 rows of .* is left \(4 level\)"):
        load(problem_source(file), levels=(3,))
    with pytest.raises(DatasetError, match=r"levels \[3\] are asked for, but no row .* has a level in level or source"):
        load(problem_source(written(tmp_path / "plain.jsonl", TWO_ROWS)), levels=(3,))


def test_the_digest_tells_data_apart_and_repeats(tmp_path: Path) -> None:
    texts = {
        "a": TWO_ROWS,
        "b": TWO_ROWS.replace("4", "5"),
        "c": "".join(reversed(TWO_ROWS.splitlines(keepends=True))),
    }
    digests = {
        name: load(problem_source(written(tmp_path / f"{name}.jsonl", text))).digest for name, text in texts.items()
    }
    assert len(set(digests.values())) == 3
    assert load(problem_source(str(tmp_path / "a.jsonl"))).digest == digests["a"]
    assert len(digests["a"]) == 16


# ---- real ones


@pytest.mark.parametrize(
    ("name", "file", "num_problems"),
    [
        ("gsm8k", "gsm8k_train", 7473),
        ("gsm8k-test", "gsm8k_test", 1319),
        ("math-test", "math_test", 5000),
        ("math500", "math500", 500),
        ("aime24", "aime24", 30),
        ("aime25", "aime25", 30),
        ("amc23", "amc23", 40),
    ],
)
def test_real_problem_sets_are_read_whole(data_folder: Path, name: str, file: str, num_problems: int) -> None:
    problems = load(problem_source(f"{name}={data_folder / file}.jsonl"))
    assert (len(problems.problems), reasons(problems)) == (num_problems, {})


def test_real_math_problems_without_an_answer_are_counted_and_levels_chosen(data_folder: Path) -> None:
    source = problem_source(f"math={data_folder / 'math_train.jsonl'}")
    problems = load(source)
    assert (len(problems.problems), problems.num_rows, reasons(problems)) == (7493, 7495, {"no answer": 2})
    levels = Counter(problem.level for problem in problems.problems)
    hard = load(source, levels=(3, 4, 5))
    assert len(hard.problems) == levels[3] + levels[4] + levels[5]
    assert reasons(hard) == {"no answer": 2, "level": 7493 - len(hard.problems)}


def test_a_fifth_of_the_real_dapo_is_chinese(data_folder: Path) -> None:
    source = problem_source(f"dapo-math-17k={data_folder / 'dapo_math_17k.jsonl'}")
    chinese = load(source, language="zh")
    assert (len(chinese.problems), chinese.num_rows) == (3006, 16511)
    assert reasons(chinese) == {"language": 16511 - 3006}
