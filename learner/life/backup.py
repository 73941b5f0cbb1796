"""`dcpo backup`: all that a run needs to go on, copied while it goes on, and checked."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcpo_async import __version__
from dcpo_async.durable import publish_folder, write_text
from dcpo_async.errors import ConfigError, DcpoError, LedgerError
from dcpo_async.processes import be_private
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.connections import raise_descriptor_limit
from dcpo_async.weights.locks import is_unused, let_go, opened
from learner.checkpoints.folder import (
    META_NAME,
    complete_steps,
    described_checkpoint,
    file_digest,
    step_folder,
    verified_checkpoint,
)
from learner.ledger.checking import check_records
from learner.ledger.copy import open_copy, settle_copy, take_copy
from learner.ledger.reader import LedgerReader, is_needed, newest_record, num_groups, segment_ends, segments_folder
from learner.life.events import now
from learner.life.held import HeldFiles

BACKUP_NAME = "backup.json"
MAX_TRIES = 10
"""Copies that are begun anew since a file went while they were begun, until the next is given up."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
Count = Annotated[int, Field(ge=0)]


class Backup(BaseModel):
    """backup.json: what a backup is, and the digest of each of its files.

    Attributes:
        run_id: of the run that it is of.
        made_at: UTC, as ISO 8601 writes it.
        release: of dcpo-async that made it.
        step: of the checkpoint in it; 0 where none stood.
        next_step: the first step that the ledger has no batch for.
        groups: that the ledger has counted.
        files: xxh3_128 of each, by path inside the backup.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    run_id: str
    made_at: str
    release: str
    step: Count
    next_step: Count
    groups: Count
    files: dict[str, str]


class _GoneError(Exception):
    """The run has removed or replaced a file before all were held; says which arrays are missing, where it is that."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, 1 on a failure."""
    parser = argparse.ArgumentParser(
        prog="dcpo backup",
        description="Copy what a run needs to go on: ledger, arrays that may still train, newest checkpoint, settings, "
        "metrics, evaluations. Its learner may be at work meanwhile. The copy is read back and checked.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="is made, and never replaced")
    options = parser.parse_args(argv)
    be_private()
    try:
        print(told(options.to, *back_up(options.run, options.to)))
    except DcpoError as error:
        print(f"dcpo backup: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def told(folder: Path, backup: Backup, records: int) -> str:
    """A line about a backup whose files, and so many records of arrays in them, were read and are as they were."""
    what = f"the checkpoint of step {backup.step}" if backup.step else "no checkpoint, since none stood"
    return (
        f"{folder}: run {backup.run_id}, {backup.groups} groups, steps 0 to {backup.next_step - 1} and {what}; "
        f"{len(backup.files)} files and {records} records of arrays are as they were written"
    )


def back_up(run: Path, to: Path) -> tuple[Backup, int]:
    """Copy a run into a folder that stands whole under its name, or not at all; returns what is in it, and
    how many records of arrays were read back.

    Args:
        run: run folder; a learner may work on it.
        to: is made; an empty one may be there.

    Raises:
        ConfigError: something stands at the folder, it cannot be written, or files go faster than they are opened.
        LedgerError, CheckpointError: there is no run, or it is damaged.
    """
    # All that may still train is held open.
    raise_descriptor_limit()
    missing = ""
    with new_folder(to) as writing:
        for _ in range(MAX_TRIES):
            try:
                backup = _written(RunFolder(run), writing)
                write_text(writing / BACKUP_NAME, backup.model_dump_json(indent=2))
                # Read back, as a restore reads it.
                return verified(writing)
            except _GoneError as gone:
                # A run that goes on deletes arrays as they stop to be needed, and never the same twice.
                if missing and missing == str(gone):
                    raise LedgerError(f"{run}: {missing}: the run is damaged") from None
                missing = str(gone)
            for path in writing.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    raise ConfigError(f"{run}: files went during each of {MAX_TRIES} copies that were begun; try again")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the block ends, whole and on disk; else it goes.

    Raises ConfigError where something stands there, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and is not replaced; name another folder")
    writing = folder.with_name(f".writing-{folder.name}")
    try:
        with _made_alone(writing, folder):
            try:
                yield writing
                publish_folder(writing, folder)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


@contextlib.contextmanager
def _made_alone(writing: Path, folder: Path) -> Iterator[None]:
    """An empty folder that no other process takes for that of one that died, as long as the block goes on.

    Raises ConfigError where another process writes there.
    """
    taken = ConfigError(f"{folder} is being written by another command; name another folder, or wait for its end")
    with contextlib.suppress(FileNotFoundError), opened(writing, _FOLDER) as descriptor:
        if not _is_ours(writing, descriptor):
            raise taken
        # Of a process that died.
        shutil.rmtree(writing)
    try:
        writing.mkdir(parents=True)
        descriptor = os.open(writing, _FOLDER)
    except (FileExistsError, FileNotFoundError):
        raise taken from None
    try:
        if not _is_ours(writing, descriptor):
            raise taken
        yield
    finally:
        let_go(descriptor)


def _is_ours(path: Path, descriptor: int) -> bool:
    """Whether nobody else holds what is open here, and it is what stands there; from now on it is held."""
    return is_unused(descriptor, if_unlockable=True) and os.path.samestat(path.stat(), os.fstat(descriptor))


def verified(folder: Path) -> tuple[Backup, int]:
    """What a backup says that it is, once every byte of it was read and is as it was; and its records of arrays.

    Raises:
        ConfigError: it is no backup, or a file is missing, was added or has changed.
        LedgerError, CheckpointError: what is in it does not fit together.
    """
    try:
        backup = Backup.model_validate_json((folder / BACKUP_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder}: no backup, since {BACKUP_NAME} is missing or malformed ({type(error).__name__}); name the "
            "folder that dcpo backup was given with --to"
        ) from None
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {BACKUP_NAME}
    if present != backup.files.keys():
        names = ", ".join(sorted(present ^ backup.files.keys())[:5])
        raise ConfigError(f"{folder}: {names} missing from the backup, or added to it; use another backup")
    if changed := [name for name, digest in backup.files.items() if file_digest(folder / name) != digest]:
        raise ConfigError(f"{folder}: {', '.join(changed[:5])} changed since the backup was made; use another backup")
    copied = RunFolder(folder)
    if backup.step:
        layout = described_checkpoint(copied.checkpoints, backup.step).layout
        verified_checkpoint(copied.checkpoints, backup.step, layout)
    with open_copy(copied.ledger, is_checked=True) as reader:
        records = check_records(reader, _numbers(copied))
    return backup, records


def _written(run: RunFolder, writing: Path) -> Backup:
    """Everything but backup.json."""
    copied = RunFolder(writing)
    segments_folder(copied.ledger).mkdir(parents=True)
    with contextlib.closing(HeldFiles(run.path)) as held, contextlib.closing(HeldFiles(run.path)) as segments:
        step, acknowledged = _hold(run, held, segments, copied.ledger)
        settle_copy(run.ledger, copied.ledger, acknowledged)
        with open_copy(copied.ledger) as reader:
            run_id = reader.meta("run_id")
            if run_id is None:
                raise ConfigError(
                    f"{run.path}: its learner has not got so far as to name the run; try again in a minute"
                )
            # Before the checkpoint, which may be large, is copied in vain.
            needed = _needed(reader, segments, run, step)
            digests = held.copy(writing) | segments.copy(writing, needed)
            digests |= {str(path.relative_to(writing)): file_digest(path) for path in _files_in(copied.ledger)}
            return Backup(
                run_id=run_id,
                made_at=now(),
                release=__version__,
                step=step,
                next_step=reader.next_batch_step(),
                groups=num_groups(reader),
                files=digests,
            )


def _hold(run: RunFolder, held: HeldFiles, segments: HeldFiles, ledger: Path) -> tuple[int, int | None]:
    """Open all files, and copy the ledger; returns the checkpoint's step, and what `take_copy` does.

    The checkpoint is opened before the ledger is copied, which then has every batch that it contains; the segments
    after, when all are there that the copy points to. A learner deletes none that the checkpoint needs before that has
    lost its name. Only the ledger's bytes are copied between the two: rows may take as long as they like to check.

    Raises _GoneError where the run has removed or replaced a file meanwhile.
    """
    step = _newest_step(run)
    try:
        if step:
            held.hold(run.checkpoints / step_folder(step) / META_NAME)
            held.hold_all(run.checkpoints / step_folder(step))
        for path in (run.config, run.data, run.metrics, *run.path.glob("reasoning-gym-*.jsonl")):
            if path.exists():
                held.hold(path)
        held.hold_all(run.evaluation)
    except FileNotFoundError as error:
        raise _GoneError from error
    acknowledged = take_copy(run.ledger, ledger)
    for path in segments_folder(run.ledger).glob("*.segment"):
        # One that is not needed may go at any time.
        with contextlib.suppress(FileNotFoundError):
            segments.hold(path)
    if not held.all_stand() or (not step and _newest_step(run)):
        raise _GoneError
    return step, acknowledged


def _newest_step(run: RunFolder) -> int:
    return max(complete_steps(run.checkpoints), default=0)


def _needed(reader: LedgerReader, segments: HeldFiles, run: RunFolder, step: int) -> dict[str, int]:
    """The segments that a learner needs which goes on at a step, and how many bytes of each these rows know.

    Raises _GoneError where one of them is not there: what was on its way when the rows were copied may since have been
    given up, and its segment deleted.
    """
    newest = newest_record(reader)
    ends = dict([*segment_ends(reader).items(), newest])
    needed = {
        f"ledger/segments/{number:06d}.segment": end
        for number, end in ends.items()
        if number == newest[0] or is_needed(reader, number, step)
    }
    for name in needed.keys() - segments.names:
        # A list of names may be older than these rows, on a network's file system.
        with contextlib.suppress(FileNotFoundError):
            segments.hold(run.path / name)
    if missing := [name for name, end in needed.items() if end and name not in segments.names]:
        raise _GoneError(f"{', '.join(missing[:5])} missing, with arrays that may still train")
    # A fork has none before its learner was started.
    return {name: end for name, end in needed.items() if name in segments.names}


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _numbers(copied: RunFolder) -> set[int]:
    return {int(path.stem) for path in segments_folder(copied.ledger).glob("*.segment")}


if __name__ == "__main__":
    main()
