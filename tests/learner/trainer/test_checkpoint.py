from pathlib import Path
from typing import Any

import pytest

from dcpo_async.errors import CheckpointError
from learner.trainer.checkpoint import (
    CheckpointLayout,
    complete_steps,
    load_checkpoint,
    remove_superseded,
    retained_steps,
    save_checkpoint,
    verified_checkpoint,
)

LAYOUT = CheckpointLayout(num_ranks=1, zero_stage=0, dtype="torch.float32")


class FileEngine:
    """Saves and loads a few bytes the way DeepSpeed does: in a folder named by the tag."""

    def __init__(self, content: bytes = b"weights", dies: bool = False) -> None:
        self.content, self.dies = content, dies

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> None:
        assert not save_latest
        folder = Path(save_dir) / tag
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(self.content)
        if self.dies:
            raise KeyboardInterrupt

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, Any]:
        path = Path(load_dir) / tag / "state.pt"
        self.content = path.read_bytes()
        return str(path), {}


def save(folder: Path, step: int, engine: FileEngine | None = None) -> None:
    save_checkpoint(engine or FileEngine(), folder, step, 0, "digest", LAYOUT)


def test_a_saved_checkpoint_is_found_verified_and_loaded(tmp_path: Path) -> None:
    save(tmp_path, 12, FileEngine(b"twelve"))
    assert complete_steps(tmp_path) == [12]
    meta = verified_checkpoint(tmp_path, 12, LAYOUT)
    assert (meta.step, meta.config_digest, list(meta.files)) == (12, "digest", ["state.pt"])
    engine = FileEngine()
    load_checkpoint(engine, tmp_path, 12)
    assert engine.content == b"twelve"


def test_a_death_while_writing_leaves_the_older_checkpoint_and_its_remains_go_with_the_next(tmp_path: Path) -> None:
    save(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4, FileEngine(dies=True))
    assert complete_steps(tmp_path) == [2]
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]


def test_the_newest_and_the_milestones_are_retained() -> None:
    assert retained_steps([2, 4, 6, 8, 10], keep_last=2, keep_every_steps=4) == [4, 8, 10]
    assert retained_steps([2, 4, 6], keep_last=1, keep_every_steps=None) == [6]


def test_superseded_checkpoints_are_removed_and_the_rest_is_named(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    assert remove_superseded(tmp_path, keep_last=2, keep_every_steps=None) == (4, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_changed_byte_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    (tmp_path / "step-00000004" / "state.pt").write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match=r"state\.pt changed.*resume from step 2"):
        verified_checkpoint(tmp_path, 4, LAYOUT)


@pytest.mark.parametrize("name", ["state.pt", "meta.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path, 4)
    (tmp_path / "step-00000004" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}.*missing.*start from the model"):
        verified_checkpoint(tmp_path, 4, LAYOUT)


def test_a_checkpoint_of_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 4)
    two_ranks = LAYOUT.model_copy(update={"num_ranks": 2})
    with pytest.raises(CheckpointError, match=r"num_ranks=1.*num_ranks=2"):
        verified_checkpoint(tmp_path, 4, two_ranks)
