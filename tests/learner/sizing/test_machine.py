"""What nvidia-smi and the kernel say of a machine."""

from pathlib import Path

import pytest

from dcpo_async.devices import Devices
from dcpo_async.errors import ConfigError
from learner.sizing.machine import Gpu, parsed_gpus, smallest_gpu, this_machine

LISTED = "0, GPU-aa-1, 81559, Disabled\n1, GPU-bb-2, 40960, [N/A]\n2, GPU-cc-3, 81559, Enabled\n"


def test_the_lines_of_nvidia_smi_are_read() -> None:
    gpus = parsed_gpus(LISTED + "\nFailed to initialize NVML\n")
    assert [gpu.index for gpu in gpus] == ["0", "1", "2"]
    assert gpus[0] == Gpu("0", "GPU-aa-1", 81559 << 20, is_sliced=False)


def test_the_smallest_of_the_chosen_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert smallest_gpu((0,), parsed_gpus(LISTED)) == pytest.approx(83e9, rel=0.01)
    assert smallest_gpu((0, 1), parsed_gpus(LISTED)) == int(0.97 * (40960 << 20))
    assert smallest_gpu((0, 3), parsed_gpus(LISTED)) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-aa")
    assert smallest_gpu((1,), parsed_gpus(LISTED)) == pytest.approx(83e9, rel=0.01)


def test_a_gpu_in_mig_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="GPU 2 is in MIG mode"):
        smallest_gpu((1, 2), parsed_gpus(LISTED))


def test_a_machine_counts_what_the_run_has_on_the_disk_already(tmp_path: Path) -> None:
    before = this_machine(Devices((), 1), tmp_path / "run")
    assert before.gpu is None
    assert min(before.host, before.disk) > 0
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "large").write_bytes(bytes(50_000_000))
    assert this_machine(Devices((), 1), tmp_path / "run").disk > before.disk - 40_000_000
