"""Metrics of a run as TensorBoard points; the only importer of TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

FLUSH_SECONDS = 10


class TensorBoardWriter:
    """A sink that writes a point for each number into a folder.

    Args:
        folder: for its file.
        after: points of later steps that earlier files of the folder hold are not shown; None shows all.
    """

    def __init__(self, folder: Path, after: int | None = None) -> None:
        self._board = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        if after is not None:
            started = SessionLog(status=SessionLog.START)
            self._board.add_event(Event(wall_time=time.time(), step=after + 1, session_log=started))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's points."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._board.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))

    def flush(self) -> None:
        """Write down what is buffered."""
        self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
