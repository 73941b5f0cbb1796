"""What a launcher answers over HTTP for its engines."""

import json
import threading
import time
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from actor.engine_process import report_of
from actor.launcher import answering
from dcpo_async.monitoring.engines import WatchedEngines, vllm_metrics_path, write_report, write_vllm_metrics
from dcpo_async.monitoring.server import MonitorServer
from dcpo_async.protocol.messages import Hello
from dcpo_async.protocol.session import ActorSession
from tests.monitoring.test_server import asked


def report(**changed: object) -> dict[str, object]:
    session = ActorSession(
        Hello(session_id="a" * 32, name="a", host="h", engine="e"), "tcp://127.0.0.1:1", 0.0,
        join_timeout_seconds=1, rejoin_timeout_seconds=1,
    )  # fmt: skip
    return report_of(session, []) | changed


def values(text: str) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels.get("engine", ""), sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_engine_has_its_series_by_its_number_alone(tmp_path: Path) -> None:
    with answering(("127.0.0.1", 0, None), tmp_path, 2) as starts:
        starts[0], starts[1] = 1, 3
        write_report(tmp_path / "engine-0.report", report(activity="generating", tokens_generated=120, leases=4))
    found = values(WatchedEngines([tmp_path / "engine-0.report", tmp_path / "no"], lambda: starts).metrics().decode())
    assert found["dcpo_engine_generated_tokens_total", "0", ""] == 120
    assert found["dcpo_engine_leases", "0", ""] == 4
    assert found["dcpo_engine_state", "0", "generating"] == 1
    assert found["dcpo_engine_state", "0", "idle"] == 0
    assert found["dcpo_engine_restarts_total", "1", ""] == 2
    assert ("dcpo_engine_leases", "1", "") not in found


def test_vllm_is_one_family_of_several_engines_and_other_metrics_of_a_process_stay_in_it(tmp_path: Path) -> None:
    seconds = Histogram("vllm:seconds", "Of a response.", ["model_name", "engine"], buckets=(1.0,), registry=None)
    ours = Counter("dcpo_own", "Of the process.", registry=None)
    reports = [tmp_path / f"engine-{number}.report" for number in range(3)]
    for collector in (seconds, ours):
        REGISTRY.register(collector)
    try:
        for report in reports[:2]:
            seconds.labels("policy", "0").observe(0.5)
            write_vllm_metrics(vllm_metrics_path(report))
    finally:
        for collector in (seconds, ours):
            REGISTRY.unregister(collector)
    text = WatchedEngines(reports, lambda: [1, 1, 1]).metrics().decode()
    found = values(text)
    assert (found["vllm:seconds_count", "0", ""], found["vllm:seconds_count", "1", ""]) == (1, 2)
    assert text.count("# TYPE vllm:seconds histogram") == 1
    assert "dcpo_own" not in text


def test_an_engine_that_is_not_heard_of_is_told_of_and_one_that_has_weights_makes_the_machine_ready(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    watched = WatchedEngines(paths, lambda: [1, 1])
    assert watched.is_starting
    write_report(paths[0], report(weights_version=3))
    status, health = watched.look()
    assert (status["weights_version"], health.state, health.why) == (3, "degraded", "not heard of: engine 1")
    paths[0].write_text(json.dumps(report() | {"written_at": time.time() - 100}))
    assert watched.look()[1].state == "silent"


def test_a_token_is_asked_for_where_one_was_given(tmp_path: Path) -> None:
    server = MonitorServer({"engines": WatchedEngines([tmp_path / "0"], lambda: [1])}, "127.0.0.1", 0, "t" * 16)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert asked(f"{address}/metrics")[0] == 401
        assert asked(f"{address}/metrics", "t" * 16)[0] == 200
        assert asked(f"{address}/readyz")[0] == 503
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
