"""A sink that cannot work is refused before the run begins, with what to install."""

import tomllib
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.config.sections import TrackingSettings
from dcpo_async.errors import ConfigError
from dcpo_async.tracking import requirements
from dcpo_async.tracking.requirements import NEEDS, check_sinks


def test_a_package_that_is_missing_is_refused_with_the_line_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=r"tracking.sinks wandb needs wandb: pip install wandb==0.31.0 "):
        check_sinks(TrackingSettings(sinks=("wandb",)))


def test_mlflow_has_to_be_told_where_it_sends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda module: object())
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        check_sinks(TrackingSettings(sinks=("mlflow",)), {})
    check_sinks(TrackingSettings(sinks=("mlflow",)), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"})
    check_sinks(TrackingSettings(sinks=("mlflow",), mode="offline"), {})


def test_extras_are_what_the_refusal_says() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name in ("wandb", "mlflow", "trackio"):
        assert project["optional-dependencies"][name] == NEEDS[name].pip.split()


def test_where_metrics_go_is_no_part_of_what_shapes_a_run() -> None:
    assert RunConfig(tracking=TrackingSettings(sinks=("wandb",))).digest() == RunConfig().digest()


def test_a_sink_is_named_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        TrackingSettings(sinks=("wandb", "wandb"))
