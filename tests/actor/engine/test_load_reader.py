"""What capacity is told of vLLM's steps."""

import pytest
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actor.engine.interface import EngineLoad
from actor.engine.load_reader import LoadReader

pytestmark = pytest.mark.system


def test_responses_that_end_together_had_a_place_until_then() -> None:
    reader = LoadReader(None)  # type: ignore[arg-type]
    step = IterationStats()
    step.finished_requests, step.num_preempted_reqs = [object()] * 3, 2  # type: ignore[list-item]
    reader.record(SchedulerStats(num_running_reqs=1, kv_cache_usage=0.5), step)
    assert reader.load == EngineLoad(num_running=4, kv_cache_share=0.5, preemptions=2, steps=1)
    reader.record(SchedulerStats(num_running_reqs=4, kv_cache_usage=0.75), None)
    assert reader.load == EngineLoad(num_running=4, kv_cache_share=0.75, preemptions=2, steps=2)
