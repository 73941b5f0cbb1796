"""Every path of a run folder, once: services write them, tools read them. And the room that its disk has."""

import shutil
from dataclasses import dataclass
from pathlib import Path

MOST_RESERVE_BYTES, RESERVE_SHARE = 256 << 20, 0.02
"""Of a run's disk so much is kept free, or this share of it where that is less."""
REQUESTS = "requests"
"""The folder of what commands ask of the learner that is at work, and of its answers; a file each."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names what stands where in the folder of a run.

    Attributes:
        path: of the folder itself, `folder` in the settings.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Resolved settings of the last start, JSON."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """How many rows became prompts, and what was left out, by reason; JSON. Generated problems stand beside it."""
        return self.path / "data.json"

    @property
    def status(self) -> Path:
        """What the run is doing, written every second; JSON."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """A JSON line for each optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def ledger(self) -> Path:
        """The ledger's folder."""
        return self.path / "ledger"

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The weight store."""
        return self.path / "weights"

    @property
    def skeleton(self) -> Path:
        """The model's configuration and tokenizer, without weights."""
        return self.path / "skeleton"

    @property
    def export(self) -> Path:
        """The trained model as a Hugging Face folder, once the run is finished."""
        return self.path / "export"

    @property
    def evaluation(self) -> Path:
        """What `dcpo eval` measured of the run, where it was told to write here."""
        return self.path / "evaluation"

    @property
    def stats(self) -> Path:
        """What `dcpo stats` writes, where it is not told to write elsewhere."""
        return self.path / "stats"

    @property
    def timing(self) -> Path:
        """What took how long: JSON lines of spans, in files of bounded size, and the traces of `training.profile`."""
        return self.path / "timing"

    @property
    def trainer_error(self) -> Path:
        """Why the rank that failed first ended, for the launcher; JSON."""
        return self.path / "trainer_error.json"

    def log(self, part: str) -> Path:
        """What a part of the learner prints: `trainer`, `publisher`, `weight_server`, `best_version`."""
        return self.path / "logs" / f"{part}.log"


@dataclass(frozen=True, slots=True)
class AdapterFolders:
    """What stands beside the rest in the folder of a run that trains an adapter.

    Attributes:
        path: of the run's folder.
    """

    path: Path

    @property
    def base(self) -> Path:
        """The model that the adapter is for, whole, in the type of the forward pass."""
        return self.path / "base"

    @property
    def skeleton(self) -> Path:
        """The adapter's configuration in peft's format, without weights."""
        return self.path / "adapter"


def lacking_room(path: Path, *, beside: int = 0) -> float:
    """Bytes that the disk of a run's folder lacks of its reserve; 0 where it has room.

    Args:
        beside: bytes that are to be written without a part of the reserve.
    """
    disk = shutil.disk_usage(path)
    # Some file systems do not say how large they are.
    return max(0.0, min(MOST_RESERVE_BYTES, RESERVE_SHARE * disk.total) + beside - disk.free) if disk.total else 0.0
