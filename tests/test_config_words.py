"""Words that users give for settings: names that ship, several files, and what was meant by names that do not exist."""

import re
import tomllib
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.config.loading import config_file, load_config, load_with_origins, preset_names, refuse_unknown
from dcpo_async.config.names import meant, setting_fields
from dcpo_async.config.showing import as_toml, given, help_lines
from dcpo_async.errors import ConfigError


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_later_files_override_earlier_ones_setting_by_setting(tmp_path: Path) -> None:
    base = written(tmp_path, "base.toml", "seed = 5\n[training]\nlearning_rate = 1e-4\nmax_steps = 7\n")
    overlay = written(tmp_path, "overlay.toml", "[training]\nlearning_rate = 1e-5\n")
    config = load_config([base, overlay])
    assert (config.seed, config.training.learning_rate, config.training.max_steps) == (5, 1e-5, 7)
    assert load_config([overlay, base]).training.learning_rate == 1e-4


def test_each_value_is_known_by_where_it_was_given(tmp_path: Path) -> None:
    base = written(tmp_path, "base.toml", "seed = 5\n[training]\nlearning_rate = 1e-4\ndeepspeed = {a = {b = 1}}\n")
    overlay = written(tmp_path, "overlay.toml", "[training]\nlearning_rate = 1e-5\n")
    config, origins = load_with_origins([base, overlay], ["--training.max_steps=9"])
    assert origins == {
        "seed": str(base),
        "training.learning_rate": str(overlay),
        "training.deepspeed": str(base),
        "training.max_steps": "the command line",
    }
    assert given(config, origins)[:1] == [f"seed = 5, from {base}"]
    assert "training.max_steps = 9, from the command line" in given(config, origins)


@pytest.mark.parametrize("name", preset_names())
def test_settings_are_shown_as_a_file_that_gives_the_same_run(tmp_path: Path, name: str) -> None:
    config, origins = load_with_origins(Path(name))
    shown = as_toml(config, origins)
    assert load_config(written(tmp_path, "shown.toml", shown)) == config
    assert tomllib.loads(shown)["training"]["learning_rate"] == config.training.learning_rate
    assert re.search(rf"^folder = .*  # .*{name}\.toml$", shown, re.MULTILINE)
    assert re.search(r"^seed = 0 +# default$", shown, re.MULTILINE) or "seed" in origins


def test_a_configuration_that_ships_is_found_by_its_name_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "grpo" in preset_names()
    for word in ("grpo", "grpo.toml", "configs/grpo.toml", "configs/grpo"):
        assert load_config(Path(word)).algorithm.advantage == "group"
    # A file of one's own comes first.
    written(tmp_path, "grpo.toml", "seed = 5\n")
    assert config_file(Path("grpo.toml")) == Path("grpo.toml")
    assert load_config(Path("grpo.toml")).seed == 5


def test_a_folder_hides_no_configuration_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_config(Path("demo"), []).training.max_steps == 120


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("learning_rate", ["training.learning_rate"]),
        ("learning-rate", ["training.learning_rate"]),
        ("training.lr", ["training.learning_rate"]),
        ("lr", ["training.learning_rate"]),
        ("trainig.groups_per_stepp", ["training.groups_per_step"]),
        ("max_steps", ["training.max_steps"]),
        ("grup_size", ["sampling.group_size"]),
        ("frobnicate_all", []),
    ],
)
def test_what_a_name_may_have_meant(name: str, settings: list[str]) -> None:
    assert meant(name)[:1] == settings


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--training.lr=1"], "training.lr: unknown setting; did you mean training.learning_rate?"),
        (["--algorithm=grpo"], "--algorithm grpo: algorithm is a table; give its settings"),
        (["--algorithm=grpo"], "or `dcpo-learner grpo` for the configuration grpo"),
    ],
)
def test_a_mistaken_setting_is_told_what_was_meant(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(None, words)


def test_a_mistaken_option_or_file_is_told_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("did you mean --training.learning_rate?")):
        refuse_unknown(["--learning_rate", "1e-5"])
    with pytest.raises(ConfigError, match=r"did you mean grpo\? Those that ship: .*dapo"):
        load_config(Path("grppo"))
    with pytest.raises(ConfigError, match=r"training\.lr: unknown setting; did you mean training\.learning_rate\?"):
        load_config(written(tmp_path, "own.toml", "[training]\nlr = 1\n"))


def test_help_has_a_line_for_each_setting() -> None:
    lines = help_lines().splitlines()
    assert [line.split()[0].removeprefix("--") for line in lines] == list(setting_fields())
    assert "  --training.learning_rate (1e-06)  " in help_lines()
    assert len(setting_fields()) > 80
    assert RunConfig.model_fields.keys() >= {name.partition(".")[0] for name in setting_fields()}
