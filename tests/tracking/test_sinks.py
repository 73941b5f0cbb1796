"""Each sink by its real package, in its offline mode: killed and started again, every step is there once."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcpo_async.config import RunConfig
from dcpo_async.config.sections import SinkName, TrackingSettings
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.run_folder import RunFolder
from dcpo_async.tracking.follower import mark_file, tracking_folder
from dcpo_async.tracking.requirements import NEEDS

Points = list[tuple[int, float]]
RUN_ID = "run of sums-1a2b"


def of_tensorboard(run: Path, name: str) -> Points:
    board = EventAccumulator(str(RunFolder(run).tensorboard))
    board.Reload()
    return (
        [(event.step, round(event.value, 6)) for event in board.Scalars(name)]
        if name in board.Tags()["scalars"]
        else []
    )


def of_wandb(run: Path, name: str) -> Points:
    from wandb.proto import wandb_internal_pb2

    found: Points = []
    files = sorted((tracking_folder(run) / "wandb").rglob("*.wandb"))
    for path in files:
        for record in leveldb_records(path.read_bytes()):
            parsed = wandb_internal_pb2.Record.FromString(record)
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item}
            if name in items:
                found.append((items["step"], items[name]))
    assert len({path.stem for path in files}) == 1, "the id is the same in each start"
    return found


def leveldb_records(content: bytes) -> list[bytes]:
    """Records of a log in LevelDB's format, after W&B's own seven bytes; what a kill cut short is left out."""
    found, record, at = list[bytes](), b"", 7
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if kind == 0:
            break
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(record)
            record = b""
    return found


def of_mlflow(run: Path, name: str) -> Points:
    from dcpo_async.tracking.mlflow_run import name_here

    with sqlite3.connect(tracking_folder(run) / "mlflow" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
        rows = database.execute("select step, value from metrics where key = ? order by step", [name_here(name)])
        found = [(int(step), float(value)) for step, value in rows]
    database.close()
    return found


def of_trackio(run: Path, name: str) -> Points:
    (path,) = (tracking_folder(run) / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = [(step, json.loads(text)) for step, text in database.execute("select step, metrics from metrics")]
        assert database.execute("select count(distinct run_id) from metrics").fetchone() == (1,)
    database.close()
    return [(step, metrics[name]) for step, metrics in rows if name in metrics]


READ: dict[SinkName, Callable[[Path, str], Points]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


def start(run: Path, sink: str, until: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-W", "ignore", "-m", "dcpo_async.tracking", str(run), "--sink", sink]
    words += ["--run-id", RUN_ID, "--until", str(until)]
    with (run / "sink.log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | {"HOME": str(run)})


def train(run: Path, steps: range) -> None:
    writer = MetricsWriter(run)
    for step in steps:
        writer.write(step, {"reward": step / 10, "lag_0/tcr": 0.0})
    writer.close()


@pytest.mark.system
@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sink", READ)
def test_a_sink_that_is_killed_goes_on_with_the_same_curve(tmp_path: Path, sink: SinkName) -> None:
    if missing := [module for module in NEEDS[sink].modules if find_spec(module) is None]:
        pytest.skip(f"{missing} not installed: pip install {NEEDS[sink].pip}, or make trackers")
    run, until = tmp_path / "sums", tmp_path / "end"
    run.mkdir()
    settings = TrackingSettings(sinks=(sink,), mode="offline", project="tests", group="g", tags=("fast",))
    RunFolder(run).config.write_text(RunConfig(folder=run, tracking=settings).model_dump_json())
    train(run, range(1, 6))
    mark, deadline = mark_file(run, sink), time.monotonic() + 400
    with start(run, sink, until) as process:
        try:
            while not (mark.exists() and json.loads(mark.read_text())["steps"]["step"] == 5):
                assert process.poll() is None, (run / "sink.log").read_text()
                assert time.monotonic() < deadline, (run / "sink.log").read_text()
                time.sleep(0.1)
            # What its package took over and has not written yet is its own affair.
            time.sleep(3)
        finally:
            process.kill()
    # From a checkpoint of step 3.
    train(run, range(4, 9))
    evaluation = MetricsWriter(RunFolder(run).evaluation)
    evaluation.write(6, {"held_out/avg@1, low": 0.25})
    evaluation.close()
    until.touch()
    with start(run, sink, until) as process:
        assert process.wait(400) == 0, (run / "sink.log").read_text()
    assert READ[sink](run, "reward/reward") == [(step, step / 10) for step in range(1, 9)]
    assert READ[sink](run, "lag/lag_0/tcr") == [(step, 0.0) for step in range(1, 9)]
    assert READ[sink](run, "evaluation/held_out/avg@1, low") == [(6, 0.25)]
