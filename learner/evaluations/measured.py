"""The version that is measured: its folder stays as long as its descriptor does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcpo_async.errors import WeightsError
from dcpo_async.weights.locks import hold, let_go
from dcpo_async.weights.manifest import Manifest, read_manifest
from dcpo_async.weights.places import version_folder
from learner.ledger.reader import EvaluationRow


@dataclass(frozen=True, slots=True)
class Measured:
    """The version that is measured, and its row in the ledger.

    Attributes:
        descriptor: of the folder, which stays while it is held.
        earlier_seconds: that starts of the learner before have spent on it.
    """

    row: EvaluationRow
    folder: Path
    manifest: Manifest
    descriptor: int
    began_at: float
    earlier_seconds: float

    def seconds(self, now: float) -> float:
        """Spent on it until now."""
        return self.earlier_seconds + now - self.began_at


def held(store: Path, row: EvaluationRow, now: float, found: Iterable[Mapping[str, Any]] = ()) -> Measured | None:
    """Keep a version's folder from being removed; None where it is gone, or cannot be kept.

    Args:
        store: the run's weight store.
        found: what earlier starts of the learner have kept of the evaluation's answers.
    """
    folder = version_folder(store, row.weights_version)
    try:
        descriptor = hold(folder)
    except OSError:
        # A file system without locks: nothing keeps the publisher from removing it.
        return None
    if descriptor is None:
        return None
    try:
        manifest = read_manifest(folder)
    except WeightsError:
        let_go(descriptor)
        return None
    return Measured(row, folder, manifest, descriptor, now, max((one["seconds"] for one in found), default=0.0))
