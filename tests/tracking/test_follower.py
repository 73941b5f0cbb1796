"""What a sink is told: every step once, whatever was killed in between."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcpo_async.config import RunConfig
from dcpo_async.config.sections import TrainingSettings
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.metrics.sink import Thinning
from dcpo_async.run_folder import RunFolder
from dcpo_async.tracking.__main__ import opened, pass_on
from dcpo_async.tracking.follower import Follower, Point, mark_file, num_unsent, tracking_folder
from dcpo_async.tracking.interface import TrackedRun, flat


class Kept:
    """A sink that keeps points, and fails before one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.points: list[Point] = []
        self._fails_at = fails_at

    def sent_step(self) -> int:
        return 0

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if step == self._fails_at:
            raise ConnectionError("no network")
        self.points.append(Point(step, metrics))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def follower(run: Path, run_id: str = "r") -> Follower:
    return Follower(run, mark_file(run, "kept"), run_id)


def train(run: Path, *steps: int) -> None:
    writer = MetricsWriter(run)
    for step in steps:
        writer.write(step, {"reward": step / 10})
    writer.close()


def test_steps_that_are_trained_again_after_a_crash_are_passed_on_once(tmp_path: Path) -> None:
    kept = Kept()
    train(tmp_path, 1, 2, 3)
    pass_on(follower(tmp_path), kept)
    train(tmp_path, 2, 3, 4)
    pass_on(follower(tmp_path), kept)
    assert [point.step for point in kept.points] == [1, 2, 3, 4]
    assert kept.points[0].metrics["reward/reward"] == 0.1
    assert kept.points[0].metrics["progress/step"] == 1


def test_a_point_that_a_sink_failed_at_is_passed_on_by_the_next_process(tmp_path: Path) -> None:
    train(tmp_path, 1, 2, 3)
    kept = Kept(fails_at=2)
    with pytest.raises(ConnectionError):
        pass_on(follower(tmp_path), kept)
    assert num_unsent(tmp_path, mark_file(tmp_path, "kept"), "r") == 2
    kept = Kept()
    pass_on(follower(tmp_path), kept)
    assert [point.step for point in kept.points] == [2, 3]
    assert num_unsent(tmp_path, mark_file(tmp_path, "kept"), "r") == 0


def test_a_line_that_is_not_whole_is_passed_on_once_it_is(tmp_path: Path) -> None:
    train(tmp_path, 1)
    with RunFolder(tmp_path).metrics.open("a") as file:
        file.write('{"step": 2, "rew')
    kept, reader = Kept(), follower(tmp_path)
    pass_on(reader, kept)
    train(tmp_path, 2)
    pass_on(reader, kept)
    assert [point.step for point in kept.points] == [1, 2]


def test_evaluations_come_as_points_of_their_own(tmp_path: Path) -> None:
    train(tmp_path, 1, 2)
    writer = MetricsWriter(RunFolder(tmp_path).evaluation)
    kept = Kept()
    for _ in range(2):
        writer.write(1, {"held_out/avg@1": 0.5})
        pass_on(follower(tmp_path), kept)
    writer.close()
    pass_on(follower(tmp_path), kept)
    assert [point for point in kept.points if "evaluation/held_out/avg@1" in point.metrics] == [
        Point(1, {"evaluation/held_out/avg@1": 0.5})
    ]


def test_what_the_other_side_has_is_not_sent_again_where_the_mark_was_lost(tmp_path: Path) -> None:
    train(tmp_path, 1, 2, 3)
    kept, reader = Kept(), follower(tmp_path)
    reader.skip_to(2)
    pass_on(reader, kept)
    assert [point.step for point in kept.points] == [3]


@pytest.mark.parametrize("mark", ["", "[]", json.dumps({"run_id": "another", "steps": {}, "evaluations": {}})])
def test_a_mark_of_another_run_or_a_broken_one_does_not_count(tmp_path: Path, mark: str) -> None:
    train(tmp_path, 1)
    mark_file(tmp_path, "kept").parent.mkdir()
    mark_file(tmp_path, "kept").write_text(mark)
    assert [point.step for point in follower(tmp_path).points()] == [1]


def test_each_step_is_passed_on_once_while_older_ones_are_thinned_out(tmp_path: Path) -> None:
    kept, writer = Kept(), MetricsWriter(tmp_path, Thinning(20))
    reader = follower(tmp_path)
    for step in range(1, 202):
        writer.write(step, {"reward": step / 10})
        if step % 7 == 0:
            pass_on(reader, kept)
        if step % 50 == 0:
            # A process that was started again has the mark alone.
            reader = follower(tmp_path)
    writer.close()
    pass_on(reader, kept)
    assert [point.step for point in kept.points] == list(range(1, 202))


def test_a_file_of_fewer_steps_that_has_grown_past_the_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    kept = Kept()
    train(tmp_path, *range(1, 11))
    pass_on(follower(tmp_path), kept)
    content = RunFolder(tmp_path).metrics.read_bytes().splitlines(keepends=True)
    # In place, as a file that is given the number of one that is gone.
    RunFolder(tmp_path).metrics.write_bytes(b"".join(content[5:]))
    train(tmp_path, *range(11, 21))
    pass_on(follower(tmp_path), kept)
    assert [point.step for point in kept.points] == list(range(1, 21))


def test_tensorboard_keeps_the_steps_that_a_thinned_file_keeps(tmp_path: Path) -> None:
    config = RunConfig(folder=tmp_path, training=TrainingSettings(whole_metrics_steps=8))
    own = tracking_folder(tmp_path) / "tensorboard"
    run = TrackedRun("r", "sums", tmp_path, own, config.tracking, flat(config.model_dump(mode="json")))
    train(tmp_path, *range(1, 101))
    # What an evaluation has measured, whose steps are no multiples of anything.
    RunFolder(tmp_path).evaluation.mkdir()
    (RunFolder(tmp_path).evaluation / "metrics.jsonl").write_text('{"step": 13, "seconds": 1.0}\n')
    tracker = opened("tensorboard", run, 0)
    pass_on(follower(tmp_path), tracker)
    tracker.close()
    board = EventAccumulator(str(RunFolder(tmp_path).tensorboard), size_guidance={"scalars": 0})
    board.Reload()
    steps = sorted(event.step for event in board.Scalars("reward/reward"))
    assert steps[-8:] == list(range(93, 101))
    assert 13 in steps
    assert len(steps) < 60
