"""A rank's side of checkpoints: its state is copied at a step, and written by a thread while the training goes on.

The threads of all ranks agree, by way of `Ranks.texts_of_ranks`, before rank 0's gives the checkpoint its name; where
machines have disks of their own, the first rank of each does so, and the newest step that all of them have counts.
"""

import asyncio
import logging
import math
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from dcpo_async.config import CheckpointSettings, RunConfig
from dcpo_async.errors import CheckpointError, DcpoError, TrainerError
from dcpo_async.protocol.messages import Message
from dcpo_async.protocol.trainer_messages import Checkpointed, CheckpointFailed
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import sign_of_progress
from learner.checkpoints.folder import (
    CheckpointLayout,
    complete_steps,
    publish_checkpoint,
    remove_leftovers,
    remove_superseded,
    writing_folder,
)
from learner.checkpoints.schedule import Schedule
from learner.checkpoints.snapshot import Snapshot
from learner.checkpoints.torch_file import write_torch_file

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""So many checkpoints in a row that could not be written end the run."""
POLL_SECONDS = 0.02


class Ranks(Protocol):
    """The part of a trainer's engine that checkpoints need; all ranks call each of its methods, in the same order."""

    rank: int
    num_ranks: int
    num_local: int
    leads_folder: bool
    is_folder_shared: bool
    layout: CheckpointLayout

    def snapshot(self, writing: Path) -> Snapshot:
        """Copy this rank's part of the state; its files have paths in the folder `writing`."""
        ...

    def largest_of_ranks(self, value: int) -> int:
        """The largest value that a rank has."""
        ...

    def texts_of_ranks(self, text: str) -> list[str]:
        """Every rank's text, by rank; for one thread beside the training."""
        ...


