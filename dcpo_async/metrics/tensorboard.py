"""Metrics of a run as TensorBoard points; the only importer of TensorBoard."""

import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Thread

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import masked_crc32c

from dcpo_async.metrics.groups import EVALUATION
from dcpo_async.metrics.sink import Thinning

log = logging.getLogger(__name__)

FLUSH_SECONDS = 10
_LENGTH_BYTES, _DIGEST_BYTES = 8, 4
"""A record is the length of an event, a digest of that, the event, and its digest."""


class TensorBoardWriter:
    """A sink that writes a point for each number into a folder.

    Args:
        folder: for event files; each start of a run writes one of its own, or several.
        thinning: which steps stay in files that are no longer written, beside evaluations, which all stay; None keeps
            them all.
        after: points of later steps that earlier files of the folder hold are not shown; None shows all.
    """

    def __init__(self, folder: Path, thinning: Thinning | None = None, after: int | None = None) -> None:
        self._folder, self._thinning = folder, thinning
        self._earlier = _event_files(folder)
        self._events = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        if after is not None:
            started = SessionLog(status=SessionLog.START)
            self._events.add_event(Event(wall_time=time.time(), step=after + 1, session_log=started))
        self._written, self._newest = 0, 0
        self._thinner: Thread | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's points."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._newest = max(self._newest, step)
        if self._thinning is not None and self._written % self._thinning.interval == 0:
            self._thin(self._thinning)
        self._written += 1

    def flush(self) -> None:
        """Write down what is buffered."""
        self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self._events.close()
        if self._thinner is not None:
            self._thinner.join()

    def _thin(self, thinning: Thinning) -> None:
        if self._written:
            self._events.close()
            self._earlier = _event_files(self._folder)
            self._events = EventFileWriter(str(self._folder), flush_secs=FLUSH_SECONDS)
        if self._thinner is None or not self._thinner.is_alive():
            try:
                arguments = (self._earlier, thinning.kept(self._newest))
            except OSError as error:
                log.warning("%s is not thinned, since what was measured cannot be read: %s", self._folder, error)
                return
            self._thinner = Thread(target=_thin_files, args=arguments, name="thins TensorBoard", daemon=True)
            self._thinner.start()


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _thin_files(paths: list[Path], keeps: Callable[[int], bool]) -> None:
    for path in paths:
        try:
            _thin_file(path, keeps)
        except (OSError, _DamagedError) as error:
            log.warning("%s is not thinned: %s", path, error)


class _DamagedError(Exception):
    """What stands in an event file is no record."""


def _thin_file(path: Path, keeps: Callable[[int], bool]) -> None:
    """Leave out the points of steps that are not kept; a file without points goes."""
    kept, num_points, num_dropped = list[bytes](), 0, 0
    for record, event in _records(path.read_bytes()):
        if event.HasField("summary") and not (keeps(event.step) or _is_evaluation(event)):
            num_dropped += 1
        else:
            kept.append(record)
            num_points += event.HasField("summary")
    if num_points == 0:
        path.unlink()
    elif num_dropped:
        # TensorBoard takes any name that has "tfevents" in it.
        beside = path.with_name(".thinned")
        with beside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def _is_evaluation(event: Event) -> bool:
    return any(value.tag.startswith(f"{EVALUATION}/") for value in event.summary.value)


def _records(content: bytes) -> Iterator[tuple[bytes, Event]]:
    """The whole records of an event file, and what they say; one that a crash cut short is left out.

    Raises _DamagedError where a record is none: a wrong length would take all that follows for one that was cut short.
    """
    at = 0
    while (begin := at + _LENGTH_BYTES + _DIGEST_BYTES) <= len(content):
        length, digest = struct.unpack_from("<QI", content, at)
        if digest != masked_crc32c(content[at : at + _LENGTH_BYTES]):
            raise _DamagedError(f"damaged at byte {at}")
        end = begin + length + _DIGEST_BYTES
        if end > len(content):
            return
        try:
            event = Event.FromString(content[begin : begin + length])
        except DecodeError:
            raise _DamagedError(f"no event at byte {at}") from None
        yield content[at:end], event
        at = end
