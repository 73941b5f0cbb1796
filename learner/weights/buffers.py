"""Two buffers of shared memory, through which the ranks of the trainer hand weights to the publisher.

A buffer is a file: control words and an offer, which says what state it holds; the schema of all states; the state. One
that is being written has no offer; one that is written or read is locked (flock), and the kernel drops the locks of a
process that dies. The publisher reads one buffer at most, so that ranks never wait for the other: what it holds,
published or not, is overtaken by the state that they write.

The launcher makes the files without names (memfd), so that nothing is left of them when the last process ends.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.locks import has_lock
from learner.weights.host_memory import populate
from learner.weights.layout import Schema

_HEAD_BYTES = 1 << 18
"""Holds the longest canary that there may be: 4,096 tokens take less than 150 KB."""
_PAGE = 4096
_CLAIM_SECONDS = 0.0005
# Control words, 8 bytes each: lengths of offer and schema, number of the state that is held, of the newest offered
# and of the newest published.
_OFFER_BYTES, _SCHEMA_BYTES, _HELD, _OFFERED, _PUBLISHED = range(5)
_NUM_WORDS = 5

Count = Annotated[int, Field(ge=0)]


class Offer(BaseModel):
    """Says what state a buffer holds.

    Attributes:
        sequence: counts the states that were offered, from 1.
        step: optimizer steps behind the state.
        offered_at: when it was whole, in seconds of this machine's monotonic clock.
        canary: what the model says under these weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sequence: Count
    step: Count
    offered_at: float
    canary: Canary | None = None


class SharedBuffer:
    """One of the two buffers, as one process sees it."""

    def __init__(self, path: Path) -> None:
        """Open an existing file; it is empty until a trainer gives it its size."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._bytes: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def prepare(self, schema: Schema) -> None:
        """Make room for states of a schema; what the buffer held is no longer offered."""
        text = np.frombuffer(schema.model_dump_json().encode(), dtype=np.uint8)
        num_bytes = _state_start(len(text)) + schema.layout.num_bytes
        if os.fstat(self._descriptor).st_size < num_bytes:
            os.ftruncate(self._descriptor, num_bytes)
        self.offer = None
        self._mapped()[_HEAD_BYTES : _HEAD_BYTES + len(text)] = text
        self._set_word(_SCHEMA_BYTES, len(text))

    def populate(self) -> None:
        """Have the kernel hand out all pages now, where it can; raises WeightsError where there are not so many."""
        num_bytes = len(self._mapped())
        try:
            populate(self._mapping)
        except MemoryError as error:
            raise WeightsError(
                f"no memory for a publication buffer of {num_bytes} bytes, of which there are 2"
            ) from error

    def lock(self) -> bool:
        """Try to lock the buffer against all other processes, without waiting."""
        return has_lock(self._descriptor, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let others have it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @property
    def schema(self) -> Schema:
        """What all states have in common; only once a trainer has prepared the buffer."""
        text = self._mapped()[_HEAD_BYTES : _HEAD_BYTES + self._word(_SCHEMA_BYTES)]
        return Schema.model_validate_json(text.tobytes())

    @property
    def state(self) -> Tensor:
        """The bytes of the state, uint8 [at least layout.num_bytes]; they share the buffer's memory."""
        return torch.from_numpy(self._mapped()[_state_start(self._word(_SCHEMA_BYTES)) :])

    @property
    def offer(self) -> Offer | None:
        """What the buffer holds, None while that is nothing whole; read and set only while it is locked."""
        length = self._word(_OFFER_BYTES)
        start = _NUM_WORDS * 8
        return Offer.model_validate_json(self._mapped()[start : start + length].tobytes()) if length else None

    @offer.setter
    def offer(self, offer: Offer | None) -> None:
        self._set_word(_HELD, 0)
        self._set_word(_OFFER_BYTES, 0)
        if offer is not None:
            text, start = np.frombuffer(offer.model_dump_json().encode(), dtype=np.uint8), _NUM_WORDS * 8
            self._mapped()[start : start + len(text)] = text
            self._set_word(_OFFER_BYTES, len(text))
            self._set_word(_HELD, offer.sequence)

    @property
    def held(self) -> int:
        """Number of the state that the buffer holds, 0 for none."""
        return self._word(_HELD)

    @property
    def offered(self) -> int:
        """Number of the newest state that was offered, in whichever buffer."""
        return self._word(_OFFERED)

    @offered.setter
    def offered(self, sequence: int) -> None:
        self._set_word(_OFFERED, sequence)

    @property
    def published(self) -> int:
        """Number of the newest state that was published, from whichever buffer."""
        return self._word(_PUBLISHED)

    @published.setter
    def published(self, sequence: int) -> None:
        self._set_word(_PUBLISHED, sequence)

    def _word(self, number: int) -> int:
        mapped = self._mapped()
        return int(mapped[: _NUM_WORDS * 8].view(np.uint64)[number]) if len(mapped) else 0

    def _set_word(self, number: int, value: int) -> None:
        self._mapped()[: _NUM_WORDS * 8].view(np.uint64)[number] = value

    def _mapped(self) -> NDArray[np.uint8]:
        """All bytes that the file has by now; it never shrinks."""
        size = os.fstat(self._descriptor).st_size
        if size > len(self._bytes):
            self._mapping = mmap.mmap(self._descriptor, size)
            self._bytes = np.frombuffer(self._mapping, dtype=np.uint8)
        return self._bytes