class _Report(BaseModel):
    """What a rank has written, and why not all of it where there is a problem."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    digests: dict[str, str] = {}
    num_bytes: int = 0
    problem: str = ""


@dataclass(slots=True)
class _Saving:
    """A checkpoint on its way, as its thread and the training's see it.

    Attributes:
        step: of the state.
        started_at: when it was copied.
        num_put_off: how often it was due before it was taken.
        progressed_at: when this rank last came further; infinite while it waits for others.
        problem: why it does not stand, equal on all ranks; empty where it does.
        error: what kept the ranks from agreeing.
        ended: set once all of this is known.
    """

    step: int
    started_at: float
    num_put_off: int
    progressed_at: float
    problem: str = ""
    error: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class Checkpoints:
    """Takes and writes the checkpoints of a training; every rank calls every method, in the same order.

    There is one snapshot: while it is being written, a checkpoint that is due waits, and the state after the first
    batch that finds it free is taken instead. Milestones are waited for.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, tell: Callable[[Message], Awaitable[None]]) -> None:
        """Prepare; `tell` is called in the event loop, on rank 0, with what has become of each checkpoint."""
        self._settings, self._digest, self._ranks, self._tell = config.checkpoint, config.digest(), ranks, tell
        self._folder = RunFolder(config.folder).checkpoints
        self._deadline_seconds = config.training.step_timeout_seconds
        self._schedule = Schedule(self._settings, 0, time.monotonic())
        self._saving: _Saving | None = None
        self._telling: Future[None] | None = None
        self._failures = self._num_put_off = self._standing_step = 0
        self._is_first = True

    def use(self, settings: CheckpointSettings) -> None:
        """Take and keep checkpoints by other settings from now on; all ranks do so before the same batch."""
        self._settings = self._schedule.settings = settings

    def begin(self, step: int) -> None:
        """Begin from a state of `step`, loaded or untrained, after clearing up what a start before has left."""
        if self._ranks.leads_folder:
            remove_leftovers(self._folder, None if self._ranks.is_folder_shared else step)
        self._schedule.take(step, time.monotonic())
        self._standing_step = step

    def offer(self, step: int) -> None:
        """Take a checkpoint of the state after `step`, the end of a batch, if one is due and can be taken.

        The first batch claims the memory for it, due or not: now the optimizer has all of its state.

        Raises:
            MemoryError: the host has not so much.
            TrainerError: the one before does not get any further.
            CheckpointError: MAX_FAILURES in a row could not be written.
        """
        is_first, self._is_first = self._is_first, False
        if not self._is_due(step):
            if is_first:
                self._ranks.snapshot(writing_folder(self._folder, step)).clear()
            return
        # Before ranks agree: where their threads did not, those of other ranks wait still, and would put off all.
        self._require_success()
        if self._ranks.largest_of_ranks(int(self._is_writing())):
            if not self._schedule.is_milestone(step):
                self._num_put_off += 1
                log.info("the checkpoint of step %d waits: the one before is still being written", step)
                return
            while self._is_writing():
                time.sleep(POLL_SECONDS)
        self._take(step)

    async def offer_last(self, step: int) -> None:
        """Take a checkpoint of the run's last state unless it stands; raises as `offer` does."""
        await self._ended()
        if self._standing_step != step:
            self._take(step)

    async def whole(self) -> None:
        """Wait until the newest checkpoint stands.

        Raises:
            TrainerError: it does not get any further.
            CheckpointError: it could not be written.
        """
        await self._ended()
        if self._saving is not None and (self._saving.problem or self._saving.error):
            raise self._failure(self._saving)

    # ---- the training's thread

    def _is_due(self, step: int) -> bool:
        if self._schedule.is_due_by_steps(step):
            return True
        if self._settings.interval_minutes is None:
            return False
        is_due = self._ranks.rank == 0 and self._schedule.is_due_by_clock(step, time.monotonic())
        return bool(self._ranks.largest_of_ranks(int(is_due)))

    def _is_writing(self) -> bool:
        saving = self._saving
        if saving is None or saving.ended.is_set():
            return False
        words = f"rank {self._ranks.rank} waits for the checkpoint of step {saving.step}"
        sign_of_progress(words, self._deadline_seconds)
        if time.monotonic() - saving.progressed_at > self._deadline_seconds:
            raise TrainerError(
                f"rank {self._ranks.rank} has written nothing of the checkpoint of step {saving.step} for over "
                f"{self._deadline_seconds:g} s; is the disk of {self._folder} well?"
            )
        return True

    def _require_success(self) -> None:
        if self._saving is not None and (self._failures >= MAX_FAILURES or self._saving.error):
            raise self._failure(self._saving)

    def _take(self, step: int) -> None:
        self._require_success()
        snapshot, now = self._ranks.snapshot(writing_folder(self._folder, step)), time.monotonic()
        self._saving = _Saving(step, now, self._num_put_off, progressed_at=now)
        self._schedule.take(step, now)
        self._num_put_off = 0
        # It dies with the process, whatever it waits for: a pool's would hold up the end of a rank that failed.
        threading.Thread(
            target=self._see_through, args=(self._saving, snapshot, asyncio.get_running_loop()), daemon=True
        ).start()

    async def _ended(self) -> None:
        while self._is_writing():  # noqa: ASYNC110 - a thread ends it
            await asyncio.sleep(POLL_SECONDS)
        if self._telling is not None:
            await asyncio.wrap_future(self._telling)

    def _failure(self, saving: _Saving) -> DcpoError:
        if saving.error is not None:
            return TrainerError(f"ranks did not agree about the checkpoint of step {saving.step}: {saving.error}")
        return CheckpointError(
            f"the checkpoint of step {saving.step} could not be written, number {self._failures} in a row: "
            f"{saving.problem}; once {self._folder} can be written, the same command goes on from step "
            f"{self._standing_step}"
        )

    # ---- the thread that writes

    def _see_through(self, saving: _Saving, snapshot: Snapshot, loop: asyncio.AbstractEventLoop) -> None:
        try:
            told = self._see_through_together(saving, snapshot)
            if self._ranks.rank == 0:
                self._telling = asyncio.run_coroutine_threadsafe(_awaited(self._tell(told)), loop)
        except Exception as error:
            # Such as of ranks that have ended and answer no more: the training's thread raises it.
            saving.error = error
        finally:
            saving.ended.set()

    def _see_through_together(self, saving: _Saving, snapshot: Snapshot) -> Message:
        report = self._write_own(saving, snapshot)
        saving.progressed_at = math.inf
        texts = self._ranks.texts_of_ranks(report.model_dump_json())
        reports = [_Report.model_validate_json(text) for text in texts]
        saving.problem = next((f"rank {i}: {found.problem}" for i, found in enumerate(reports) if found.problem), "")
        if self._ranks.leads_folder:
            saving.progressed_at = time.monotonic()
            self._publish(saving, reports)
        saving.problem = next(filter(None, self._ranks.texts_of_ranks(saving.problem)), "")
        # Only now: what is superseded goes once the new one stands on every machine.
        retained = self._remaining() if self._ranks.leads_folder and not saving.problem else ()
        if saving.problem:
            self._failures += 1
            log.warning("the checkpoint of step %d could not be written: %s", saving.step, saving.problem)
            return CheckpointFailed(
                step=saving.step, reason=saving.problem, failures_left=MAX_FAILURES - self._failures
            )
        self._failures, self._standing_step = 0, saving.step
        return Checkpointed(
            step=saving.step,
            retained=retained,
            seconds=time.monotonic() - saving.started_at,
            num_bytes=sum(found.num_bytes for found in reports),
            num_put_off=saving.num_put_off,
        )

    def _write_own(self, saving: _Saving, snapshot: Snapshot) -> _Report:
        """This rank's files; of all that can go wrong here, the others hear."""
        writing = writing_folder(self._folder, saving.step)

        def progress() -> None:
            saving.progressed_at = time.monotonic()

        digests, num_bytes = {}, 0
        try:
            for path, content in snapshot.files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                written = write_torch_file(path, content, progress)
                digests[str(path.relative_to(writing))] = written.digest
                num_bytes += written.num_bytes
        except Exception as error:
            log.exception("the checkpoint of step %d", saving.step)
            return _Report(problem=f"{type(error).__name__}: {error}")
        return _Report(digests=digests, num_bytes=num_bytes)

    def _publish(self, saving: _Saving, reports: Sequence[_Report]) -> None:
        """Of the rank that leads a folder: give the checkpoint its name if nothing is in its way, else it goes."""
        ranks = self._ranks
        try:
            if not saving.problem:
                digests = {name: digest for found in self._of_folder(reports) for name, digest in found.digests.items()}
                publish_checkpoint(self._folder, saving.step, self._digest, ranks.layout, digests)
        except Exception as error:
            # Whatever it is, the other ranks wait to hear of it.
            saving.problem = f"rank {ranks.rank}: {error}"
        if saving.problem:
            shutil.rmtree(writing_folder(self._folder, saving.step), ignore_errors=True)

    def _of_folder(self, reports: Sequence[_Report]) -> Sequence[_Report]:
        """Those of the ranks that write into the same folder."""
        first = self._ranks.rank
        return reports if self._ranks.is_folder_shared else reports[first : first + self._ranks.num_local]

    def _remaining(self) -> tuple[int, ...]:
        """Of the rank that leads a folder: the steps that stand, once what is superseded is gone."""
        settings = self._settings
        try:
            return remove_superseded(self._folder, settings.keep_last, settings.keep_every_steps)
        except OSError as error:
            # The new one stands all the same; a disk that fills up ends it later.
            log.warning("old checkpoints could not be removed: %s", error)
            return tuple(complete_steps(self._folder))


async def _awaited(telling: Awaitable[None]) -> None:
    await telling
