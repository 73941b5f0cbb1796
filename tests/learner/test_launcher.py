"""What `dcpo-learner` makes of its command line."""

from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from learner.launcher import Devices, parsed


def test_a_setting_can_be_given_without_a_configuration_file() -> None:
    config, devices, options = parsed(["--training.learning_rate", "2e-6", "--folder", "elsewhere", "--keys", "keys"])
    assert (config.training.learning_rate, config.folder) == (2e-6, Path("elsewhere"))
    assert (options.config, options.keys, devices.num_workers) == (None, Path("keys"), 1)


def test_a_setting_may_stand_before_the_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 5\n")
    config, _, _ = parsed(["--sampling.group_size", "4", "--insecure", str(path), "--workers", "2"])
    assert (config.seed, config.sampling.group_size) == (5, 4)


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError):
        parsed(["--training.learning_rate"])


def test_a_trainer_on_the_cpu_sees_no_gpu() -> None:
    environment = Devices((), 2).environment()
    assert (environment["DS_ACCELERATOR"], environment["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_a_trainer_on_gpus_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Devices((4, 5, 6, 7), 4).environment()["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