class SharedBuffers:
    """Both buffers, as the trainer's rank 0 or the publisher uses them; the first one has the counts of both."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.buffers = [SharedBuffer(path) for path in paths]

    def claim(self) -> int:
        """Lock one to write to: the one with the older state, unless the publisher reads it; returns its number.

        The other one is free then. What the buffer held is no longer offered.
        """
        while True:
            for number in sorted((0, 1), key=lambda number: self.buffers[number].held):
                if self.buffers[number].lock():
                    self.buffers[number].offer = None
                    return number
            # The publisher looks into both in turns before it keeps one.
            time.sleep(_CLAIM_SECONDS)

    def offer(self, number: int, step: int, canary: Canary | None) -> None:
        """The state in a claimed buffer is whole: the next one to publish."""
        offer = Offer(sequence=self.offered + 1, step=step, offered_at=time.monotonic(), canary=canary)
        self.buffers[number].offer = offer
        self.buffers[0].offered = offer.sequence

    @contextmanager
    def newest(self) -> Iterator[tuple[Offer, SharedBuffer] | None]:
        """The newest state that is not published yet, locked meanwhile; None where there is none."""
        newest = self._newest()
        if newest is None or not newest.lock():
            yield None
            return
        try:
            # Read again: it may have been claimed and written anew before it was locked.
            offer = newest.offer
            is_new = offer is not None and offer.sequence > self.published
            yield (offer, newest) if offer is not None and is_new else None
        finally:
            newest.unlock()

    @property
    def offered(self) -> int:
        """Sequence number of the newest state that was offered, 0 before the first."""
        return self.buffers[0].offered

    @property
    def published(self) -> int:
        """Sequence number of the newest state that was published, 0 before the first."""
        return self.buffers[0].published

    def num_skipped(self, offer: Offer) -> int:
        """How many states were overtaken between the newest that is published and this one."""
        return offer.sequence - self.published - 1

    def mark_published(self, offer: Offer) -> None:
        """A state stands in the store, and the coordinator was told."""
        self.buffers[0].published = offer.sequence

    def _newest(self) -> SharedBuffer | None:
        if self.offered == self.published:
            return None
        newest = max(self.buffers, key=lambda buffer: buffer.held)
        return newest if newest.held else None


def _state_start(schema_bytes: int) -> int:
    return -(-(_HEAD_BYTES + schema_bytes) // _PAGE) * _PAGE
