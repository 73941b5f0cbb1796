"""Settings as text: as a TOML file that says where each value comes from, and as lines of help."""

import json
import re
from collections.abc import Iterator
from typing import Any

from dcpo_async.config.loading import Origins
from dcpo_async.config.names import setting_fields
from dcpo_async.config.run import RunConfig

COMMENT_COLUMN = 56
HELP_WIDTH = 118


def as_toml(config: RunConfig, origins: Origins) -> str:
    """Every setting of a run as a TOML file, each with a comment that says where its value was given.

    A setting that is none has no value in TOML, and is a comment as a whole.
    """
    return "\n".join(_toml_lines(config, origins))


def given(config: RunConfig, origins: Origins) -> list[str]:
    """What is not left at its default, a line each: `training.learning_rate = 1e-05, from the command line`."""
    return [
        f"{name} = {_value(_of(config, name))}, from {origins[name]}" for name in setting_fields() if name in origins
    ]


def help_lines() -> str:
    """A line for each setting, with its default, for `--help`."""
    return "\n".join(_help_lines())


def _toml_lines(config: RunConfig, origins: Origins) -> Iterator[str]:
    table = ""
    for name in setting_fields():
        section, _, last = name.rpartition(".")
        if section != table:
            yield f"\n[{section}]"
            table = section
        value, origin = _of(config, name), origins.get(name, "default")
        line = f"# {last} is none" if value is None else f"{last} = {_value(value)}"
        yield f"{line:<{COMMENT_COLUMN}}  # {origin}"


def _help_lines() -> Iterator[str]:
    for name, field in setting_fields().items():
        default = field.get_default(call_default_factory=True)
        head = f"  --{name} ({_value(_plain(default))})"
        # The first sentence.
        meaning = re.split(r"(?<=[.;:]) ", " ".join((field.description or "").split()), maxsplit=1)[0].rstrip(".;:")
        line = f"{head}  {meaning}"
        yield line if len(line) <= HELP_WIDTH else f"{line[: HELP_WIDTH - 1]}…"


def _of(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return _plain(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | dict | None) else str(value)


def _value(value: Any) -> str:
    """A value as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
