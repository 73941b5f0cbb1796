"""What each sink needs to be there; looked at without importing any of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from dcpo_async.config.sections import SinkName, TrackingSettings
from dcpo_async.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Needs:
    """Of a sink: packages to import, words for pip, and a variable that has to say where it sends to."""

    modules: tuple[str, ...]
    pip: str
    variable: str = ""


NEEDS: Mapping[SinkName, Needs] = {
    "tensorboard": Needs(("tensorboard",), "tensorboard"),
    "wandb": Needs(("wandb",), "wandb==0.31.0"),
    "mlflow": Needs(
        ("mlflow", "sqlalchemy", "alembic"),
        "mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1",
        "MLFLOW_TRACKING_URI",
    ),
    "trackio": Needs(("trackio",), "trackio==0.43.0"),
}


def check_sinks(settings: TrackingSettings, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError where a sink's packages are missing, or nothing says where it sends to."""
    for name in settings.sinks:
        needs = NEEDS[name]
        missing = [module for module in needs.modules if find_spec(module) is None]
        if missing:
            raise ConfigError(
                f"tracking.sinks {name} needs {' and '.join(missing)}: pip install {needs.pip} "
                f"(or 'dcpo-async[{name}]'), or leave it out"
            )
        if settings.mode == "online" and needs.variable and not environment.get(needs.variable):
            raise ConfigError(
                f"tracking.sinks {name} needs {needs.variable} in the environment, which says where it sends to; "
                "tracking.mode = offline keeps everything in the run folder"
            )
