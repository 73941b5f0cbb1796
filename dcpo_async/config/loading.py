"""Settings from TOML files, and overrides from the command line."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from dcpo_async.config import RunConfig, merged
from dcpo_async.errors import ConfigError


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file and apply overrides such as `--training.learning_rate 1e-5`.

    Args:
        path: TOML file; None takes the defaults, which are the paper's headline run.
        overrides: command-line words, each setting by its dotted name.

    Raises:
        ConfigError: the file is missing or malformed, a setting is unknown, or a value is out of bounds.
    """
    values = _read_toml(path) if path is not None else {}
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            RunConfig, cli_parse_args=list(overrides), cli_exit_on_error=False, cli_prog_name="dcpo-learner"
        )
        return RunConfig(**merged(values, source()))
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None
    except SettingsError as error:
        raise ConfigError(f"{error}; `dcpo settings` lists them") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; configs/ holds the ones that ship") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from None


def _one_line(error: ValidationError, path: Path | None) -> str:
    where = f"{path}: " if path else ""
    problems = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = "unknown setting" if item["type"] == "extra_forbidden" else item["msg"]
        message = message.removeprefix("Value error, ")
        found = "" if item["type"] in ("extra_forbidden", "value_error") else f", found {item['input']!r}"
        problems.append(f"{name}: {message}{found}" if name else message)
    return where + "; ".join(problems)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are not settings, and the settings, each a single word.

    argparse would take the value of `--a.b VALUE` for the configuration file, and `--a.b=of two` as a whole.
    """
    others, settings = list[str](), list[str]()
    is_value = False
    for word in words:
        if is_value:
            settings[-1] += f"={word}"
            is_value = False
        elif _names_setting(word):
            settings.append(word)
            is_value = "=" not in word
        else:
            others.append(word)
    return others, settings


def _names_setting(word: str) -> bool:
    """Whether a word begins with the name of a setting; dotted ones that do not exist are refused later, by name."""
    name = word.partition("=")[0]
    return name.startswith("--") and ("." in name or name.removeprefix("--") in RunConfig.model_fields)
