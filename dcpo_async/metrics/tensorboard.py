"""Metrics of a run as TensorBoard points; the only importer of TensorBoard, which brings torch."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10


class TensorBoardWriter:
    """A sink that writes a point for each number into a folder."""

    def __init__(self, folder: Path) -> None:
        self._board = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's points."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()
