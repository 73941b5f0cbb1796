"""`--gpus`: what is understood and what is refused."""

from pathlib import Path

import pytest

from dcpo_async.devices import checked_gpus, count_gpus, cuda_environment, parse_gpus, require_choice
from dcpo_async.errors import ConfigError


def test_numbers_and_ranges_are_understood() -> None:
    assert parse_gpus("0-2,5") == (0, 1, 2, 5)
    assert parse_gpus("7") == (7,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("3-1", "runs backwards"), ("a", "expected numbers"), ("", "expected numbers"), ("0,0-1", "named twice")],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_gpus(text)


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2


def test_a_gpu_that_this_machine_does_not_have_is_refused_with_what_it_has() -> None:
    count = count_gpus()
    found = f"GPUs 0 to {count - 1}" if count else "no GPU"
    with pytest.raises(ConfigError, match=f"--gpus 0-{count}: this machine has {found}"):
        checked_gpus(f"0-{count}")


def test_gpus_are_those_that_a_scheduler_has_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert count_gpus() == 2
    assert cuda_environment([1])["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert cuda_environment([0, 1])["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_minus_one_hides_every_gpu_as_it_does_in_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert count_gpus() == 0
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=-1 hides every GPU"):
        checked_gpus("0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,4")
    assert count_gpus() == 1


def test_slices_of_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5f,MIG-7a")
    assert checked_gpus("0") == (0,)
    with pytest.raises(ConfigError, match="MIG-7a of CUDA_VISIBLE_DEVICES is a slice of a GPU"):
        checked_gpus("0-1")


def test_gpus_that_are_there_and_not_named_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match="2 GPUs and none is named: give --gpus 0-1, or --workers N"):
        require_choice()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    require_choice()


@pytest.mark.parametrize("name", ["none", "void", "NoDevFiles", "all"])
def test_what_names_no_gpu_hides_every_gpu_as_it_does_in_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    assert count_gpus() == 0
    require_choice()
    with pytest.raises(ConfigError, match=f"CUDA_VISIBLE_DEVICES={name} hides every GPU"):
        checked_gpus("0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-5f,1,{name},2")
    assert count_gpus() == 2
