"""Checkpoints on disk: whole under their name or not there, what each file holds, and which of them stay."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcpo_async.durable import publish_folder
from dcpo_async.errors import CheckpointError

META_NAME = "meta.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_WRITING, _REMOVING = ".writing-", ".removing-"
_BLOCK_BYTES = 16 << 20

Count = Annotated[int, Field(ge=0)]


class CheckpointLayout(BaseModel):
    """Of whom a checkpoint is: each rank holds its own slice of the optimizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_ranks: Annotated[int, Field(gt=0)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    dtype: str

    def is_sliced_as(self, other: "CheckpointLayout") -> bool:
        """Whether each rank loads what was written for it. Without ZeRO each holds all, whatever their number."""
        is_whole = self.zero_stage == other.zero_stage == 0
        return is_whole or (self.num_ranks, self.zero_stage) == (other.num_ranks, other.zero_stage)

    def is_loaded_by(self, other: "CheckpointLayout") -> bool:
        """Whether ranks of another layout can go on from it: ZeRO 1 to 3 hold the same, cut up otherwise."""
        return self.dtype == other.dtype and (self.zero_stage == 0) == (other.zero_stage == 0)


class CheckpointMeta(BaseModel):
    """meta.json: what the checkpoint is, and the digest of each of its files.

    Random states are not among it: every step is seeded from the run's seed and its own number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    step: Count
    config_digest: str
    layout: CheckpointLayout
    files: dict[str, str]
    """xxh3_128 of each file, by its path inside the checkpoint."""


def step_folder(step: int) -> str:
    """Name of the checkpoint after `step` steps: step-00000012."""
    return f"step-{step:08d}"


def complete_steps(folder: Path) -> list[int]:
    """Steps whose checkpoints stand whole, ascending; found by name alone, so that no pointer can go stale."""
    matches = (_STEP_FOLDER.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in matches if match)


def retained_steps(steps: Iterable[int], keep_last: int, keep_every_steps: int | None) -> list[int]:
    """Steps that stay: the newest keep_last, and every multiple of keep_every_steps.

    Steps 2, 4, 6, 8, 10 with keep_last 2 and keep_every_steps 4 leave 4, 8, 10.
    """
    ordered = sorted(steps)
    milestones = {step for step in ordered if keep_every_steps and step % keep_every_steps == 0}
    return sorted(milestones | set(ordered[-keep_last:]))


def writing_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written until it is whole; no reader takes it for one."""
    return folder / (_WRITING + step_folder(step))


def publish_checkpoint(
    folder: Path, step: int, config_digest: str, layout: CheckpointLayout, files: Mapping[str, str]
) -> None:
    """Give a checkpoint its name, once all ranks have written and fsynced their files; rank 0 alone calls it.

    Args:
        folder: of all checkpoints.
        step: of this one.
        config_digest: of the settings that it was trained under.
        layout: of the ranks that have written it.
        files: their digests, by path inside the checkpoint. What else is there is read and digested here.

    Raises:
        OSError: a file is not there, or the disk takes no more.
    """
    writing = writing_folder(folder, step)
    present = _files(writing)
    if gone := sorted(files.keys() - set(present)):
        raise FileNotFoundError(f"{', '.join(gone)} in {writing}")
    others = _digests(writing, [name for name in present if name not in files])
    meta = CheckpointMeta(step=step, config_digest=config_digest, layout=layout, files={**files, **others})
    (writing / META_NAME).write_text(meta.model_dump_json(indent=2))
    publish_folder(writing, folder / step_folder(step))


def remove_leftovers(folder: Path, newest: int | None = None) -> None:
    """Remove what a process that died has left half written or half removed; while nobody writes.

    Args:
        folder: of all checkpoints.
        newest: the newest step that stands on every machine, where each has a disk of its own: newer ones go too.
    """
    for step in complete_steps(folder):
        if newest is not None and step > newest:
            (folder / step_folder(step)).rename(folder / (_REMOVING + step_folder(step)))
    for prefix in (_WRITING, _REMOVING):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path)


def remove_superseded(folder: Path, keep_last: int, keep_every_steps: int | None) -> tuple[int, ...]:
    """Remove what retention does not keep, and return the steps that stand; rank 0 alone calls it.

    A folder is renamed before it is emptied, so that a half-removed checkpoint is never taken for a whole one.
    """
    steps = complete_steps(folder)
    retained = retained_steps(steps, keep_last, keep_every_steps)
    for step in set(steps) - set(retained):
        removing = folder / (_REMOVING + step_folder(step))
        (folder / step_folder(step)).rename(removing)
        shutil.rmtree(removing)
    return tuple(retained)


def described_checkpoint(folder: Path, step: int) -> CheckpointMeta:
    """What a checkpoint says that it is; raises CheckpointError where it says nothing."""
    path = folder / step_folder(step)
    try:
        return CheckpointMeta.model_validate_json((path / META_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, folder, f"{META_NAME} is missing or malformed ({error})") from None


def verified_checkpoint(folder: Path, step: int, layout: CheckpointLayout) -> CheckpointMeta:
    """Return the description of a checkpoint after reading every byte of it once.

    Raises:
        CheckpointError: a file is missing or its bytes have changed, or ranks of this layout cannot go on from it.
    """
    path, meta = folder / step_folder(step), described_checkpoint(folder, step)
    if not meta.layout.is_loaded_by(layout):
        raise CheckpointError(
            f"{path} was written with {meta.layout!r}, this run has {layout!r}: the number of ranks may differ, and "
            "so may a ZeRO stage of 1 to 3; for the rest start the learner as it was before"
        )
    missing = [name for name in meta.files if not (path / name).is_file()]
    if missing:
        raise _damaged(path, folder, f"{', '.join(missing)} missing")
    found = _digests(path, sorted(meta.files))
    changed = [name for name in meta.files if found[name] != meta.files[name]]
    if changed:
        raise _damaged(path, folder, f"{', '.join(changed)} changed since it was written")
    return meta


def _damaged(path: Path, folder: Path, what: str) -> CheckpointError:
    others = [step for step in complete_steps(folder) if step_folder(step) != path.name]
    way_out = f"to resume from step {others[-1]}" if others else "to start from the model again"
    return CheckpointError(f"{path} is damaged: {what}; move it away {way_out}")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    # Hashing releases the interpreter lock, and checkpoints of billions of parameters are 100 GB.
    with ThreadPoolExecutor(max_workers=8) as threads:
        return dict(zip(names, threads.map(file_digest, (folder / name for name in names)), strict=True))


def file_digest(path: Path) -> str:
    """The xxh3_128 of a file's bytes, as descriptions of checkpoints have it."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
