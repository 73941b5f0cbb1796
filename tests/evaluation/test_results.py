import json
from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import ProblemResult, ResultLog, ResultsFolder
from tests.evaluation.made_results import response, result

SETTINGS = {"samples": 4, "seed": 0}
A, B = result("a", response(True)), result("b", response(False))


def write(path: Path, *results: ProblemResult) -> None:
    log = ResultLog(path)
    for each in results:
        log.append(each)
    log.close()


def read(path: Path) -> dict[str, ProblemResult]:
    log = ResultLog(path)
    log.close()
    return log.results


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "model" / "set.jsonl"
    whole = result("a", response(True, mode="greedy"), response(False, extracted=None, truncated=True))
    write(path, whole)
    assert read(path) == {"a": whole}


def test_a_text_with_any_kind_of_line_break_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    odd = response(True).model_copy(update={"text": "a\nb\r\u2028c\x85"})
    write(path, result("a", odd))
    assert path.read_bytes().count(b"\n") == 1
    assert read(path)["a"].responses[0].text == odd.text


def test_a_line_that_a_crash_cut_short_is_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    write(path, A, B)
    undisturbed = path.read_bytes()
    path.write_bytes(undisturbed[:-20])
    assert list(read(path)) == ["a"]
    write(path, B)
    assert path.read_bytes() == undisturbed


def test_a_damaged_line_within_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    write(path, A, B)
    path.write_bytes(path.read_bytes().replace(b'"id":"a"', b'"id":"a', 1))
    with pytest.raises(ConfigError, match=r"set\.jsonl, line 1: not the result of a problem"):
        read(path)


def test_an_evaluation_that_failed_before_its_first_result_leaves_the_folder_to_other_settings(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path / "out", SETTINGS):
        pass
    with ResultsFolder(tmp_path / "out", SETTINGS | {"samples": 32}):
        pass


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path / "out", SETTINGS):
        write(tmp_path / "out" / "model" / "set.jsonl", A)
    with pytest.raises(ConfigError, match=r"samples 4 there, 32 here; choose another --out, or --overwrite them$"):
        ResultsFolder(tmp_path / "out", SETTINGS | {"samples": 32})


def test_the_same_settings_and_further_ones_go_on(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path / "out", SETTINGS):
        pass
    with ResultsFolder(tmp_path / "out", SETTINGS | {"set aime24": "digest"}) as results:
        results.add({"model m": "bytes"})
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == {
        "samples": 4,
        "seed": 0,
        "set aime24": "digest",
        "model m": "bytes",
    }


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds something that no evaluation wrote"):
            ResultsFolder(tmp_path, SETTINGS, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_removes_earlier_results_and_settings(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path / "out", SETTINGS):
        write(tmp_path / "out" / "model" / "set.jsonl", A)
    with (
        ResultsFolder(tmp_path / "out", {"samples": 1}, overwrite=True) as results,
        results.logs("model", ["set"]) as logs,
    ):
        assert logs["set"].results == {}
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == {"samples": 1}


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with (
        ResultsFolder(tmp_path / "out", SETTINGS),
        pytest.raises(ConfigError, match="another evaluation is writing there"),
    ):
        ResultsFolder(tmp_path / "out", SETTINGS, overwrite=True)
    with ResultsFolder(tmp_path / "out", SETTINGS):
        pass
