"""Spans as they are written, and the trace that is made of them."""

from pathlib import Path

import pytest

from dcpo_async.metrics import timeline
from dcpo_async.metrics.timeline import Span, SpanLog, read_spans, trace


def test_parts_of_a_chain_end_one_where_the_next_begins(tmp_path: Path) -> None:
    log = SpanLog(tmp_path)
    log.chain("trainer", [("wait", 2.0), ("nothing", 0.0), ("train", 3.0)], step=7)
    log.close()
    train, wait = read_spans(tmp_path)
    assert (train.name, train.seconds, train.facts) == ("train", 3.0, {"step": 7})
    assert wait.start + wait.seconds == pytest.approx(train.start, abs=1e-3)


def test_spans_that_a_full_disk_refuses_are_left_out_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "00000001.jsonl").symlink_to("/dev/full")
    log = SpanLog(tmp_path)
    for _ in range(3):
        log.add("trainer", "step", 1.0)
        log.flush()
    log.close()
    assert caplog.text.count("lacks spans of what happens now: [Errno 28] No space left on device") == 1


def test_what_is_shorter_than_a_millisecond_is_left_out(tmp_path: Path) -> None:
    log = SpanLog(tmp_path)
    log.add("coordinator", "commit", 0.0005)
    log.close()
    assert not list(read_spans(tmp_path))


def test_the_newest_files_are_kept_and_a_new_start_begins_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "FILE_BYTES", 100)
    for start in range(2):
        log = SpanLog(tmp_path)
        for number in range(30):
            log.add("trainer", f"{start}-{number}", 1.0)
        log.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == timeline.NUM_FILES
    assert sum(path.stat().st_size for path in files) < timeline.NUM_FILES * 200
    assert list(read_spans(tmp_path))[-1].name == "1-29"


def test_a_line_that_is_not_whole_yet_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "00000001.jsonl").write_text('["a", "b", 1.0, 2.0, {}]\n["a", "c", 1.')
    assert list(read_spans(tmp_path)) == [Span("a", "b", 1.0, 2.0, {})]


def test_a_trace_has_a_lane_for_each_thing_at_once_and_parts_lie_in_the_lane_of_their_lease() -> None:
    spans = [
        Span("actor", "generate", 10.0, 3.0, {"position": 1}),
        Span("actor", "grade", 13.0, 1.0, {"position": 1}),
        Span("actor", "lease", 10.0, 5.0, {"position": 1}),
        Span("actor", "lease", 11.0, 2.0, {"position": 2}),
        Span("actor", "lease", 15.0, 2.0, {"position": 3}),
        Span("trainer", "train", 12.0, 4.0, {"step": 1}),
    ]
    events = trace(spans)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {1: "actor", 2: "trainer"}
    found = [
        (event["pid"], event["tid"], event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"
    ]
    assert found == [
        (1, 1, "lease", 0, 5_000_000),
        (1, 1, "generate", 0, 3_000_000),
        (1, 2, "lease", 1_000_000, 2_000_000),
        (2, 1, "train", 2_000_000, 4_000_000),
        (1, 1, "grade", 3_000_000, 1_000_000),
        (1, 1, "lease", 5_000_000, 2_000_000),
    ]
    assert trace([])["traceEvents"] == []


def test_starts_that_come_often_do_not_push_out_what_earlier_ones_wrote(tmp_path: Path) -> None:
    for number in range(3 * timeline.NUM_FILES):
        log = SpanLog(tmp_path)
        log.add("trainer", f"start {number}", 1.0)
        log.close()
    # The last one was killed in the middle of a line.
    (newest,) = tmp_path.glob("*.jsonl")
    newest.write_text(newest.read_text().rstrip()[:-3])
    log = SpanLog(tmp_path)
    log.add("trainer", "one more", 1.0)
    log.close()
    names = [span.name for span in read_spans(tmp_path)]
    assert names == [*(f"start {number}" for number in range(3 * timeline.NUM_FILES - 1)), "one more"]
