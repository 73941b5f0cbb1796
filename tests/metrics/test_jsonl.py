"""Metrics on disk: a step written again counts once, a cut line does no harm, and old steps are thinned out."""

import errno
import os
from pathlib import Path

import pytest

from dcpo_async.metrics.jsonl import MetricsWriter, measured_steps, read_metrics
from dcpo_async.metrics.sink import Thinning
from dcpo_async.run_folder import RunFolder


def test_a_step_that_is_trained_again_counts_as_it_was_written_last(tmp_path: Path) -> None:
    for loss in (1.0, 0.5):
        writer = MetricsWriter(tmp_path)
        writer.write(3, {"loss": loss})
        writer.write(4, {"loss": loss})
        writer.close()
    assert [(step["step"], step["loss"]) for step in read_metrics(tmp_path)] == [(3, 0.5), (4, 0.5)]


def test_what_was_spent_until_a_step_is_not_what_was_spent_when_it_was_trained_again(tmp_path: Path) -> None:
    first = '{"step": 1, "seconds": 10.0, "generated_responses": 8.0, "loss": 2.0}'
    again = '{"step": 1, "seconds": 60.0, "generated_responses": 40.0, "generated_tokens": 90.0, "loss": 2.5}'
    (tmp_path / "metrics.jsonl").write_text(f"{first}\n{again}\n")
    (line,) = read_metrics(tmp_path)
    assert line == {"step": 1, "seconds": 10.0, "generated_responses": 8.0, "generated_tokens": 90.0, "loss": 2.5}


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [step["step"] for step in read_metrics(tmp_path)] == [1]


def test_a_writer_after_a_crash_begins_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    writer = MetricsWriter(tmp_path)
    writer.write(2, {"loss": 1.5})
    writer.close()
    assert [(step["step"], step["loss"]) for step in read_metrics(tmp_path)] == [(1, 2.0), (2, 1.5)]


def test_seconds_go_on_where_an_earlier_writer_ended(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 50.0}\n{"step": 2, "seconds": 70.5}\n')
    writer = MetricsWriter(tmp_path)
    writer.write(2, {})
    writer.close()
    assert 70.5 <= read_metrics(tmp_path)[-1]["seconds"] < 80


def test_no_metrics_are_an_empty_list(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_the_newest_steps_are_kept_whole_and_the_older_the_fewer() -> None:
    thinning = Thinning(10)
    kept = [step for step in range(1, 101) if thinning.keeps(step, 100)]
    assert kept[-10:] == list(range(91, 101))
    assert kept[:-10] == [16, *range(24, 61, 8), *range(64, 81, 4), *range(82, 91, 2)]


def test_what_is_kept_later_was_kept_before_and_the_number_grows_by_a_logarithm() -> None:
    thinning = Thinning(8)
    for newest in range(1, 500):
        for step in range(1, newest):
            assert thinning.keeps(step, newest) or not thinning.keeps(step, newest + 1)
    assert sum(thinning.keeps(step, 1 << 16) for step in range(1, (1 << 16) + 1)) <= 8 * (1 + 13 / 2) + 1


def test_a_file_of_metrics_grows_no_further_and_has_the_newest_steps_whole(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, Thinning(40))
    for step in range(1, 2001):
        writer.write(step, {"loss": step / 2})
    writer.close()
    steps = [int(line["step"]) for line in read_metrics(tmp_path)]
    assert steps[-40:] == list(range(1961, 2001))
    assert all(line["loss"] == line["step"] / 2 for line in read_metrics(tmp_path))
    again = MetricsWriter(tmp_path, Thinning(40))
    again.write(2001, {})
    again.close()
    steps = [int(line["step"]) for line in read_metrics(tmp_path)]
    assert steps == [step for step in range(1, 2002) if Thinning(40).keeps(step, 2001)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_steps_that_were_measured_stay_whatever_their_age(tmp_path: Path) -> None:
    measured, thinning = {7}, Thinning(8, lambda: measured)
    for first, last in ((1, 59), (60, 199), (200, 200)):
        writer = MetricsWriter(tmp_path, thinning)
        for step in range(first, last + 1):
            writer.write(step, {})
        writer.close()
        measured.add(53)
    steps = {int(line["step"]) for line in read_metrics(tmp_path)}
    assert steps == {step for step in range(1, 201) if Thinning(8).keeps(step, 200)} | {7, 53}


def test_a_file_is_not_thinned_where_what_was_measured_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "evaluation" / "metrics.jsonl").mkdir(parents=True)
    writer = MetricsWriter(tmp_path, Thinning(4, lambda: measured_steps(RunFolder(tmp_path))))
    for step in range(1, 41):
        writer.write(step, {})
    writer.close()
    assert len(read_metrics(tmp_path)) == 40
    assert "what was measured cannot be read" in caplog.text


def test_a_run_that_is_started_again_and_again_is_thinned_too(tmp_path: Path) -> None:
    for step in range(1, 101):
        writer = MetricsWriter(tmp_path, Thinning(40))
        writer.write(step, {})
        writer.close()
    assert len(read_metrics(tmp_path)) <= 40 + 30


def test_metrics_are_written_on_where_they_cannot_be_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    writer = MetricsWriter(tmp_path, Thinning(4))
    for step in range(1, 41):
        writer.write(step, {})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 41))
    assert "is not thinned: [Errno 28] No space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_costs_lines_of_metrics_and_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._lines.fileno())
    os.close(full)
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert "metrics.jsonl may lack step 2: [Errno 28] No space left on device" in caplog.text


def test_steps_are_written_on_where_a_full_disk_has_left_a_rest_and_then_has_room_for_a_thinned_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = MetricsWriter(tmp_path)
    for step in range(1, 40):
        before.write(step, {})
    before.close()
    writer = MetricsWriter(tmp_path, Thinning(4))
    writer.write(40, {})
    assert writer._thinner is not None
    writer._thinner.join()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._lines.fileno())
    os.close(full)
    for step in (41, 42, 43):
        writer.write(step, {})
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)][-3:] == [40, 42, 43]
    assert "metrics.jsonl may lack step 41" in caplog.text
    assert "is not thinned" not in caplog.text
