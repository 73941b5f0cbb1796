"""What the page is told of a run: its curves, its fleet, its events, its prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import Health
from dcpo_async.monitoring.server import WatchedRun
from learner.life.events import write_event
from learner.page.app import curves_json, events_json, now_json
from learner.page.compare import differences
from learner.page.curves import Curves
from learner.page.events import Seen
from learner.page.fleet import balance, fleet_rows
from learner.page.prompts import prompt_json, prompts_json, response_text
from learner.page.runs import ServedRun, named_folders
from tests.commands.test_status import write_status
from tests.learner.small_run import OpenIntake, make_config, train

EVIL = "<script>alert(1)</script>"


def write_lines(path: Path, *lines: dict[str, float]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def served(tmp_path: Path, open_intake: OpenIntake, text: str = "response {index}") -> ServedRun:
    """A run of two steps, in each prompt-… one group with one of two responses right and one with none."""
    config = make_config(tmp_path)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    intake = open_intake(config)
    train(intake, [(1.0, 0.0), (0.0, 0.0)], [(1.0, 1.0), (1.0, 0.0)], text=text)
    intake.ledger.commit()
    return ServedRun("run", tmp_path, WatchedRun(tmp_path))


def test_curves_grow_with_the_file_and_a_step_that_is_trained_again_counts_as_written_last(tmp_path: Path) -> None:
    curves, path = Curves(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl"
    curves.look()
    assert curves.points()["num_steps"] == 0
    write_lines(path, {"step": 1, "reward": 0.25, "seconds": 3.0}, {"step": 2, "reward": 0.5})
    with path.open("a") as file:
        file.write('{"step": 3, "rew')
    curves.look()
    assert curves.points()["series"]["reward"]["mean"] == [0.25, 0.5]
    with path.open("a") as file:
        file.write('ard": 1.0}\n')
    write_lines(path, {"step": 1, "reward": 0.75, "seconds": 9.0})
    curves.look()
    points = curves.points()
    assert points["steps"] == [1, 2, 3]
    assert points["series"]["reward"]["mean"] == [0.75, 0.5, 1.0]
    assert points["series"]["seconds"]["mean"][0] == 3.0


def test_a_file_that_was_put_in_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    curves, path, beside = Curves(tmp_path / "metrics.jsonl"), tmp_path / "metrics.jsonl", tmp_path / "beside"
    write_lines(path, {"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5})
    curves.look()
    before = curves.revision
    # Without the first step, and longer all the same.
    write_lines(beside, *({"step": step, "reward": step / 8} for step in (2, 3, 4)))
    beside.replace(path)
    curves.look()
    assert curves.points()["steps"] == [2, 3, 4]
    assert curves.points()["series"]["reward"]["mean"] == [0.25, 0.375, 0.5]
    assert curves.revision > before


def test_many_steps_become_few_points_with_the_lowest_and_highest_of_each_stretch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, *({"step": step, "reward": step / 10} for step in range(1, 11)))
    curves = Curves(path)
    curves.look()
    reward = curves.points(count=2)["series"]["reward"]
    assert reward == {"mean": [0.3, 0.8], "low": [0.1, 0.6], "high": [0.5, 1.0]}


def test_the_slowest_actor_comes_first_and_is_named(tmp_path: Path) -> None:
    actors = [{"session": f"a{n}", "weights_version": 4, "tokens_per_second": 20.0} for n in range(3)]
    slow: dict[str, Any] = {"session": "slow", "weights_version": 2, "tokens_per_second": 1.0, "failures": 3}
    slow |= {"responses_in_flight": 2, "response_capacity": 8}
    rows = fleet_rows({"weights_version": 4, "actors_connected": [*actors, slow]})
    assert [row["actor"] for row in rows] == ["slow", "a0", "a1", "a2"]
    assert (rows[0]["behind"], rows[0]["idle_share"], rows[0]["failures"]) == (2, 0.75, 3)
    assert rows[0]["notes"] == ["20 × slower than the median"]
    assert not rows[1]["notes"]


def test_an_actor_of_another_release_is_named() -> None:
    actors: list[dict[str, Any]] = [{"session": name, "weights_version": 1} for name in "abcd"]
    for row, release in zip(actors, ("", "0.1", "0.2"), strict=False):
        row["release"] = release
    rows = {row["actor"]: row["notes"] for row in fleet_rows({"release": "0.2", "actors_connected": actors})}
    assert rows == {"a": ["of an earlier dcpo-async"], "b": ["of dcpo-async 0.1"], "c": [], "d": []}


def test_a_learner_that_waits_a_third_of_the_time() -> None:
    steps: list[dict[str, float | None]] = [{"step_seconds": 2.0, "wait_seconds": 1.0}, {"step_seconds": None}]
    assert balance(steps) == {"step": 2.0, "wait": 1.0}
    assert balance([]) is None


def test_actors_that_come_and_go_are_events_and_the_first_look_is_none() -> None:
    seen, good = Seen(), Health("training", "", 1.0)
    seen.look({"actors_connected": [{"session": "a"}], "step": 1}, good, 10.0)
    seen.look({"actors_connected": [{"session": "b"}], "step": 2}, good, 12.0)
    seen.look({"step": 2}, Health("dead", "gone", 1.0), 14.0)
    assert [(event.kind, event.text, event.step) for event in seen.events()] == [
        ("joined", "b", 2),
        ("left", "a", 2),
        ("state", "training → dead: gone", 2),
    ]


def test_prompts_are_those_of_the_ledger_hardest_first_beside_its_writer(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    run = served(tmp_path, open_intake)
    found = prompts_json(run, "", "hardest", 0)
    assert found["total"] == 4
    assert [row["mean"] for row in found["rows"]] == [0.0, 0.5, 0.5, 1.0]
    hardest = found["rows"][0]["prompt_id"]
    assert [row["prompt_id"] for row in prompts_json(run, hardest, "visits", 0)["rows"]] == [hardest]
    assert prompts_json(run, "100%_", "visits", 0)["total"] == 0
    assert prompts_json(run, "", "quarantined", 0)["total"] == 0
    with pytest.raises(ConfigError, match="choose one of"):
        prompts_json(run, "", "by luck", 0)


def test_a_prompt_is_shown_with_its_responses_and_no_other_prompt_is(tmp_path: Path, open_intake: OpenIntake) -> None:
    run = served(tmp_path, open_intake, text=EVIL)
    prompt_id = prompts_json(run, "", "easiest", 0)["rows"][0]["prompt_id"]
    found = prompt_json(run, prompt_id, 0)
    assert (found["num_visits"], found["pass_rates"]) == (1, [1.0])
    (visit,) = found["visits"]
    assert [(one["reward"], one["text"]) for one in visit["responses"]] == [(1.0, EVIL), (1.0, EVIL)]
    assert response_text(run, visit["position"], 1) == EVIL
    with pytest.raises(ConfigError, match="no prompt that was visited"):
        prompt_json(run, f"{prompt_id}-", 0)
    with pytest.raises(ConfigError, match="the group has 2"):
        response_text(run, visit["position"], 2)


def test_looking_leaves_a_stopped_ledger_as_it_was(tmp_path: Path, open_intake: OpenIntake) -> None:
    stopped = make_config(tmp_path / "stopped")
    intake = open_intake(stopped)
    train(intake, [(1.0, 0.0), (0.0, 0.0)])
    intake.ledger.close()
    before = {path.name: path.stat().st_mtime_ns for path in (stopped.folder / "ledger").iterdir()}
    run = ServedRun("stopped", stopped.folder, WatchedRun(stopped.folder))
    assert prompts_json(run, "", "visits", 0)["total"] == 2
    assert {path.name: path.stat().st_mtime_ns for path in (stopped.folder / "ledger").iterdir()} == before


def test_settings_that_differ_are_found_and_places_are_none() -> None:
    rows = differences([{"seed": 1, "a": 2, "folder": "x"}, {"seed": 2, "a": 2, "folder": "y", "b": None}])
    assert rows == [{"name": "seed", "values": [1, 2]}]


def test_runs_have_names_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one" / "run").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    assert list(named_folders([str(tmp_path / "one" / "run"), f"b={tmp_path / 'two'}"])) == ["one", "b"]
    with pytest.raises(ConfigError, match="two runs are called"):
        named_folders([f"b={tmp_path / 'one'}", f"b={tmp_path / 'two'}"])
    with pytest.raises(ConfigError, match="no such folder"):
        named_folders([str(tmp_path / "none")])


def test_what_was_set_while_a_run_went_on_stands_among_events_marks_and_settings(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path))
    train(intake, [(1.0, 0.0), (0.0, 0.0)])
    write_event(intake.ledger, 1, "set", settings={"training.learning_rate": 3e-6}, by="dcpo set")
    write_event(intake.ledger, 1, "stopped", unsaved=2)
    intake.ledger.commit()
    (tmp_path / "config.json").write_text(intake.config.model_dump_json())
    run = ServedRun("run", tmp_path, WatchedRun(tmp_path))
    change = {"name": "training.learning_rate", "value": 3e-6, "from_step": 2}
    write_status(tmp_path, step=2, settings_set=[change])
    assert run.settings()["training.learning_rate"] == 3e-6
    assert now_json(run)["settings_set"] == [change]
    assert curves_json(run)["marks"] == [{"step": 1, "text": "training.learning_rate 3e-06"}]
    told = [(event["kind"], event["step"], event["text"]) for event in events_json(run)["events"]]
    assert ("set", 1, "training.learning_rate 3e-06") in told
    assert ("stopped", 1, "the learner stopped, 2 steps without a checkpoint") in told
