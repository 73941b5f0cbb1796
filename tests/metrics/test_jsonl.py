"""Metrics on disk: a step written again counts once, and a cut line does no harm."""

from pathlib import Path

from dcpo_async.metrics.jsonl import MetricsWriter, read_metrics


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
