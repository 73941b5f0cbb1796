"""Settings that may change while a run goes on, and why the others may not."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dcpo_async.config.names import did_you_mean, setting_fields
from dcpo_async.config.run import RunConfig
from dcpo_async.errors import ConfigError

OF_RANKS = frozenset(
    {
        "training.learning_rate",
        "checkpoint.interval_steps",
        "checkpoint.interval_minutes",
        "checkpoint.keep_last",
        "checkpoint.keep_every_steps",
    }
)
"""Those by which trainer ranks work: all ranks take them over before the same batch."""
OF_COORDINATOR = frozenset(
    {"network.silence_seconds", "actor.stall_seconds", "actor.regrade_share", "evaluation.every_steps"}
)
"""Those by which the coordinator works: it takes them over at once."""
RELOADABLE = OF_RANKS | OF_COORDINATOR
_AT_A_START = "is read once, at a start: dcpo stop RUN --keep-actors, then start the run with it"
_FOR_GOOD = "belongs to the run from its first start on: begin another run"
_OF_GROUPS = f"shapes groups that are being made, and {_AT_A_START}; actors take it over"
_WHY = {
    "folder": "names the run: move the folder of a stopped run, and start it there",
    "seed": _FOR_GOOD,
    "model": _FOR_GOOD,
    "data": _FOR_GOOD,
    "adapter": _FOR_GOOD,
    "sampling.group_size": _FOR_GOOD,
    "algorithm.updates_per_batch": _FOR_GOOD,
    "sampling": _OF_GROUPS,
    "grading": _OF_GROUPS,
    "training.max_steps": f"decides which visits are leased, and {_AT_A_START}",
    "lag": f"decides which groups may train, and {_AT_A_START}",
}
"""Of a setting, or else of its table; of the rest _AT_A_START is said."""

Setting = int | float | None


def changed_settings(config: RunConfig, changes: Mapping[str, Setting]) -> RunConfig:
    """A run's settings with some of them changed.

    Args:
        changes: by dotted names, of RELOADABLE.

    Raises:
        ConfigError: a value is outside its bounds, or does not go with another setting.
    """
    values = config.model_dump()
    for name, value in changes.items():
        section, _, leaf = name.partition(".")
        values[section] = {**values[section], leaf: value}
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {said}, found {first['input']!r}" if where else said) from None


def checked_changes(config: RunConfig, asked: Mapping[str, str]) -> dict[str, Setting]:
    """The changes that somebody asks for, as values that the run can go on with.

    Args:
        asked: texts by dotted names: numbers, or `none`.

    Raises:
        ConfigError: a name is unknown, a setting is read at a start only, or a value cannot be.
    """
    for name in asked:
        require_reloadable(name)
    if config.evaluation.every_steps is None and "evaluation.every_steps" in asked:
        raise ConfigError(f"evaluation.every_steps: nothing is measured in this run, whose problems it {_AT_A_START}")
    changed = changed_settings(config, {name: _value(name, text) for name, text in asked.items()})
    return {name: setting_of(changed, name) for name in asked}


def require_reloadable(name: str) -> None:
    """Raise ConfigError for a setting that does not exist, or that may not change while a run goes on."""
    if name not in setting_fields():
        raise ConfigError(f"{name}: unknown setting{did_you_mean(name)}")
    if name not in RELOADABLE:
        why = _WHY.get(name) or _WHY.get(name.partition(".")[0]) or _AT_A_START
        raise ConfigError(f"{name} {why}; what changes while it goes on is {', '.join(sorted(RELOADABLE))}")


def setting_of(config: RunConfig, name: str) -> Any:
    """The value of a setting, by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _value(name: str, text: str) -> Setting:
    if text.lower() == "none":
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: expected a number or none, found {text!r}")
    return value
