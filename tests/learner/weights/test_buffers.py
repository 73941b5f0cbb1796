import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcpo_async.weights.canary import Canary
from learner.weights.buffers import SharedBuffers
from learner.weights.layout import Layout, Place, Schema, TensorView

VIEWS = {"x": TensorView("x", (3,), (1,), 0)}
SCHEMA = Schema(
    layout=Layout(places={"x": Place(dtype="float32", shape=(3,), start=0)}, num_bytes=12), views=VIEWS, tied={"y": "x"}
)
CANARY = Canary(token_ids=(1, 2), logprobs=(-0.5,), bound=1e-3)

HOLDER = """
import sys, time
from pathlib import Path
from learner.weights.buffers import SharedBuffers
shared = SharedBuffers([Path(path) for path in sys.argv[2:]])
if sys.argv[1] == "claim":
    number = shared.claim()
    shared.buffers[number].state[:] = 7
    print("held", flush=True)
    time.sleep(600)
with shared.newest() as found:
    print("held", found[0].sequence, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def paths() -> Iterator[list[Path]]:
    descriptors = [os.memfd_create("buffer") for _ in range(2)]
    yield [Path(f"/proc/{os.getpid()}/fd/{descriptor}") for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def trainer(paths: list[Path]) -> SharedBuffers:
    shared = SharedBuffers(paths)
    for buffer in shared.buffers:
        buffer.prepare(SCHEMA)
        buffer.populate()
    return shared


def offer(trainer: SharedBuffers, step: int, canary: Canary | None = None) -> int:
    """Write a state whose numbers are its step; returns the buffer's number."""
    number = trainer.claim()
    SCHEMA.tensors(trainer.buffers[number].state)["x"][:] = step
    trainer.offer(number, step, canary)
    trainer.buffers[number].unlock()
    return number


def published(publisher: SharedBuffers) -> tuple[int, list[float], int] | None:
    """Step, numbers and overtaken states of what is published next."""
    with publisher.newest() as found:
        if found is None:
            return None
        state, buffer = found
        values = buffer.schema.tensors(buffer.state)["x"].tolist()
        skipped = publisher.num_skipped(state)
        publisher.mark_published(state)
        return state.step, values, skipped


def holder(what: str, paths: list[Path]) -> subprocess.Popen[str]:
    """Another process that holds a buffer, until it is killed."""
    words = [sys.executable, "-c", HOLDER, what, *map(str, paths)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith("held")
    return process


def test_nothing_is_offered_before_the_first_state(paths: list[Path], trainer: SharedBuffers) -> None:
    assert published(SharedBuffers(paths)) is None


def test_empty_files_offer_nothing(paths: list[Path]) -> None:
    assert published(SharedBuffers(paths)) is None


def test_every_state_is_published_once_where_the_publisher_keeps_up(paths: list[Path], trainer: SharedBuffers) -> None:
    publisher = SharedBuffers(paths)
    for step in range(5):
        offer(trainer, step)
        assert published(publisher) == (step, [step] * 3, 0)
        assert published(publisher) is None


def test_the_newest_state_wins_and_those_it_overtook_are_counted(paths: list[Path], trainer: SharedBuffers) -> None:
    publisher = SharedBuffers(paths)
    for step in range(4):
        offer(trainer, step)
    assert published(publisher) == (3, [3] * 3, 3)
    assert published(publisher) is None


def test_a_trainer_never_waits_for_a_publisher_that_holds_a_buffer(paths: list[Path], trainer: SharedBuffers) -> None:
    publisher = SharedBuffers(paths)
    held = offer(trainer, 0)
    with publisher.newest() as found:
        assert found is not None
        # Twice, to the same other buffer: what it held is overtaken.
        assert {offer(trainer, step) for step in (1, 2, 3)} == {1 - held}
        assert found[1].schema.tensors(found[1].state)["x"].tolist() == [0] * 3
        publisher.mark_published(found[0])
    assert published(publisher) == (3, [3] * 3, 2)


def test_the_longest_canary_travels_with_its_state(paths: list[Path], trainer: SharedBuffers) -> None:
    ids = tuple(range(2**31 - 4096, 2**31))
    canary = Canary(token_ids=ids, logprobs=(-1.2345678901234567e-100,) * 4095, bound=1.0)
    offer(trainer, 0, canary)
    with SharedBuffers(paths).newest() as found:
        assert found is not None
        assert (found[0].canary, found[1].schema) == (canary, SCHEMA)
        assert found[1].schema.tensors(found[1].state)["x"].tolist() == [0] * 3


def test_a_state_whose_writer_is_killed_is_never_offered_and_the_other_one_is(
    paths: list[Path], trainer: SharedBuffers
) -> None:
    offer(trainer, 0)
    writer = holder("claim", paths)
    publisher = SharedBuffers(paths)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert published(publisher) == (0, [0] * 3, 0)
    offer(trainer, 1)
    assert published(publisher) == (1, [1] * 3, 0)


def test_a_publisher_that_is_killed_lets_go_and_the_next_one_publishes_what_it_held(
    paths: list[Path], trainer: SharedBuffers
) -> None:
    offer(trainer, 0)
    killed = holder("newest", paths)
    assert published(SharedBuffers(paths)) is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert published(SharedBuffers(paths)) == (0, [0] * 3, 0)


def test_a_trainer_that_starts_again_withdraws_what_was_offered_and_is_not_taken_for_the_old_one(
    paths: list[Path], trainer: SharedBuffers
) -> None:
    publisher = SharedBuffers(paths)
    for step in range(3):
        offer(trainer, step)
    with publisher.newest() as found:
        assert found is not None
        again = SharedBuffers(paths)
        for buffer in again.buffers:
            buffer.prepare(SCHEMA)
        offer(again, 1)
        # The publisher ends what it had begun under the old trainer: that must not pass for the new one's.
        publisher.mark_published(found[0])
    assert published(publisher) == (1, [1] * 3, 0)
    assert again.offered == again.published


def test_a_claim_waits_no_longer_than_the_publisher_looks(paths: list[Path], trainer: SharedBuffers) -> None:
    publisher = SharedBuffers(paths)
    offer(trainer, 0)
    with publisher.newest():
        started = time.monotonic()
        offer(trainer, 1)
        assert time.monotonic() - started < 1
