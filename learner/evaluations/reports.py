"""What people and tools find of the run's own evaluations, in its folder `evaluation`, where `dcpo compare` looks."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcpo_async.errors import ConfigError, WeightsError
from dcpo_async.evaluation.best import BestVersion, version_name
from dcpo_async.evaluation.copying import copied
from dcpo_async.evaluation.results import ProblemResult, ResultsFolder
from dcpo_async.evaluation.summary import Summary, means
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.manifest import Manifest

log = logging.getLogger(__name__)


class EvaluationReports:
    """Writes summary, tables and metrics, and keeps the best version.

    Args:
        folder: of the run.
        settings: what shapes every result, by name.
        keep_best: whether a copy of the best version is kept.

    Raises ConfigError where the folder has results of other settings, or another process writes to it.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any], *, keep_best: bool) -> None:
        out = folder.evaluation
        self._results = ResultsFolder(
            out, settings, named="evaluation:", advice="go back to those, or move the folder away"
        )
        self._summary = Summary(self._results)
        self._metrics = MetricsWriter(out)
        self._log_file = folder.log("best_version")
        self._best = BestVersion(out, "evaluation.keep_best") if keep_best else None

    @property
    def newest(self) -> dict[str, Any] | None:
        """The figures of the newest version that was measured, by its name; None before the first."""
        return dict([list(self._summary.entries.items())[-1]]) if self._summary.entries else None

    async def complete(
        self,
        folder: Path,
        manifest: Manifest,
        found: Mapping[str, Sequence[ProblemResult]],
        rewards: Mapping[str, float],
    ) -> dict[str, float]:
        """Write down what was found of a version; the same again, or again after it was cancelled, changes nothing.

        Args:
            folder, manifest: of the version, which nobody removes meanwhile.
            found: results of each set.
            rewards: mean reward of each set.
        """
        name = version_name(manifest)
        entry = await asyncio.to_thread(self._summary.entry, name, found, manifest)
        figures = means(entry) | {f"{set_name}/reward": reward for set_name, reward in rewards.items()}
        self._metrics.write(manifest.step, figures | {"answered_share": 1.0})
        if self._best is not None:
            try:
                await self._keep_if_best(self._best, folder, manifest, {**self._summary.entries, name: entry})
            except (ConfigError, WeightsError) as error:
                log.warning("%s is measured, and not kept even if it is the best: %s", name, error)
        # Last: what is not in the summary is written down anew by the next start.
        self._summary.write(name, entry)
        return figures

    async def _keep_if_best(
        self, best: BestVersion, folder: Path, manifest: Manifest, entries: Mapping[str, Any]
    ) -> None:
        if best.is_beaten_by(manifest, entries):
            await copied(folder, best.writing, self._log_file)
            await asyncio.to_thread(best.take, manifest, entries)

    def incomplete(self, step: int, answered: int, num_problems: int) -> None:
        """Write down that a version has no accuracy, and how much of it was answered."""
        self._metrics.write(step, {"answered_share": answered / num_problems})

    def close(self) -> None:
        """Close the files, and let others write to the folder."""
        self._metrics.close()
        self._results.__exit__()
