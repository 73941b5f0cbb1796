"""Problem sets in the forms in which people have them."""

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dcpo_async.errors import DatasetError
from dcpo_async.prompts import Problem, load, problem_source

ROWS = [{"problem": "3-1?", "answer": "2"}, {"problem": "4-1?", "answer": "3"}]
PROBLEMS = (Problem("3-1?", "2"), Problem("4-1?", "3"))
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.fixture(autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "cache")
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", cache / "modules")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("marked.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("array.json", json.dumps(ROWS, indent=2).encode()),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("table.csv", b"\xef\xbb\xbfproblem,answer\n3-1?,2\n4-1?,3\n"),
        ("table.tsv", b"problem\tanswer\n3-1?\t2\n4-1?\t3\n"),
    ],
)
def test_files_of_every_kind_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert load(problem_source(str(tmp_path / name))).problems == PROBLEMS


def test_a_spark_folder_with_a_files_name_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "out.parquet"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for number, row in enumerate(ROWS):
        parquet.write_table(pyarrow.Table.from_pylist([row]), folder / f"part-0000{number}.snappy.parquet")
    assert load(problem_source(str(folder))).problems == PROBLEMS


def test_a_folder_may_mix_types_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"problem": "a", "answer": 5}\n{"problem": "b", "answer": "(0,7)"}\n')
    (tmp_path / "b.jsonl").write_text('{"problem": "c", "answer": "\\\\pi", "extra": {"x": 1}}\n')
    assert [problem.answer for problem in load(problem_source(str(tmp_path))).problems] == ["5", "(0,7)", r"\pi"]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "dict"))
    assert load(problem_source(str(tmp_path / "one"))).problems == PROBLEMS
    assert load(problem_source(str(tmp_path / "dict"))).problems == PROBLEMS
    with pytest.raises(DatasetError, match="set split to one of train"):
        load(problem_source(str(tmp_path / "dict"), split="test"))


def test_columns_that_nobody_asked_for_are_not_read_and_needed_ones_name_the_cell(tmp_path: Path) -> None:
    good = pyarrow.array(["p", "q"])
    broken = pyarrow.array([b"fine", b"\xfe"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"problem": good, "answer": good, "note": broken}), tmp_path / "a.parquet")
    assert len(load(problem_source(str(tmp_path / "a.parquet"))).problems) == 2
    parquet.write_table(pyarrow.table({"problem": good, "answer": broken}), tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet, row 2, field answer cannot be read"):
        load(problem_source(str(tmp_path / "b.parquet")))
    (tmp_path / "c.jsonl").write_bytes(b'{"problem": "p", "answer": "1", "note": "\xfe"}')
    assert len(load(problem_source(str(tmp_path / "c.jsonl"))).problems) == 1


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([0.7, 2.5], pyarrow.float32()),
        pyarrow.array([["0.7"], ["2.5"]]),
        pyarrow.array([Decimal("0.70"), Decimal("2.50")]),
        pyarrow.array(['["0.7"]', '"2.5"']),
    ],
)
def test_an_answer_is_the_value_itself(tmp_path: Path, column: pyarrow.Array) -> None:
    parquet.write_table(pyarrow.table({"problem": ["a", "b"], "answer": column}), tmp_path / "x.parquet")
    assert [problem.answer for problem in load(problem_source(str(tmp_path / "x.parquet"))).problems] == ["0.7", "2.5"]


def test_what_is_no_answer_is_counted_by_what_it_is(tmp_path: Path) -> None:
    answers = ["1", "proof", "NaN", "not found", ["1", "2"], {"x": 1}, True]
    rows = [{"problem": str(number), "answer": answer} for number, answer in enumerate(answers)]
    rows.append({"problem": "half \ud83d", "answer": "1"})
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load(problem_source(str(tmp_path / "x.jsonl")))
    assert loaded.problems == (Problem("0", "1"),)
    assert {reason: count for reason, count in loaded.left_out.items() if count} == {
        **{"no answer": 2, "proof": 1, "several answers": 1, "broken text": 1},
        **{"a structure for an answer": 1, "a truth value for an answer": 1},
    }


def test_a_null_in_the_first_row_does_not_decide_over_the_fields(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": None}, {"question": "b", "answer": "so #### 4"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load(problem_source(f"gsm8k={tmp_path / 'x.jsonl'}")).problems == (Problem("b", "4"),)


def test_nested_references_may_be_json_text(tmp_path: Path) -> None:
    row = {"problem": "a", "reward_model": json.dumps({"ground_truth": "9"})}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    source = problem_source(str(tmp_path / "x.jsonl"), answer_field="reward_model.ground_truth")
    assert load(source).problems == (Problem("a", "9"),)
