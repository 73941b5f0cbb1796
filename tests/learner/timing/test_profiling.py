"""A profile of some steps."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from learner.timing.profiling import StepProfiler


@pytest.mark.filterwarnings("ignore")
def test_the_steps_that_were_asked_for_are_in_a_trace_of_each_rank(tmp_path: Path) -> None:
    profiler = StepProfiler("2:3", tmp_path / "profile", rank=1)
    for step in range(1, 5):
        with profiler.around(step):
            torch.ones(64 + step, 64) @ torch.ones(64, 64)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps-2-3-rank-1.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2
    assert any(event.get("name") == "[memory]" for event in events)


def test_without_steps_nothing_is_written(tmp_path: Path) -> None:
    profiler = StepProfiler(None, tmp_path / "profile", rank=0)
    with profiler.around(1):
        pass
    assert not (tmp_path / "profile").exists()
