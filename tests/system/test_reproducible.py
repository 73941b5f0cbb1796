"""The same seed gives the same run, bit for bit: without lag, on a CPU, with the real engine."""

from pathlib import Path

import pytest

from tests.system.services import Services

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(300)]

SYNCHRONOUS = ("--lag.max_lag", "0", "--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2")
GRADED = ("--grading.extraction", "last_number", "--grading.format_penalty", "0.5")
LENGTH = ("--training.max_steps", "8", "--checkpoint.interval_steps", "4")
OF_TIME = ("seconds", "per_second", "groups_waiting", "groups_leased", "actors", "regraded", "in_flight", "capacity")
OF_MACHINE = ("tflops", "peak_host_bytes", "peak_gpu_bytes")
OF_NEWEST = ("publish_bytes", "publish_patch_bytes", "canary_difference")
"""Of the newest version that was published, or adopted, when a step was reported: publisher and actor do not wait."""


def run(folder: Path, model: Path, seed: int) -> tuple[bytes, list[dict[str, float]], list[tuple[object, ...]]]:
    """Exported weights, metrics that are not of time, and every group's rewards and advantages."""
    folder.mkdir()
    with Services(folder, model) as services:
        learner = services.start_learner(*SYNCHRONOUS, *GRADED, *LENGTH, "--seed", str(seed))
        services.start_actor("--engine", "vllm", "--kv-cache-gib", "0.1")
        services.ends_well(learner, seconds=140)
        metrics = [
            {name: value for name, value in line.items() if not name.endswith(OF_TIME + OF_MACHINE + OF_NEWEST)}
            for line in services.metrics()
        ]
    groups = services.ledger("SELECT position, rewards, advantages FROM groups ORDER BY position")
    return services.exported_weights(), metrics, groups


def test_a_synchronous_run_with_vllm_can_be_repeated_bit_for_bit(tmp_path: Path, model: Path) -> None:
    first, again = run(tmp_path / "first", model, seed=7), run(tmp_path / "again", model, seed=7)
    assert first == again
    assert len(first[1]) == 8
    assert all(line["lag_mean"] == 0 for line in first[1])
    assert any(line["grad_norm"] > 0 for line in first[1])
