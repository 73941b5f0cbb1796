"""The runs that are served: how each is called, and what is kept of it between two looks."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import SUMMARY_NAME
from dcpo_async.metrics.health import Health, in_force
from dcpo_async.monitoring.server import WatchedRun
from dcpo_async.run_folder import RunFolder
from learner.ledger.watching.window import LedgerWindow
from learner.page.curves import Curves
from learner.page.events import Seen

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class ServedRun:
    """A run as the page shows it.

    Attributes:
        name: in addresses and headings.
    """

    def __init__(self, name: str, folder: Path, watched: WatchedRun) -> None:
        self.name, self.folder, self.watched = name, RunFolder(folder), watched
        self.window, self.curves, self.seen = LedgerWindow(self.folder.ledger), Curves(self.folder.metrics), Seen()

    def look(self) -> tuple[dict[str, Any], Health]:
        """The status, and what it amounts to; what has changed becomes an event."""
        status, health = self.watched.look()
        self.seen.look(status, health, time.time())
        return status, health

    def accuracy(self) -> dict[str, list[dict[str, float]]]:
        """Held-out accuracy by set and mode, in step order: step, mean, low and high of its interval."""
        found: dict[str, dict[int, dict[str, float]]] = {}
        for entry in read_json(self.folder.evaluation / SUMMARY_NAME).values():
            for set_name, figures in entry.get("sets", {}).items():
                for mode in ("greedy", "sampled"):
                    if figures.get(mode) and entry.get("step") is not None:
                        accuracy = figures[mode]["accuracy"]
                        point = {name: accuracy[name] for name in ("mean", "low", "high")}
                        found.setdefault(f"{set_name}, {mode}", {})[entry["step"]] = {"step": entry["step"], **point}
        return {name: [points[step] for step in sorted(points)] for name, points in found.items()}

    def settings(self) -> dict[str, Any]:
        """Those in force, by their full names: of the newest start, and what was set since."""
        status, _ = self.watched.look()
        return dict(_leaves("", in_force(read_json(self.folder.config), status)))


class Watcher:
    """Looks at runs again and again in a thread of its own, so that events are there when somebody comes to look."""

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        self._runs = runs

    def start(self) -> None:
        """Begin; the thread ends with its process."""
        threading.Thread(target=self._run, daemon=True, name="watcher").start()

    def _run(self) -> None:
        while True:
            for run in self._runs:
                try:
                    run.look()
                    run.curves.look()
                except (OSError, ValueError, KeyError) as error:
                    log.warning("%s cannot be looked at: %s", run.folder.path, error)
            time.sleep(LOOK_SECONDS)


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of words [NAME=]FOLDER; without a name a run is called by its folder, `run` by the one above.

    Raises ConfigError where a folder is none, a name is no word, or two runs have one name.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, sign, location = word.partition("=")
        if not sign or Path(word).is_dir():
            name, location = "", word
        folder = Path(location)
        if not folder.is_dir():
            raise ConfigError(f"{location}: no such folder; name that of a run")
        parts = [part for part in folder.resolve().parts if part != "run"]
        name = name or parts[-1]
        if not name.isprintable() or not name.strip():
            raise ConfigError(f"run {word!r} has a name that cannot be shown; write NAME=FOLDER")
        if name in found:
            raise ConfigError(f"two runs are called {name}; write NAME=FOLDER")
        found[name] = folder
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file of the run; {} where it is not there, or no table."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _leaves(prefix: str, table: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        found += _leaves(f"{prefix}{name}.", value) if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found
