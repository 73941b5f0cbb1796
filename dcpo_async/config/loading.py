"""Settings from TOML files, and overrides from the command line."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from dcpo_async.config.names import did_you_mean, section_names, setting_fields
from dcpo_async.config.run import RunConfig
from dcpo_async.config.sections import merged
from dcpo_async.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "configs"
"""The configurations that ship, beside the packages wherever they are installed."""
COMMAND_LINE = "the command line"

Origins = Mapping[str, str]
"""Where each setting that is not left at its default was given, by its dotted name: a file, or the command line."""


def load_config(files: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read TOML files and apply overrides such as `--training.learning_rate 1e-5`.

    Args:
        files: TOML files, of which later ones override earlier ones, setting by setting; None takes the defaults,
            which are the paper's headline run. The name of a configuration that ships, such as grpo, is one too.
        overrides: command-line words, each setting by its dotted name.

    Raises:
        ConfigError: a file is missing or malformed, a setting is unknown, or a value is out of bounds.
    """
    return load_with_origins(files, overrides)[0]


def load_with_origins(
    files: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()
) -> tuple[RunConfig, Origins]:
    """The same, and where each value was given."""
    paths = [config_file(path) for path in ([files] if isinstance(files, Path) else files or ())]
    values, origins = dict[str, Any](), dict[str, str]()
    _refuse_overrides(overrides)
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            RunConfig, cli_parse_args=list(overrides), cli_exit_on_error=False, cli_prog_name="dcpo-learner"
        )
        for label, layer in (*((str(path), _read_toml(path)) for path in paths), (COMMAND_LINE, source())):
            values = merged(values, layer)
            origins.update(dict.fromkeys(_leaves(layer), label))
        return RunConfig(**values), origins
    except ValidationError as error:
        raise ConfigError(_one_line(error, paths)) from None
    except SettingsError as error:
        raise ConfigError(f"{error}; `dcpo settings` lists them") from None


def config_file(path: Path) -> Path:
    """The file that a path names; one that is not there may be a configuration that ships: grpo, configs/grpo.toml.

    A folder of that name, such as one with runs, hides no such configuration.
    """
    if path.is_file() or path.parent.name not in ("", "configs"):
        return path
    shipped = SHIPPED / f"{path.name.removesuffix('.toml')}.toml"
    return shipped if shipped.exists() else path


def preset_names() -> list[str]:
    """Names of the configurations that ship."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        names = preset_names()
        near = get_close_matches(path.name.removesuffix(".toml"), names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{path}: no such configuration file; {hint}Those that ship: {', '.join(names)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from None


def _refuse_overrides(overrides: Sequence[str]) -> None:
    """Refuse words that name no setting, and `--algorithm grpo`, which gives a word where a table of settings is."""
    unknown = []
    for word in overrides:
        name, _, value = word.removeprefix("--").partition("=")
        if name in section_names() and not value.lstrip().startswith("{"):
            example = next(setting for setting in setting_fields() if setting.startswith(f"{name}."))
            preset = f", or `dcpo-learner {value}` for the configuration {value}" if value in preset_names() else ""
            raise ConfigError(f"--{name} {value}: {name} is a table; give its settings, such as --{example}{preset}")
        if word.startswith("--") and name not in section_names() and name not in setting_fields():
            unknown.append(f"{name}: unknown setting{did_you_mean(name)}")
    if unknown:
        raise ConfigError("; ".join(unknown))


def _leaves(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in layer.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in setting_fields():
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _one_line(error: ValidationError, paths: Sequence[Path]) -> str:
    where = f"{', '.join(map(str, paths))}: " if paths else ""
    complaints: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        name, parent = (".".join(map(str, part)) for part in (item["loc"], item["loc"][:-1]))
        if parent in setting_fields() and isinstance(item["loc"][-1], str):
            # One of several types that a setting may have, each of which has its own complaint.
            name = parent
        message = f"unknown setting{did_you_mean(name)}" if item["type"] == "extra_forbidden" else item["msg"]
        message = message.removeprefix("Value error, ")
        found = "" if item["type"] in ("extra_forbidden", "value_error") else f", found {item['input']!r}"
        complaints.setdefault((name, found), []).append(message)
    problems = []
    for (name, found), (first, *others) in complaints.items():
        message = " or ".join((first, *(other.removeprefix("Input should be ") for other in others)))
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


def refuse_unknown(words: Sequence[str]) -> None:
    """Raise ConfigError where a word is no option: `--learning_rate` may have meant `--training.learning_rate`."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-"):
            hint = did_you_mean(name.lstrip("-"), prefix="--") or "; `dcpo settings` lists what can be set"
            raise ConfigError(f"{name}: no such option{hint}")


def _names_setting(word: str) -> bool:
    """Whether a word begins with the name of a setting; dotted ones that do not exist are refused later, by name."""
    name = word.partition("=")[0]
    return name.startswith("--") and ("." in name or name.removeprefix("--") in RunConfig.model_fields)
