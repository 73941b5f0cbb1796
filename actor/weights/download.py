"""Downloads files stretch by stretch: each is checked in memory, then written, while others arrive."""

import asyncio
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actor.weights.server_link import ServerLink
from dcpo_async.errors import WeightsError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.weights.locks import opened
from dcpo_async.weights.manifest import STRETCH_BYTES, FileEntry, PatchEntry
from dcpo_async.weights.stretches import digest_of, worker_count

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is asked for, and where it belongs."""

    want: ChunkWant
    digest: str
    descriptor: int

    @property
    def key(self) -> Key:
        return self.want.file, self.want.offset


class Download:
    """Fetches files of one version from a server.

    Args:
        window_bytes: may be asked for and not yet here; one stretch always may.
        report_progress: called after every stretch.
    """

    def __init__(self, link: ServerLink, window_bytes: int, report_progress: Callable[[], None]) -> None:
        self._link, self._report_progress = link, report_progress
        self._credit = max(1, window_bytes // STRETCH_BYTES)

    async def fetch(self, folder: Path, weights_version: int, entries: Sequence[FileEntry | PatchEntry]) -> None:
        """Make these files in a folder, every byte checked against its digest before it is written.

        Raises:
            WeightsError: a stretch did not match its digest twice, there is no room, the server has not got a file or
                fell silent.
        """
        await asyncio.to_thread(_allocate, folder, entries)
        with ExitStack() as stack:
            stretches = deque[_Stretch]()
            for entry in entries:
                descriptor = stack.enter_context(opened(folder / entry.name, os.O_WRONLY))
                stretches.extend(_stretches(entry, weights_version, descriptor))
            # Ends before the descriptors are closed: a number may belong to another file by then.
            pool = stack.enter_context(ThreadPoolExecutor(worker_count()))
            stack.callback(pool.shutdown, cancel_futures=True)
            await self._fetch(stretches, pool)

    async def _fetch(self, wanted: deque[_Stretch], pool: ThreadPoolExecutor) -> None:
        """Keep the window full and the pool busy; what is lost on the way is asked for again."""
        asked: dict[Key, _Stretch] = {}
        kept: dict[asyncio.Future[bool], _Stretch] = {}
        doubted: set[Key] = set()
        silence = self._link.silence()
        loop = asyncio.get_running_loop()
        while wanted or asked or kept:
            while wanted and len(asked) < self._credit and await self._link.send(wanted[0].want):
                stretch = wanted.popleft()
                asked[stretch.key] = stretch
            if asked or wanted:
                answer = await self._link.receive()
                if answer is None:
                    wanted.extendleft(reversed(asked.values()))
                    asked.clear()
                elif (met := self._met(answer, asked)) is not None:
                    del asked[met.key]
                    data = answer.arrays["data"]
                    kept[loop.run_in_executor(pool, _check_and_write, met, data)] = met
            is_full = len(kept) > 2 * worker_count() or not (asked or wanted)
            if is_full and kept:
                await asyncio.wait(kept, return_when=asyncio.FIRST_COMPLETED)
            for done in [future for future in kept if future.done()]:
                stretch = kept.pop(done)
                if done.result():
                    self._report_progress()
                    silence.broken()
                else:
                    self._doubt(stretch, doubted)
                    wanted.appendleft(stretch)
            self._link.check(silence)

    def _met(self, answer: Envelope, asked: Mapping[Key, _Stretch]) -> _Stretch | None:
        """The stretch that this answer brings; None for what was not asked for, or is here already."""
        message = answer.message
        if not isinstance(message, ChunkMessage):
            return None
        stretch = asked.get((message.file, message.offset))
        if stretch is None or message.weights_version != stretch.want.weights_version:
            return None
        if message.error:
            raise WeightsError(f"{self._link.peer}: {message.error}")
        if len(answer.arrays["data"]) != stretch.want.num_bytes:
            raise WeightsError(
                f"{self._link.peer} sent {len(answer.arrays['data'])} bytes of {stretch.want.file} from "
                f"{stretch.want.offset} on, asked for {stretch.want.num_bytes}"
            )
        return stretch

    def _doubt(self, stretch: _Stretch, doubted: set[Key]) -> None:
        """Let a stretch be asked for once more."""
        if stretch.key in doubted:
            raise WeightsError(
                f"{stretch.want.file} does not match its digest from byte {stretch.want.offset} on, as "
                f"{self._link.peer} sent it twice; it is broken there, or on the way"
            )
        doubted.add(stretch.key)


def _stretches(entry: FileEntry | PatchEntry, weights_version: int, descriptor: int) -> list[_Stretch]:
    return [
        _Stretch(
            ChunkWant(
                weights_version=weights_version,
                file=entry.name,
                offset=offset,
                num_bytes=min(STRETCH_BYTES, entry.num_bytes - offset),
            ),
            digest,
            descriptor,
        )
        for offset, digest in zip(range(0, entry.num_bytes, STRETCH_BYTES), entry.digests, strict=True)
    ]


def _check_and_write(stretch: _Stretch, data: NDArray[np.uint8]) -> bool:
    """Write what matches its digest; False for what does not."""
    if digest_of(data.data) != stretch.digest:
        return False
    written = 0
    while written < len(data):
        written += os.pwrite(stretch.descriptor, data[written:].data, stretch.want.offset + written)
    return True


def _allocate(folder: Path, entries: Sequence[FileEntry | PatchEntry]) -> None:
    """Make all files at their full length; what has no room fails at once.

    Their pages are not filled: in shared memory that would touch every byte once more than the download does.
    """
    needed, disk = sum(entry.num_bytes for entry in entries), shutil.disk_usage(folder)
    # A file system without a size of its own, such as ramfs, says 0 of everything.
    if disk.total and needed > disk.free:
        raise WeightsError(f"{folder.parent} has {disk.free} bytes free, what is fetched needs {needed}")
    for entry in entries:
        with (folder / entry.name).open("xb") as file:
            file.truncate(entry.num_bytes)
