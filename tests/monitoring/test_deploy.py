"""What ships for Prometheus and Grafana names only metrics that there are, and is what promtool takes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import Health
from dcpo_async.monitoring.exposition import COUNTERS, GAUGES, OF_STEP, families
from dcpo_async.monitoring.step_tail import StepTail
from tests.commands.test_status import actor

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("prometheus/alerts.yml", "grafana/dcpo.json")
PROMTOOL = shutil.which("promtool")


def all_names() -> set[str]:
    """Names of the samples of a run in which everything has been counted."""
    status = {key: 1.0 for _, key, _ in (*GAUGES, *COUNTERS)} | {"run_id": "r", "actors_connected": [actor("a", 1.0)]}
    status |= {f"total_{name}": 1.0 for name in ("regraded", "regrade_disagreements", "leases")}
    status["last_step"] = {key: 1.0 for _, key, _ in OF_STEP}
    found = {sample.name for family in families(status, Health("training", "", 0.0)) for sample in family.samples}
    tail: CollectorRegistry = StepTail(Path("no-such-file")).registry
    return found | {sample.name for family in tail.collect() for sample in family.samples}


@pytest.mark.parametrize("file", FILES)
def test_only_metrics_that_there_are_are_named(file: str) -> None:
    named = set(re.findall(r"\bdcpo_\w+", (DEPLOY / file).read_text()))
    assert len(named) > 15
    assert named <= all_names(), named - all_names()


def test_names_follow_the_conventions() -> None:
    for family in families({"actors_connected": [], "trainer_restarts": 1}, Health("training", "", 0.0)):
        assert re.fullmatch(r"dcpo_[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith(".")
    for name in all_names():
        assert not re.search(r"_(ms|millis|gib|mb|percent|minutes)$", name)


def test_the_board_is_one_that_grafana_reads() -> None:
    board = json.loads((DEPLOY / "grafana/dcpo.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) > 20
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert all(panel["targets"] for panel in board["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_takes_rules_and_configuration_and_the_rules_do_what_their_tests_say() -> None:
    assert PROMTOOL is not None
    for words in (
        ["check", "rules", "alerts.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run(
            [PROMTOOL, *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["dcpo-learner", "dcpo-actor", "dcpo-serve"])
def test_systemd_takes_the_units(tmp_path: Path, name: str) -> None:
    text = (DEPLOY / "systemd" / f"{name}.service").read_text()
    unit = tmp_path / f"{name}.service"
    unit.write_text(re.sub(r"/opt/dcpo/bin/\S+", "/bin/true", text).replace("User=dcpo", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert f"{name}.service" not in done.stdout + done.stderr
    # A learner that is stopped may take its checkpoint.stop_seconds before it is killed.
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text + "TimeoutStopSec=0")[0]) >= {"dcpo-learner": 330}.get(name, 0)


@pytest.mark.parametrize("name", ["dcpo-learner", "dcpo-actor"])
def test_units_do_not_start_again_what_a_new_start_does_not_help(name: str) -> None:
    text = (DEPLOY / "systemd" / f"{name}.service").read_text()
    assert f"RestartPreventExitStatus={ConfigError.exit_code}\n" in text
