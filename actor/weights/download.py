"""Downloads files stretch by stretch: each is checked in memory, then written, while others arrive."""

import asyncio
import logging
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actor.weights.parent import Parent
from actor.weights.server_link import ServerLink
from actor.weights.silence import Silence
from actor.weights.spare import new_file
from dcpo_async.errors import NoRoomError, NotHereError, ProtocolError, RefusedError, WeightsError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weight_serving.arrivals import Arrivals, recording
from dcpo_async.weights.locks import opened
from dcpo_async.weights.manifest import FileEntry, PatchEntry
from dcpo_async.weights.stretches import digest_of, worker_count

log = logging.getLogger(__name__)

Key = tuple[str, int]
BLOCK_BYTES = 512
"""The unit of st_blocks."""


@dataclass(frozen=True, slots=True)
class _File:
    """Where stretches are written.

    Attributes:
        turn: the kernel lets one thread write to a file at a time; the others would spin meanwhile.
    """

    descriptor: int
    arrivals: Arrivals
    turn: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is asked for, and where it belongs."""

    want: ChunkWant
    digest: str
    file: _File

    @property
    def key(self) -> Key:
        return self.want.file, self.want.offset


class Download:
    """Fetches files of one version: from a relay where there is one, and what that does not bring from the origin.

    Args:
        origin: the learner's weight server.
        window_bytes: may be asked for and not yet written; one stretch always may.
        report_progress: called after every stretch.
        parent: says which relay to ask first.
    """

    def __init__(
        self, origin: ServerLink, window_bytes: int, report_progress: Callable[[], None], parent: Parent | None = None
    ) -> None:
        self._origin, self._parent, self._report_progress = origin, parent, report_progress
        self._credit = max(1, window_bytes // STRETCH_BYTES)

    async def fetch(self, folder: Path, weights_version: int, entries: Sequence[FileEntry | PatchEntry]) -> None:
        """Make these files in a folder, every byte checked against its digest before it is written.

        What has come is on record meanwhile (`arrivals`), so that this machine's relay can hand it on.

        Raises:
            WeightsError: a stretch from the origin did not match its digest twice, there is no room, the origin has not
                got a file or fell silent.
        """
        await asyncio.to_thread(_allocate, folder, entries)
        with ExitStack() as stack:
            stretches = deque[_Stretch]()
            arrivals = stack.enter_context(recording(folder, weights_version, entries))
            for entry in entries:
                file = _File(stack.enter_context(opened(folder / entry.name, os.O_WRONLY)), arrivals)
                stretches.extend(_stretches(entry, weights_version, file))
            # Ends before the descriptors are closed: a number may belong to another file by then.
            pool = stack.enter_context(ThreadPoolExecutor(worker_count()))
            stack.callback(pool.shutdown, cancel_futures=True)
            await self._fetch(stretches, pool)
            if not arrivals.is_complete():
                raise WeightsError(f"stretches of version {weights_version} were passed over; fetch it again")

    async def _fetch(self, wanted: deque[_Stretch], pool: ThreadPoolExecutor) -> None:
        """Ask the relay first; the origin is the last resort, and is asked for nothing that is here."""
        relay = self._parent.link() if self._parent is not None and wanted else None
        if self._parent is not None and relay is not None:
            num_bytes = sum(stretch.want.num_bytes for stretch in wanted)
            try:
                await self._fetch_from(relay, wanted, pool, self._parent.patience())
                log.info("%d bytes came from %s", num_bytes, relay.peer)
            except (WeightsError, ProtocolError, RefusedError) as error:
                num_bytes = sum(stretch.want.num_bytes for stretch in wanted)
                log.warning("%s; %d bytes come from %s instead", error, num_bytes, self._origin.peer)
                self._parent.failed(error)
        await self._fetch_from(self._origin, wanted, pool, self._origin.silence(), doubts=1)

    async def _fetch_from(
        self, link: ServerLink, wanted: deque[_Stretch], pool: ThreadPoolExecutor, patience: Silence, doubts: int = 0
    ) -> None:
        """Keep the window full and the pool busy; what is lost on the way is asked for again.

        Args:
            wanted: emptied; holds all that did not come where this fails.
            patience: how long no stretch may come, although the other end is not silent.
            doubts: how often a stretch is asked for again that did not match its digest.
        """
        asked: dict[Key, _Stretch] = {}
        kept: dict[asyncio.Future[bool], _Stretch] = {}
        doubted = Counter[Key]()
        silence = link.silence()
        loop = asyncio.get_running_loop()
        try:
            while wanted or asked or kept:
                while wanted and len(asked) + len(kept) < self._credit and await link.send(wanted[0].want):
                    stretch = wanted.popleft()
                    asked[stretch.key] = stretch
                if kept and not asked:
                    await asyncio.wait(kept, return_when=asyncio.FIRST_COMPLETED)
                elif (answer := await link.receive()) is None:
                    wanted.extendleft(reversed(asked.values()))
                    asked.clear()
                elif _is_word_of_life(answer):
                    silence.broken()
                elif (met := _met(link, answer, asked)) is not None:
                    del asked[met.key]
                    kept[loop.run_in_executor(pool, _check_and_write, met, answer.arrays["data"])] = met
                wrong, num_right = _settled(kept, wanted)
                if num_right:
                    self._report_progress()
                    silence.broken()
                    patience.broken()
                for stretch in wrong:
                    _doubt(link, stretch, doubted, doubts)
                link.check(silence)
                link.check(patience)
        finally:
            wanted.extendleft(reversed(asked.values()))
            wanted.extendleft([stretch for future, stretch in kept.items() if not await _is_right(future)])


def _is_word_of_life(answer: Envelope) -> bool:
    return isinstance(answer.message, ChunkMessage) and answer.message.later


def _met(link: ServerLink, answer: Envelope, asked: Mapping[Key, _Stretch]) -> _Stretch | None:
    """The stretch that this answer brings; None for what was not asked for, or is here already."""
    message = answer.message
    if not isinstance(message, ChunkMessage):
        return None
    stretch = asked.get((message.file, message.offset))
    if stretch is None or message.weights_version != stretch.want.weights_version:
        return None
    if message.error:
        raise NotHereError(f"{link.peer}: {message.error}")
    if len(answer.arrays["data"]) != stretch.want.num_bytes:
        raise WeightsError(
            f"{link.peer} sent {len(answer.arrays['data'])} bytes of {stretch.want.file} from "
            f"{stretch.want.offset} on, asked for {stretch.want.num_bytes}"
        )
    return stretch


def _doubt(link: ServerLink, stretch: _Stretch, doubted: Counter[Key], doubts: int) -> None:
    """Let a stretch be asked for once more, where that is allowed."""
    doubted[stretch.key] += 1
    if doubted[stretch.key] > doubts:
        times = "twice" if doubts else "once"
        raise WeightsError(
            f"{stretch.want.file} does not match its digest from byte {stretch.want.offset} on, as "
            f"{link.peer} sent it {times}; it is broken there, or on the way"
        )


def _settled(kept: dict[asyncio.Future[bool], _Stretch], wanted: deque[_Stretch]) -> tuple[list[_Stretch], int]:
    """Take out what is dealt with: the stretches that did not match, wanted again, and how many did.

    Raises OSError, what the disk refused.
    """
    wrong, num_right = list[_Stretch](), 0
    for done in [future for future in kept if future.done()]:
        if done.result():
            num_right += 1
        else:
            wrong.append(kept[done])
            wanted.appendleft(kept[done])
        del kept[done]
    return wrong, num_right


async def _is_right(kept: asyncio.Future[bool]) -> bool:
    """Wait for a stretch that is being written; whatever is wrong with it, it is not here."""
    await asyncio.wait([kept])
    return not kept.cancelled() and kept.exception() is None and kept.result()


def _stretches(entry: FileEntry | PatchEntry, weights_version: int, file: _File) -> list[_Stretch]:
    return [
        _Stretch(
            ChunkWant(
                weights_version=weights_version,
                file=entry.name,
                offset=offset,
                num_bytes=min(STRETCH_BYTES, entry.num_bytes - offset),
            ),
            digest,
            file,
        )
        for offset, digest in zip(range(0, entry.num_bytes, STRETCH_BYTES), entry.digests, strict=True)
    ]


def _check_and_write(stretch: _Stretch, data: NDArray[np.uint8]) -> bool:
    """Write what matches its digest; False for what does not."""
    if digest_of(data.data) != stretch.digest:
        return False
    written = 0
    with stretch.file.turn:
        while written < len(data):
            written += os.pwrite(stretch.file.descriptor, data[written:].data, stretch.want.offset + written)
    stretch.file.arrivals.add(stretch.want.file, stretch.want.offset)
    return True


def _allocate(folder: Path, entries: Sequence[FileEntry | PatchEntry]) -> None:
    """Make all files at their full length; what has no room fails at once.

    New pages are not filled: in shared memory that would touch every byte once more than the download does.
    """
    for entry in entries:
        new_file(folder / entry.name, entry.num_bytes)
    needed, disk = sum(entry.num_bytes for entry in entries), shutil.disk_usage(folder)
    there = sum((folder / entry.name).stat().st_blocks * BLOCK_BYTES for entry in entries)
    # A file system without a size of its own, such as ramfs, says 0 of everything.
    if disk.total and needed > disk.free + there:
        raise NoRoomError(
            f"{folder.parent} has {disk.free + there} bytes free, a version needs {needed}, and two have to fit: "
            "enlarge it (containers: --shm-size), or name another folder with --weights-folder"
        )
