from pathlib import Path

import pytest

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import (
    CheckpointLayout,
    complete_steps,
    publish_checkpoint,
    remove_leftovers,
    remove_superseded,
    retained_steps,
    verified_checkpoint,
    writing_folder,
)

LAYOUT = CheckpointLayout(num_ranks=1, zero_stage=0, dtype="torch.float32")


def write(folder: Path, step: int) -> None:
    """As far as ranks come before the checkpoint has its name."""
    writing = writing_folder(folder, step)
    writing.mkdir(parents=True)
    (writing / "state.pt").write_bytes(b"weights")


def save(folder: Path, step: int) -> None:
    write(folder, step)
    publish_checkpoint(folder, step, "digest", LAYOUT, {})


def test_a_published_checkpoint_is_found_and_verified(tmp_path: Path) -> None:
    save(tmp_path, 12)
    assert complete_steps(tmp_path) == [12]
    meta = verified_checkpoint(tmp_path, 12, LAYOUT)
    assert (meta.step, meta.config_digest, list(meta.files)) == (12, "digest", ["state.pt"])


def test_a_digest_of_the_rank_that_wrote_is_kept_without_reading_the_file_again(tmp_path: Path) -> None:
    write(tmp_path, 12)
    publish_checkpoint(tmp_path, 12, "digest", LAYOUT, {"state.pt": "of the rank"})
    with pytest.raises(CheckpointError, match=r"state\.pt changed"):
        verified_checkpoint(tmp_path, 12, LAYOUT)


def test_a_file_that_a_rank_reports_and_that_is_not_there_keeps_the_checkpoint_from_its_name(tmp_path: Path) -> None:
    write(tmp_path, 12)
    with pytest.raises(FileNotFoundError, match=r"other\.pt in"):
        publish_checkpoint(tmp_path, 12, "digest", LAYOUT, {"state.pt": "1", "other.pt": "2"})
    assert complete_steps(tmp_path) == []


def test_what_is_not_published_does_not_count_and_goes_at_the_next_start(tmp_path: Path) -> None:
    save(tmp_path, 2)
    write(tmp_path, 4)
    (tmp_path / ".removing-step-00000001").mkdir()
    assert complete_steps(tmp_path) == [2]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


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


@pytest.mark.parametrize(
    ("num_ranks", "zero_stage", "dtype", "is_taken"),
    [(4, 2, "torch.float32", True), (1, 3, "torch.float32", True), (2, 2, "torch.bfloat16", False)],
)
def test_ranks_may_be_others_and_weights_of_another_type_are_refused(
    tmp_path: Path, num_ranks: int, zero_stage: int, dtype: str, is_taken: bool
) -> None:
    before = CheckpointLayout(num_ranks=2, zero_stage=2, dtype="torch.float32")
    write(tmp_path, 4)
    publish_checkpoint(tmp_path, 4, "digest", before, {})
    now = CheckpointLayout(num_ranks=num_ranks, zero_stage=zero_stage, dtype=dtype)
    assert not before.is_sliced_as(now) or not is_taken
    if is_taken:
        assert verified_checkpoint(tmp_path, 4, now).layout == before
    else:
        with pytest.raises(CheckpointError, match=r"num_ranks=2.*the number of ranks may differ"):
            verified_checkpoint(tmp_path, 4, now)


def test_without_zero_each_rank_loads_all_of_it() -> None:
    assert LAYOUT.is_sliced_as(LAYOUT.model_copy(update={"num_ranks": 3}))
    assert not LAYOUT.is_loaded_by(LAYOUT.model_copy(update={"zero_stage": 1}))


def test_what_is_newer_than_the_step_that_counts_goes_at_the_next_start(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step)
    remove_leftovers(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
