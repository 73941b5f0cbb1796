"""A rank's side of checkpoints, on a state that is a few bytes; other ranks are as late as a test wants them."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcpo_async.config import RunConfig
from dcpo_async.errors import CheckpointError, TrainerError
from dcpo_async.protocol.messages import Message
from dcpo_async.protocol.trainer_messages import Checkpointed, CheckpointFailed
from learner.checkpoints.folder import CheckpointLayout, complete_steps, step_folder, verified_checkpoint
from learner.checkpoints.saving import Checkpoints
from learner.checkpoints.snapshot import Snapshot


class OneRank:
    """Ranks whose first is this one; what the second one says comes once it is let go."""

    def __init__(self, second: Callable[[], str] | None = None) -> None:
        self.rank, self.num_ranks = 0, 1 if second is None else 2
        self.num_local, self.leads_folder, self.is_folder_shared = self.num_ranks, True, True
        self.layout = CheckpointLayout(num_ranks=self.num_ranks, zero_stage=2, dtype="torch.float32")
        self.weights = torch.zeros(3)
        self.num_snapshots = 0
        self._second, self._snapshot = second, Snapshot()
        self.may_go = threading.Event()
        self.may_go.set()

    def snapshot(self, writing: Path) -> Snapshot:
        self.num_snapshots += 1
        self._snapshot.clear()
        self._snapshot.add(writing / "state.pt", {"weights": self.weights})
        return self._snapshot

    def largest_of_ranks(self, value: int) -> int:
        return value

    def texts_of_ranks(self, text: str) -> list[str]:
        assert self.may_go.wait(30)
        return [text] if self._second is None else [text, self._second()]


def made(tmp_path: Path, ranks: OneRank, **settings: Any) -> tuple[Checkpoints, list[Message], Path]:
    told: list[Message] = []

    async def tell(message: Message) -> None:
        told.append(message)

    settings = {"interval_steps": 2} | settings
    config = RunConfig(folder=tmp_path, checkpoint=settings, training={"step_timeout_seconds": 0.3})
    checkpoints = Checkpoints(config, ranks, tell)
    checkpoints.begin(0)
    return checkpoints, told, tmp_path / "checkpoints"


def weights(folder: Path, step: int) -> list[float]:
    return torch.load(folder / step_folder(step) / "state.pt", weights_only=True)["weights"].tolist()


async def test_the_state_of_the_step_is_written_whatever_the_training_does_meanwhile(tmp_path: Path) -> None:
    ranks = OneRank()
    checkpoints, told, folder = made(tmp_path, ranks)
    ranks.weights.fill_(2.0)
    checkpoints.offer(2)
    ranks.weights.fill_(3.0)
    await checkpoints.whole()
    assert weights(folder, 2) == [2.0, 2.0, 2.0]
    meta = verified_checkpoint(folder, 2, ranks.layout)
    assert meta.files.keys() == {"state.pt"}
    (message,) = told
    assert isinstance(message, Checkpointed)
    assert (message.step, message.retained, message.num_put_off) == (2, (2,), 0)
    assert message.num_bytes == (folder / step_folder(2) / "state.pt").stat().st_size


async def test_the_first_batch_claims_the_memory_and_writes_nothing(tmp_path: Path) -> None:
    ranks = OneRank()
    checkpoints, told, folder = made(tmp_path, ranks)
    checkpoints.offer(1)
    await checkpoints.whole()
    assert (ranks.num_snapshots, told, folder.exists()) == (1, [], False)


async def test_one_that_is_due_while_another_is_written_waits_and_takes_the_newest_state(tmp_path: Path) -> None:
    ranks = OneRank()
    checkpoints, told, folder = made(tmp_path, ranks)
    ranks.may_go.clear()
    for step in range(2, 6):
        ranks.weights.fill_(step)
        checkpoints.offer(step)
    assert ranks.num_snapshots == 1
    assert complete_steps(folder) == []
    ranks.may_go.set()
    await checkpoints.whole()
    ranks.weights.fill_(7.0)
    checkpoints.offer(7)
    await checkpoints.whole()
    assert weights(folder, 2) == [2.0, 2.0, 2.0]
    assert weights(folder, 7) == [7.0, 7.0, 7.0]
    assert [(m.step, m.retained, m.num_put_off) for m in told] == [(2, (2,), 0), (7, (2, 7), 2)]


async def test_a_milestone_is_waited_for(tmp_path: Path) -> None:
    ranks = OneRank()
    checkpoints, _, folder = made(tmp_path, ranks, keep_every_steps=4)
    ranks.may_go.clear()
    checkpoints.offer(2)
    threading.Timer(0.1, ranks.may_go.set).start()
    checkpoints.offer(4)
    await checkpoints.whole()
    assert complete_steps(folder) == [2, 4]


async def test_minutes_count_from_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoints, _, folder = made(tmp_path, OneRank(), interval_steps=None, interval_minutes=0.2 / 60)
    checkpoints.offer(1)
    await asyncio.sleep(0.25)
    checkpoints.offer(2)
    checkpoints.offer(3)
    await checkpoints.whole()
    assert complete_steps(folder) == [2]


async def test_the_last_state_is_written_once(tmp_path: Path) -> None:
    ranks = OneRank()
    checkpoints, told, folder = made(tmp_path, ranks)
    checkpoints.offer(2)
    await checkpoints.offer_last(3)
    await checkpoints.whole()
    await checkpoints.offer_last(3)
    assert [message.step for message in told] == [2, 3]
    assert complete_steps(folder) == [2, 3]


async def test_what_a_start_before_has_left_is_removed(tmp_path: Path) -> None:
    for name in (".writing-step-00000002", ".removing-step-00000001", "step-00000001"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    _, _, folder = made(tmp_path, OneRank())
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def fill_up(folder: Path, step: int) -> None:
    """The disk has no room for the checkpoint of a step: the kernel says so to whoever writes it."""
    writing = folder / f".writing-{step_folder(step)}"
    writing.mkdir(parents=True)
    (writing / "state.pt").symlink_to("/dev/full")


async def test_a_full_disk_is_told_leaves_nothing_and_the_next_one_is_tried(tmp_path: Path) -> None:
    checkpoints, told, folder = made(tmp_path, OneRank())
    fill_up(folder, 2)
    checkpoints.offer(2)
    with pytest.raises(CheckpointError, match=r"step 2 could not .*No space left.* goes on from step 0"):
        await checkpoints.whole()
    assert list(folder.iterdir()) == []
    checkpoints.offer(4)
    await checkpoints.whole()
    failed, stands = told
    assert isinstance(failed, CheckpointFailed)
    assert (failed.step, failed.failures_left) == (2, 2)
    assert failed.reason == "rank 0: OSError: [Errno 28] No space left on device"
    assert isinstance(stands, Checkpointed)
    assert complete_steps(folder) == [4]


async def test_three_in_a_row_end_the_run_when_the_next_is_due(tmp_path: Path) -> None:
    checkpoints, told, folder = made(tmp_path, OneRank())
    checkpoints.offer(2)
    await checkpoints.offer_last(2)
    for step in (4, 6, 8):
        fill_up(folder, step)
        checkpoints.offer(step)
        with pytest.raises(CheckpointError):
            await checkpoints.whole()
    checkpoints.offer(9)
    with pytest.raises(CheckpointError, match=r"step 8 .* number 3 in a row: .* goes on from step 2") as caught:
        checkpoints.offer(10)
    assert caught.value.exit_code == 2
    assert [message.failures_left for message in told[1:]] == [2, 1, 0]


async def test_the_failure_of_another_rank_keeps_the_checkpoint_from_its_name(tmp_path: Path) -> None:
    report = {"digests": {}, "num_bytes": 0, "problem": "OSError: [Errno 5] Input/output error"}
    checkpoints, told, folder = made(tmp_path, OneRank(second=lambda: json.dumps(report)))
    checkpoints.offer(2)
    with pytest.raises(CheckpointError, match="rank 1: OSError"):
        await checkpoints.whole()
    assert list(folder.iterdir()) == []
    assert told[0].reason == "rank 1: OSError: [Errno 5] Input/output error"


async def test_a_rank_that_is_gone_ends_this_one(tmp_path: Path) -> None:
    def gone() -> str:
        raise RuntimeError("Connection closed by peer")

    checkpoints, told, folder = made(tmp_path, OneRank(second=gone))
    checkpoints.offer(2)
    with pytest.raises(TrainerError, match=r"step 2: Connection closed"):
        await checkpoints.whole()
    with pytest.raises(TrainerError, match="step 2"):
        checkpoints.offer(4)
    assert (told, complete_steps(folder)) == ([], [])


async def test_a_disk_that_takes_nothing_any_more_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints, told, folder = made(tmp_path, OneRank())
    stuck = folder / ".writing-step-00000002" / "state.pt"
    stuck.parent.mkdir(parents=True)
    # Whoever opens it to write waits for a reader.
    os.mkfifo(stuck)
    with caplog.at_level(logging.INFO):
        checkpoints.offer(2)
        checkpoints.offer(4)
        assert "the checkpoint of step 4 waits" in caplog.text
        await asyncio.sleep(0.4)
        with pytest.raises(
            TrainerError, match=r"rank 0 has written nothing of the checkpoint of step 2 for over 0\.3 s"
        ):
            checkpoints.offer(5)
    stuck.read_bytes()
    while not told:  # noqa: ASYNC110 - a thread tells
        await asyncio.sleep(0.01)
    assert isinstance(told[0], CheckpointFailed)
