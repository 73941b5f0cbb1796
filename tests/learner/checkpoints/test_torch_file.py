import errno
from pathlib import Path

import pytest
import torch
import xxhash

from learner.checkpoints.torch_file import write_torch_file


def test_torch_reads_the_file_again_and_its_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    # Longer than a block, and not a multiple of one.
    content = {"weights": torch.randn(9 << 20), "step": torch.tensor(7.0), "settings": {"lr": 0.5}}
    progress: list[int] = []
    written = write_torch_file(tmp_path / "state.pt", content, lambda: progress.append(1))
    data = (tmp_path / "state.pt").read_bytes()
    assert written.num_bytes == len(data)
    assert written.digest == xxhash.xxh3_128(data).hexdigest()
    assert len(progress) > 3
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(read["weights"], content["weights"])
    assert (read["step"], read["settings"]) == (7.0, {"lr": 0.5})


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_torch_file(Path("/dev/full"), {"weights": torch.ones(9 << 20)}, lambda: None)
    assert caught.value.errno == errno.ENOSPC
