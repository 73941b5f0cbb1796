"""Keeps the weights of the best version that an evaluation beside a run has measured."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcpo_async.durable import replace_folder
from dcpo_async.errors import ConfigError, WeightsError
from dcpo_async.evaluation.copying import write_copy
from dcpo_async.evaluation.table import AVERAGE
from dcpo_async.weights.manifest import Manifest, read_manifest

log = logging.getLogger(__name__)

BEST_NAME, WRITING_NAME, REPLACED_NAME = "best", ".writing-best", ".replaced-best"


class BestVersion:
    """A copy of the version of highest accuracy, as a whole model folder `best` among the results, an adapter merged.

    The first of several equal ones stays. A kill at any moment leaves the former best or the new one under the name, at
    the latest once this is made again.

    Args:
        out: folder of the results, which has one writer.
        setting: what the user asks for it by.

    Attributes:
        writing: where a copy is made, before it takes the place of the one that is kept.

    Raises ConfigError where something else has the name `best`.
    """

    def __init__(self, out: Path, setting: str = "--keep-best") -> None:
        self._setting = setting
        self._folder, self.writing, replaced = out / BEST_NAME, out / WRITING_NAME, out / REPLACED_NAME
        if replaced.exists() and not self._folder.exists():
            # Killed between the two renames: the former one gives way only to a copy that is whole and on disk.
            self.writing.rename(self._folder)
        for leftover in (self.writing, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        if self._folder.exists():
            try:
                read_manifest(self._folder)
            except WeightsError as error:
                raise ConfigError(f"{setting}: {error}; move it away, or choose another folder") from None

    def consider(self, folder: Path, manifest: Manifest, summary: Mapping[str, Any]) -> bool:
        """Keep a version that has been measured, if none that is kept is as good.

        Args:
            folder, manifest: of the version, which nobody removes meanwhile.
            summary: figures by the names that `version_name` gives; those of this version, and of the one that is kept.

        Raises:
            ConfigError: both were not measured on the same problems.
            WeightsError: there is no room for the copy, or it is not what the manifest says.
        """
        if not self.is_beaten_by(manifest, summary):
            return False
        write_copy(folder, self.writing)
        self.take(manifest, summary)
        return True

    def is_beaten_by(self, manifest: Manifest, summary: Mapping[str, Any]) -> bool:
        """Whether none that is kept is as good; raises ConfigError as `consider` does."""
        if not self._folder.exists():
            return True
        kept, name = version_name(read_manifest(self._folder)), version_name(manifest)
        if kept not in summary or _measured_on(summary[kept]) != _measured_on(summary[name]):
            raise ConfigError(f"{self._setting}: {kept} in {self._folder} was measured on other problems; move it away")
        best = _overall(summary[kept])
        if _accuracy(_overall(summary[name])) > _accuracy(best):
            return True
        log.info("%s is still the best version, with %s", kept, _told(best))
        return False

    def take(self, manifest: Manifest, summary: Mapping[str, Any]) -> None:
        """Put the copy of a version, whole in `writing`, in the place of the one that is kept; raises WeightsError."""
        try:
            replace_folder(self.writing, self._folder)
        except OSError as error:
            raise WeightsError(f"cannot keep {self.writing} as {self._folder}: {error}") from error
        name = version_name(manifest)
        log.info("%s is the best version, with %s: kept in %s", name, _told(_overall(summary[name])), self._folder)


def version_name(manifest: Manifest) -> str:
    """What a version of a run is called among the results: `step-00000040-v41`."""
    return f"step-{manifest.step:08d}-v{manifest.weights_version}"


def _overall(model: Mapping[str, Any]) -> dict[str, Any]:
    """The average over several sets, or the only set's row."""
    rows: dict[str, dict[str, Any]] = model["sets"]
    return rows[AVERAGE] if AVERAGE in rows else next(iter(rows.values()))


def _measured_on(model: Mapping[str, Any]) -> dict[str, int]:
    return {name: row["problems"] for name, row in model["sets"].items()}


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Samples say more than one greedy response does."""
    found: dict[str, Any] = row["sampled"] or row["greedy"]
    return found


def _accuracy(row: Mapping[str, Any]) -> float:
    return float(_figures(row)["accuracy"]["mean"])


def _told(row: Mapping[str, Any]) -> str:
    figures = _figures(row)
    accuracy = figures["accuracy"]
    interval = f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    return f"Avg@{figures['samples']} {100 * accuracy['mean']:.1f} {interval}"
