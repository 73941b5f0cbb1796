"""TensorBoard's files: what its own reader finds in them, and that they do not grow for good."""

import struct
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcpo_async.metrics.sink import Thinning
from dcpo_async.metrics.tensorboard import TensorBoardWriter


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_each_number_of_a_step_is_a_point(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2):
        writer.write(step, {"loss": 0.5 * step, "lag_0/tcr": 0.25})
    writer.close()
    assert points(tmp_path, "loss") == [(1, 0.5), (2, 1.0)]
    assert points(tmp_path, "lag_0/tcr") == [(1, 0.25), (2, 0.25)]


def test_old_steps_are_thinned_out_in_files_that_are_no_longer_written(tmp_path: Path) -> None:
    for first in (1, 301):
        writer = TensorBoardWriter(tmp_path, Thinning(40))
        for step in range(first, first + 300):
            writer.write(step, {"loss": step / 2})
        writer.close()
    writer = TensorBoardWriter(tmp_path, Thinning(40))
    writer.write(601, {"loss": 300.5})
    writer.close()
    found = sorted(points(tmp_path, "loss"))
    assert [step for step, _ in found] == [step for step in range(1, 602) if Thinning(40).keeps(step, 601)]
    assert all(value == step / 2 for step, value in found)


def test_evaluations_stay_whatever_their_step(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, Thinning(8))
    for step in range(1, 100):
        writer.write(step, {"reward/reward": 0.5})
        if step % 10 == 3:
            writer.write(step, {"evaluation/held_out/avg@1": 0.25})
    writer.close()
    # Files of one second are read in the order of their names, in which the tenth comes before the second.
    found = sorted(step for step, _ in points(tmp_path, "evaluation/held_out/avg@1"))
    assert found == list(range(3, 100, 10))
    assert len(points(tmp_path, "reward/reward")) < 60


def test_a_file_that_a_crash_cut_short_loses_its_last_point_alone(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in range(1, 21):
        writer.write(step, {"loss": 1.0})
    writer.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    writer = TensorBoardWriter(tmp_path, Thinning(8))
    writer.write(21, {"loss": 1.0})
    writer.close()
    kept = [step for step in range(1, 20) if Thinning(8).keeps(step, 21)]
    assert [step for step, _ in points(tmp_path, "loss")] == [*kept, 21]


@pytest.mark.parametrize("at", ["length", "event"])
def test_a_damaged_file_is_left_as_it_is_and_the_others_are_thinned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    for first in (1, 101):
        writer = TensorBoardWriter(tmp_path)
        for step in range(first, first + 100):
            writer.write(step, {"loss": 1.0})
        writer.close()
    damaged, whole = sorted(tmp_path.iterdir())
    content = bytearray(damaged.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    second = 8 + 4 + length + 4
    if at == "length":
        content[second + 3] ^= 0xFF
    else:
        content[second + 12 : second + 20] = b"\xff" * 8
    damaged.write_bytes(content)
    size = whole.stat().st_size
    writer = TensorBoardWriter(tmp_path, Thinning(8))
    writer.write(201, {"loss": 1.0})
    writer.close()
    assert damaged.read_bytes() == content
    assert whole.stat().st_size < size / 2
    assert f"{damaged} is not thinned" in caplog.text
