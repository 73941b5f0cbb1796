"""Steps that are observed once each, whatever becomes of the file."""

from pathlib import Path

from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.metrics.sink import Thinning
from dcpo_async.monitoring.step_tail import StepTail


def observed(tail: StepTail) -> tuple[float, float]:
    """Number and sum of the steps' seconds."""
    tail.look()
    count = tail.registry.get_sample_value("dcpo_step_duration_seconds_count")
    total = tail.registry.get_sample_value("dcpo_step_duration_seconds_sum")
    assert count is not None
    assert total is not None
    return count, total


def test_each_step_is_observed_once_while_older_ones_are_thinned_out(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, Thinning(20))
    writer.write(1, {"step_seconds": 1000.0})
    tail = StepTail(tmp_path / "metrics.jsonl")
    for step in range(2, 202):
        writer.write(step, {"step_seconds": step / 2})
        if step % 7 == 0:
            observed(tail)
    writer.close()
    assert observed(tail) == (200, sum(range(2, 202)) / 2)


def test_the_steps_of_a_new_run_in_the_folder_are_all_observed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "step_seconds": 1.0}\n{"step": 2, "step_seconds": 1.0}\n')
    tail = StepTail(path)
    path.unlink()
    assert observed(tail) == (0, 0)
    path.write_text('{"step": 1, "step_seconds": 5.0}\n')
    assert observed(tail) == (1, 5)
