"""The names of all settings, and which of them somebody may have meant."""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dcpo_async.config.run import RunConfig

MAX_MEANT, LIKE = 3, 0.8


@cache
def setting_fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted name, in the order of the reference."""
    return dict(_fields(RunConfig))


def section_names() -> list[str]:
    """The tables of a configuration file: names that hold settings and are none themselves."""
    return [name for name in RunConfig.model_fields if name not in setting_fields()]


def meant(name: str) -> list[str]:
    """Settings that a name which does not exist may stand for, the likeliest first: "learning_rate", "training.lr".

    Those with the same last part, else those that it abbreviates, else those that are spelt much like it.
    """
    name = name.replace("-", "_")
    last, names = name.rpartition(".")[2], list(setting_fields())
    lasts = {setting: setting.rpartition(".")[2] for setting in names}
    for found in (
        [setting for setting in names if lasts[setting] == last],
        [setting for setting in names if _initials(lasts[setting]) == last],
        get_close_matches(name, names, MAX_MEANT, LIKE),
    ):
        if found:
            return found[:MAX_MEANT]
    near = get_close_matches(last, lasts.values(), 1)
    return [setting for setting in names if lasts[setting] in near][:MAX_MEANT]


def did_you_mean(name: str, prefix: str = "") -> str:
    """What to say of a setting that does not exist: "; did you mean training.learning_rate?", or nothing."""
    found = [f"{prefix}{setting}" for setting in meant(name)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)
