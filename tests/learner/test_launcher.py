"""What `dcpo-learner` makes of its command line."""

from pathlib import Path

import pytest

from dcpo_async.devices import HUGE_PAGES, Devices, cuda_environment
from dcpo_async.errors import ConfigError
from dcpo_async.run_folder import RunFolder
from learner.launcher import gpus_elsewhere, parsed
from learner.parts import trainer_error
from learner.run_setup import described
from learner.trainer.rank import leave_error

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_forgotten_choice_of_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(ConfigError, match="4 GPUs and none is named"):
        parsed([])
    assert parsed(["--workers", "2"])[1] == Devices((), 2)
    assert parsed(["--gpus", "1-2"])[1] == Devices((1, 2), 2)


def test_another_machine_is_only_for_a_check() -> None:
    assert parsed(["--check", "--on", "4x80"])[1] == Devices((0, 1, 2, 3), 4)
    with pytest.raises(ConfigError, match="needs --check"):
        parsed(["--on", "4x80"])
    for text in ("80", "0x80", "4x", "fourx80"):
        with pytest.raises(ConfigError, match="expected a number of GPUs"):
            gpus_elsewhere(text)


def test_a_setting_can_be_given_without_a_configuration_file() -> None:
    config, devices, options = parsed(["--training.learning_rate", "2e-6", "--folder", "elsewhere", "--keys", "keys"])
    assert (config.training.learning_rate, config.folder) == (2e-6, Path("elsewhere"))
    assert (options.config, options.keys, devices.num_workers) == ([], Path("keys"), 1)


def test_a_setting_may_stand_before_the_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 5\n")
    config, _, _ = parsed(["--sampling.group_size", "4", "--insecure", str(path), "--workers", "2"])
    assert (config.seed, config.sampling.group_size) == (5, 4)


@pytest.mark.parametrize("joint", [" ", "="])
def test_values_with_spaces_and_quotes_need_no_configuration_file(joint: str) -> None:
    given = {"model.path": "/a b/it's", "data.system_prompt": 'Say "x", please.', "folder": "/a b/run", "seed": "3"}
    words = [word for name, value in given.items() for word in (f"--{name}{joint}{value}").split(joint, 1)]
    config, _, options = parsed(words if joint == " " else [f"--{name}={value}" for name, value in given.items()])
    assert (config.model.path, config.data.system_prompt) == (given["model.path"], given["data.system_prompt"])
    assert (config.folder, config.seed, options.config) == (Path("/a b/run"), 3, [])


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError):
        parsed(["--training.learning_rate"])


def test_a_trainer_on_the_cpu_sees_no_gpu() -> None:
    environment = Devices((), 2).environment()
    assert (environment["DS_ACCELERATOR"], environment["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_tensors_of_a_trainer_on_the_cpu_lie_in_huge_pages_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(HUGE_PAGES, raising=False)
    assert Devices((), 1).environment()[HUGE_PAGES] == "1"
    monkeypatch.setenv(HUGE_PAGES, "0")
    assert Devices((), 1).environment()[HUGE_PAGES] == "0"


def test_a_trainer_on_gpus_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Devices((4, 5, 6, 7), 4).environment()["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_ranks_on_gpus_get_memory_in_segments_that_grow_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    on_gpus = Devices((0, 1), 2)
    assert on_gpus.environment()["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in Devices((), 2).environment()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in cuda_environment((0, 1)), "vLLM's processes use this one"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in on_gpus.environment()


def test_the_line_about_the_algorithm_names_the_correction_and_its_thresholds() -> None:
    words = ["--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2", "--algorithm.old", "proximal"]
    truncated, _, _ = parsed([*words, "--algorithm.half_life_visits", "8"])
    assert described(truncated) == (
        "smooth advantages, half-life 8 visits; dynamic clip of token ratios, ε 0.16 and 0.2, r_max 10; response mean; "
        "U 2, max_lag 4; old = proximal with truncated correction min(π_old/π_behavior, 2)"
    )
    masked, _, _ = parsed([*words, "--algorithm.correction", "masked"])
    assert described(masked).endswith("masked correction, π_old/π_behavior within 0.5 to 5")
    dapo, _, _ = parsed([str(CONFIGS / "dapo.toml"), "--algorithm.zero_advantages", "true"])
    assert "token mean; dynamic sampling; 512 tokens of overlong shaping; CONTROL: every advantage" in described(dapo)
    assert "; response sum; " in described(parsed([str(CONFIGS / "otm-only.toml")])[0])
    assert described(parsed([])[0]).endswith(
        "U 1, max_lag 4; old = behavior: the ratio to the engine's log-probs corrects, and the clip bounds it"
    )


def test_what_the_rank_that_failed_first_said_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert trainer_error(folder) == f"no rank said why, see {tmp_path}/logs/trainer.log"
    leave_error(folder, "CUDA out of memory\nand much more", exit_code=1)
    leave_error(folder, "a peer is gone", exit_code=1)
    assert trainer_error(folder) == "CUDA out of memory"


def test_what_no_restart_can_mend_is_raised(tmp_path: Path) -> None:
    leave_error(RunFolder(tmp_path), "the checkpoint is damaged", exit_code=2)
    with pytest.raises(ConfigError, match=r"^the checkpoint is damaged$"):
        trainer_error(RunFolder(tmp_path))
