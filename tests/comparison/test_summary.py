"""The numbers and notes of a comparison, from runs made by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from dcpo_async.comparison.figures import Measured
from dcpo_async.comparison.runs import ComparedRun, read_run
from dcpo_async.comparison.summary import Accuracy, compared, mean_accuracy
from dcpo_async.errors import ConfigError
from tests.comparison.made_runs import line, measured, write_evaluation, write_run


def run_of(
    folder: Path, name: str, accuracies: dict[int, float], *, responses: float = 8.0, seed: int = 0, steps: int = 4
) -> ComparedRun:
    """A run that generates so many responses in each step and was measured at these steps."""
    lines = [line(step, generated_responses=responses * step) for step in range(1, steps + 1)]
    path = write_run(folder / f"{name}-{seed}", lines, seed=seed)
    entries = {f"at {step}": measured(f"run-{path.name}", step, mean) for step, mean in accuracies.items()}
    if entries:
        write_evaluation(path / "evaluation", entries)
    return read_run(name, path)


def test_a_row_has_what_its_runs_took_and_reached(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "a", {0: 0.2, 2: 0.6, 4: final}, seed=seed) for seed, final in enumerate((0.4, 0.5, 0.6))]
    (row,) = compared(runs).rows
    assert (row.name, row.steps, row.settings) == ("a", (4, 4, 4), {})
    assert row.responses_per_step == Measured(8, 8, 8)
    assert (row.tokens, row.seconds) == (Measured(160, 160, 160), Measured(8, 8, 8))
    # s/√3 = 0.057735 and t = 4.30265.
    assert row.final is not None
    assert (row.final.mean, row.final.low) == pytest.approx((0.5, 0.5 - 0.248414), abs=1e-5)
    assert row.best is not None
    assert (row.best.mean, row.best.low) == pytest.approx((0.6, 0.6))
    (few,) = compared(runs[:2]).rows
    assert few.final == Measured(pytest.approx(0.45))
    assert few.seconds == Measured(8)
    assert few.at_equal_steps is not None
    assert few.at_equal_steps.low is None


def test_differences_are_from_the_first_configuration_and_few_seeds_are_noted(tmp_path: Path) -> None:
    def seeds(name: str, gain: float, count: int) -> list[ComparedRun]:
        lines = [[line(step, reward=0.1 * seed + gain) for step in (1, 2)] for seed in range(count)]
        return [
            read_run(name, write_run(tmp_path / f"{name}{seed}", found, seed=seed)) for seed, found in enumerate(lines)
        ]

    comparison = compared([*seeds("first", 0.25, 3), *seeds("same seeds", 0.5, 3), *seeds("few", 0.5, 2)])
    first, same, few = (row.reward_difference for row in comparison.rows)
    assert first is None
    assert same is not None
    # By seed each is better by 0.25, whatever the seeds differ in.
    assert (same.mean, same.low, same.high) == pytest.approx((0.25, 0.25, 0.25))
    assert few == Measured(pytest.approx(0.2))
    assert "fewer than 3 seeds give no interval over seeds, and no band: few (2)" in comparison.notes


def test_metrics_are_means_over_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    short = [line(1, rur=0.25), line(2, rur=0.75)]
    longer = [line(1, rur=1.0, tcr=0.5), line(2, rur=0.5, tcr=0.25), line(3, rur=0.0, tcr=9.0)]
    runs = [read_run(name, write_run(tmp_path / name, lines)) for name, lines in (("a", short), ("b", longer))]
    comparison = compared(runs)
    assert comparison.last_common_step == 2
    first, second = (row.metrics for row in comparison.rows)
    assert (first["rur"], second["rur"], second["tcr"]) == (Measured(0.5), Measured(0.75), Measured(0.375))


def test_later_visits_are_averaged_over_the_steps_that_have_any(tmp_path: Path) -> None:
    lines = [line(1), line(2, rur_later=0.5), line(3, rur_later=1.0)]
    del lines[0]["rur_later"]
    never = [{key: value for key, value in line(1, visit_mean=1.0).items() if key != "rur_later"}]
    late, once = (read_run(n, write_run(tmp_path / n, found)) for n, found in (("late", lines), ("once", never)))
    (row,) = compared([late]).rows
    assert row.metrics["rur_later"] == Measured(0.75)
    comparison = compared([once])
    assert comparison.rows[0].metrics["rur_later"] is None
    assert "once (run-once): no RUR of later visits: no prompt has been visited twice" in comparison.notes


def test_later_visits_whose_rur_was_not_written_are_no_missing_visits(tmp_path: Path) -> None:
    lines = [line(1, visit_mean=1.0), line(2, visit_mean=1.25)]
    for one in lines:
        del one["rur_later"]
    notes = compared([read_run("old", write_run(tmp_path / "old", lines))]).notes
    assert "old (run-old): no RUR of later visits: the metrics lack it" in notes


def test_configurations_are_compared_at_equal_steps_and_at_equal_responses(tmp_path: Path) -> None:
    lean = run_of(tmp_path, "lean", {0: 0.0, 4: 0.8}, responses=8.0)
    greedy = run_of(tmp_path, "greedy", {0: 0.0, 2: 0.6}, responses=32.0)
    comparison = compared([lean, greedy])
    # Both were measured up to step 2, and lean has generated 32 responses where greedy has 64 at step 2 already.
    assert comparison.accuracy == Accuracy("sums", "sampled", step=2, responses=32.0)
    first, second = comparison.rows
    assert first.at_equal_steps is not None
    assert (first.at_equal_steps.mean, first.at_equal_steps.low) == pytest.approx((0.4, 0.3))
    assert second.at_equal_steps == Measured(0.6, 0.5, 0.7)
    assert first.at_equal_responses == Measured(0.8, 0.7000000000000001, 0.9)
    assert second.at_equal_responses is not None
    assert second.at_equal_responses.mean == pytest.approx(0.3)
    assert comparison.notes[-1].startswith(
        "at step 2 the accuracy of lean (run-lean-0) is interpolated between measured"
    )


def test_runs_of_unknown_cost_are_compared_at_equal_steps_only(tmp_path: Path) -> None:
    new = run_of(tmp_path, "new", {0: 0.0, 4: 0.8})
    older = [{"step": step, "seconds": 1.0, "total_responses": 8.0} for step in range(1, 5)]
    path = write_run(tmp_path / "old", older)
    write_evaluation(path / "evaluation", {"0": measured("run-old", 0, 0.0), "4": measured("run-old", 4, 0.4)})
    old = read_run("old", path)
    comparison = compared([new, old])
    assert comparison.accuracy == Accuracy("sums", "sampled", step=4, responses=32.0)
    first, second = comparison.rows
    assert (first.at_equal_responses, second.at_equal_responses) == (first.final, None)
    assert (second.at_equal_steps, second.responses_per_step, second.tokens) == (second.final, None, None)
    assert compared([replace(new, name="both"), replace(old, name="both")]).rows[0].at_equal_responses is None


def test_the_accuracy_of_a_configuration_stands_over_the_mean_cost_of_its_runs(tmp_path: Path) -> None:
    slow = run_of(tmp_path, "a", {0: 0.0, 2: 0.25, 4: 0.5}, responses=8.0)
    fast = run_of(tmp_path, "a", {0: 0.0, 4: 1.0}, responses=24.0, seed=1)
    found = mean_accuracy([slow, fast], Accuracy("sums", "sampled", 4, None), "responses")
    assert found.x == (0, 32, 64)
    assert [value.mean for value in found.values] == [0.0, 0.375, 0.75]


def test_a_run_that_was_not_measured_is_noted_and_left_out(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "a", {4: 0.5}), run_of(tmp_path, "a", {}, seed=1), run_of(tmp_path, "b", {})]
    comparison = compared(runs)
    assert [row.final for row in comparison.rows] == [Measured(0.5, 0.4, 0.6), None]
    notes = [note for note in comparison.notes if "left out there" in note]
    assert [note.partition(" has ")[0] for note in notes] == ["a (run-a-1)", "b (run-b-0)"]


def test_without_any_evaluation_the_rest_is_compared(tmp_path: Path) -> None:
    comparison = compared([run_of(tmp_path, "a", {})])
    assert (comparison.accuracy, comparison.rows[0].final) == (None, None)
    (note,) = comparison.notes
    assert note.startswith("no held-out accuracy: no evaluation of these runs was found; measure stored versions")


def test_settings_that_differ_are_told_and_those_beyond_the_algorithm_noted(tmp_path: Path) -> None:
    other = {"algorithm": {"clip": "fixed"}, "lag": {"max_lag": 0, "keep_versions": 50}}
    training = {"learning_rate": 2e-6, "deepspeed": {"steps_per_print": 9}}
    first = read_run("a", write_run(tmp_path / "a", [line(1)], checkpoint={"interval_steps": 2}))
    second = read_run("b", write_run(tmp_path / "b", [line(1)], training=training, **other))
    comparison = compared([first, second])
    assert [row.settings for row in comparison.rows] == [
        {"algorithm.clip": "dynamic", "lag.max_lag": "4"},
        {"algorithm.clip": "fixed", "lag.max_lag": "0"},
    ]
    assert "configurations differ in training.learning_rate too: a 1e-06, b 2e-06" in comparison.notes
    assert "configurations differ in training.deepspeed.steps_per_print too: a None, b 9" in comparison.notes


def test_what_differs_beside_the_seed_in_several_configurations_is_one_note(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        for seed in (0, 1):
            data = {"source": f"problems-{seed}.jsonl"}
            folder = write_run(tmp_path / f"{name}{seed}", [line(1)], run_id=f"{name}{seed}", seed=seed, data=data)
            runs.append(read_run(name, folder))
    found = [note for note in compared(runs).notes if "no mere seeds" in note]
    assert found == [
        "runs of a, b are no mere seeds of one configuration, they differ in data.source: problems-0.jsonl, "
        "problems-1.jsonl"
    ]


def test_runs_of_one_name_that_are_no_seeds_of_one_configuration_are_noted(tmp_path: Path) -> None:
    first = read_run("a", write_run(tmp_path / "a", [line(1)]))
    second = read_run("a", write_run(tmp_path / "b", [line(1)], algorithm={"epsilon_low": 0.2}))
    assert compared([first, second]).notes[:2] == (
        "runs of a are no mere seeds of one configuration, they differ in algorithm.epsilon_low: 0.16, 0.2",
        "runs of a share a seed (0, 0): the interval takes them for independent",
    )


def test_runs_that_are_short_running_or_damaged_are_noted(tmp_path: Path) -> None:
    older = {"step": 2, "seconds": 1.0, "rur": 0.5}
    path = write_run(tmp_path / "a", [line(1), older], is_finished=False)
    write_evaluation(path / "evaluation", {"ahead": measured("run-a", 3, 0.5)})
    longer = read_run("a", write_run(tmp_path / "b", [line(1), line(2), line(3)], seed=1))
    unknown = "that cost is unknown, and seconds may leave out earlier starts of the learner"
    notes = [note.partition("): ")[2] or note for note in compared([read_run("a", path), longer]).notes]
    assert notes == [
        "not finished: the figures are those of its first 2 steps",
        "reward is missing in 1 of 2 steps",
        "mean |Â| is missing in 1 of 2 steps",
        "TCR is missing in 1 of 2 steps",
        "entropy is missing in 1 of 2 steps",
        "response length is missing in 1 of 2 steps",
        "lag is missing in 1 of 2 steps",
        f"steps lack generated_responses, generated_tokens, as in runs that an earlier release began: {unknown}",
        "measured at steps that its metrics lack (3): their cost is unknown",
        "runs of a are of 2, 3 steps: its curves end where the shortest does",
        "a (run-b) has no held-out accuracy on sums, sampled: it is left out there",
    ]


def test_a_step_that_only_lacks_seconds_is_not_said_to_be_missing(tmp_path: Path) -> None:
    one = line(1)
    del one["seconds"]
    path = write_run(tmp_path / "a", [one])
    write_evaluation(path / "evaluation", {"one": measured("run-a", 1, 0.5)})
    (note,) = compared([read_run("a", path)]).notes
    assert note.startswith("a (run-a): steps lack seconds, as in runs that an earlier release began: that cost is")


def test_measurements_that_are_not_alike_are_noted(tmp_path: Path) -> None:
    runs = [read_run(name, write_run(tmp_path / name, [line(1)])) for name in "ab"]
    hot = write_evaluation(tmp_path / "hot", {"a": measured("run-a", 1, 0.5)}, temperature=1.0)
    cold = {"b": measured("run-b", 1, 0.5, problems=20)}
    other = write_evaluation(tmp_path / "cold", cold, temperature=0.6, **{"set sums": "another"})
    unused = write_evaluation(tmp_path / "unused", {"base": measured(None, None, 0.5)})
    folders = [hot, other, unused]
    runs = [read_run(run.name, run.folder, folders) for run in runs]
    notes = compared(runs, evaluations=folders).notes
    assert notes[-4:] == (
        "versions were measured with different settings: temperature 1.0, 0.6",
        "versions were measured with different settings: set sums digest, another",
        "versions were measured with different settings: number of problems 10, 20",
        f"{unused} measured no version of these runs",
    )


def test_of_several_sets_one_has_to_be_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [line(1)])
    write_evaluation(path / "evaluation", {"one": measured("run-a", 1, 0.5, sets=("aime24", "math500", "average"))})
    run = read_run("a", path)
    with pytest.raises(
        ConfigError, match="several sets were measured: aime24, average, math500; choose one with --set"
    ):
        compared([run])
    assert compared([run], set_name="average").accuracy == Accuracy("average", "sampled", 1, 8.0)


def test_what_was_not_measured_is_refused_with_what_was(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a", {1: 0.5})
    for words in ({"set_name": "aime24"}, {"mode": "greedy"}):
        with pytest.raises(ConfigError, match="was measured so; there are --set sums --mode sampled"):
            compared([run], **words)
    with pytest.raises(ConfigError, match="there are no measurements"):
        compared([run_of(tmp_path, "b", {})], set_name="sums")
