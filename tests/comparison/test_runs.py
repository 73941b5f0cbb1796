"""Run folders and evaluations as they are, and as they should not be."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dcpo_async.comparison.figures import Measured
from dcpo_async.comparison.runs import read_run, read_runs
from dcpo_async.errors import ConfigError
from tests.comparison.made_runs import line, measured, write_evaluation, write_run


def test_a_run_is_read_with_its_configuration_and_metrics(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [line(1), line(2)], seed=3, algorithm={"clip": "fixed"}, is_finished=False)
    run = read_run("DCPO", tmp_path / "a")
    assert (run.name, run.run_id, run.label) == ("DCPO", "run-a", "DCPO (run-a)")
    assert (run.last_step, run.is_finished, run.held_out) == (2, False, ())
    assert (run.config.seed, run.config.algorithm.clip) == (3, "fixed")


def test_costs_are_those_at_the_end_of_a_step(tmp_path: Path) -> None:
    run = read_run("a", write_run(tmp_path / "a", [line(1), line(2)]))
    assert [run.cost(2, cost) for cost in ("steps", "responses", "tokens", "seconds")] == [2, 16, 80, 4]
    assert [run.cost(0, cost) for cost in ("steps", "responses", "tokens", "seconds")] == [0, 0, 0, 0]
    assert run.cost(3, "tokens") is None


def test_a_run_that_does_not_count_a_cost_has_none_not_even_at_its_start(tmp_path: Path) -> None:
    older = {"step": 1, "seconds": 2.0, "total_responses": 8.0, "total_response_tokens": 33.0}
    run = read_run("a", write_run(tmp_path / "a", [older]))
    assert [run.cost(step, "responses") for step in (0, 1)] == [None, None]
    assert [run.cost(step, "tokens") for step in (0, 1)] == [None, None]
    assert [run.cost(step, "seconds") for step in (0, 1)] == [0, 2]


def test_a_metric_leaves_out_steps_without_a_finite_value(tmp_path: Path) -> None:
    lines = [line(1, entropy=math.nan), line(2, entropy=1.25), {"step": 3}, line(4, entropy=1.0)]
    run = read_run("a", write_run(tmp_path / "a", lines))
    assert run.metric("entropy").x == (2, 4)
    assert run.metric("entropy", last_step=3).values == (Measured(1.25),)


def test_evaluations_are_matched_by_run_and_their_own_folder_needs_no_naming(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(1), line(2)])
    entries = {"two": measured("run-a", 2, 0.5), "start": measured("run-a", 0, 0.25)}
    write_evaluation(folder / "evaluation", entries)
    others = {"base": measured(None, None, 0.125), "b": measured("run-b", 1, 0.9), "one": measured("run-a", 1, 0.375)}
    out = write_evaluation(tmp_path / "out", others)
    run = read_run("a", folder, [out])
    assert [(point.step, point.accuracy.mean) for point in run.held_out] == [(0, 0.25), (1, 0.375), (2, 0.5)]
    assert run.accuracy("sums", "sampled", "tokens").x == (0, 40, 80)
    assert run.accuracy("sums", "sampled").values[1] == Measured(0.375, 0.275, 0.475)
    assert run.accuracy("sums", "greedy").x == ()
    assert run.held_out[1].settings == {"temperature": "1.0", "set sums": "digest"}


def test_an_evaluation_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(1)])
    write_evaluation(folder / "evaluation", {"one": measured("run-a", 1, 0.5)})
    run = read_run("a", folder, [folder / "evaluation", folder / ".." / "a" / "evaluation"])
    assert (len(run.held_out), run.notes) == (1, ())


def test_a_step_that_was_measured_twice_has_the_newest_version_and_is_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(1)])
    first = {"redone": measured("run-a", 1, 0.5, version=9), "old": measured("run-a", 1, 0.25, version=2)}
    run = read_run("a", folder, [write_evaluation(tmp_path / "x", first)])
    assert [point.accuracy.mean for point in run.held_out] == [0.5]
    again = write_evaluation(tmp_path / "y", {"again": measured("run-a", 1, 0.75, version=9)})
    run = read_run("a", folder, [tmp_path / "x", again])
    assert [point.accuracy.mean for point in run.held_out] == [0.75]
    assert run.notes[-1] == (
        f"step 1 was measured more than once on sums, sampled ({tmp_path}/x: redone; {tmp_path}/y: again); "
        f"{tmp_path}/y: again counts"
    )


def test_an_evaluation_that_has_only_begun_in_the_runs_folder_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(1)])
    (folder / "evaluation").mkdir()
    assert read_run("a", folder).held_out == ()


def test_runs_are_called_by_their_folder_or_by_the_name_they_are_given(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name, [line(1)])
    runs = read_runs([f"lr=1e-6={tmp_path}/a", f"lr=1e-6={tmp_path}/b/", f"{tmp_path}/c/"])
    assert [(run.name, run.run_id) for run in runs] == [("lr=1e-6", "run-a"), ("lr=1e-6", "run-b"), ("c", "run-c")]


def test_folders_and_names_may_hold_equals_signs(tmp_path: Path) -> None:
    for name in ("lr=1e-4", "lr=1e-5", "b"):
        write_run(tmp_path / name, [line(1)])
    runs = read_runs([f"{tmp_path}/lr=1e-4", f"x=y={tmp_path}/lr=1e-5", f"x=y={tmp_path}/b"])
    assert [(run.name, run.folder.name) for run in runs] == [("lr=1e-4", "lr=1e-4"), ("x=y", "lr=1e-5"), ("x=y", "b")]


def test_a_folder_that_is_not_utf8_is_refused_even_where_no_word_says_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_run(tmp_path / "a", [line(1)]).rename(tmp_path / "caf\udce9"))
    with pytest.raises(ConfigError, match=r"^'caf\\udce9' is not UTF-8"):
        read_runs(["."])
    assert read_runs(["DCPO=."])[0].name == "DCPO"


def spoil_status(folder: Path) -> None:
    (folder / "a" / "status.json").write_text('{"step": 1}')


def spoil_config(folder: Path) -> None:
    (folder / "a" / "config.json").write_text('{"learning_rate": 1}')


def spoil_metrics(folder: Path) -> None:
    (folder / "a" / "metrics.jsonl").write_text('{"loss": 1}\n')


def take_metrics(folder: Path) -> None:
    (folder / "a" / "metrics.jsonl").unlink()


def copy_run(folder: Path) -> None:
    write_run(folder / "copy", [line(1)], run_id="run-a")


def make_namesake(folder: Path) -> None:
    write_run(folder / "other" / "a", [line(1)], run_id="run-other")


def spoil_evaluation(folder: Path) -> None:
    write_evaluation(folder / "a" / "evaluation", {"one": {"sets": []}})


def nothing(folder: Path) -> None:
    """The folder stays as it is."""


BAD_INPUTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no such folder": (
        nothing,
        "{folder}/none",
        "{folder}/none/status.json cannot be read (No such file or directory)",
    ),
    "a folder of something else": (nothing, "{folder}", "name the folder of a run that has been started"),
    "a status without a run id": (spoil_status, "{folder}/a", "a/status.json is not what it should be (run_id: "),
    "a configuration that is none": (spoil_config, "{folder}/a", "a/config.json is not what it should be (learning_r"),
    "a line without a step": (spoil_metrics, "{folder}/a", "a/metrics.jsonl cannot be read (KeyError('step'))"),
    "no finished step": (take_metrics, "{folder}/a", "{folder}/a: no optimizer step is finished yet; wait"),
    "a run that is named twice": (nothing, "x={folder}/a y={folder}/a", "{folder}/a and {folder}/a are the same run"),
    "a copy of a run": (copy_run, "{folder}/a {folder}/copy", "{folder}/a and {folder}/copy are the same run, run-a"),
    "two folders of one name": (make_namesake, "{folder}/a {folder}/other/a", "two runs are called a; write NAME=FOLD"),
    "a name that a folder has": (make_namesake, "{folder}/a a={folder}/other/a", "two runs are called a; write NAME="),
    "a name that is not UTF-8": (nothing, "caf\udce9={folder}/a", "is not UTF-8 and cannot be shown in a report"),
    "a folder that is not UTF-8": (nothing, "{folder}/caf\udce9", "is not UTF-8 and cannot be shown in a report"),
    "a folder that cannot be": (nothing, "a={folder}/" + "x" * 300, "/status.json cannot be read (File name too long)"),
    "an empty name": (nothing, "={folder}/a", "has an empty name; write NAME=FOLDER"),
    "a damaged evaluation": (
        spoil_evaluation,
        "{folder}/a",
        "a/evaluation/summary.json is not what it should be (one.",
    ),
}
"""What is done to a good run, words, and what is said of them."""


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_what_cannot_be_read_is_refused(what: str, tmp_path: Path) -> None:
    spoil, words, said = BAD_INPUTS[what]
    write_run(tmp_path / "a", [line(1)])
    spoil(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        read_runs(words.format(folder=tmp_path).split())
    assert said.format(folder=tmp_path) in str(refusal.value)


def test_an_evaluation_that_is_none_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [line(1)])
    with pytest.raises(ConfigError, match="name a folder in which dcpo eval measured a model"):
        read_run("a", tmp_path / "a", [tmp_path])
    evaluation = write_evaluation(tmp_path / "out", {})
    (evaluation / "settings.json").write_text(json.dumps([]))
    with pytest.raises(ConfigError, match=r"settings\.json is not what it should be"):
        read_run("a", tmp_path / "a", [evaluation])


def test_a_setting_that_was_set_while_a_run_went_on_is_the_one_in_force(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(1), line(2)], training={"learning_rate": 1e-6})
    status = json.loads((folder / "status.json").read_text())
    status["settings_set"] = [{"name": "training.learning_rate", "value": 3e-6, "from_step": 2}]
    (folder / "status.json").write_text(json.dumps(status))
    run = read_run("a", folder)
    assert run.config.training.learning_rate == 3e-6
    assert "set while it went on: training.learning_rate 3e-06 from step 2 on" in run.notes
