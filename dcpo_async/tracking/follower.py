"""What a sink has not been told yet: the lines of a run's metrics beyond a mark, each step once."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from dcpo_async.durable import write_json
from dcpo_async.metrics.groups import grouped, of_evaluation
from dcpo_async.run_folder import RunFolder


class Point(NamedTuple):
    """The numbers of one step, by their names in a tracker."""

    step: int
    metrics: dict[str, float]


@dataclass(slots=True)
class Place:
    """How far a file has been passed on: every step up to `step`, which the bytes before `offset` contain.

    `last` is the line that ends there: where the file has another, it is not the one that was read.
    """

    step: int = 0
    offset: int = 0
    last: str = ""


class Follower:
    """Reads steps and evaluations of a run, and remembers which have been passed on.

    A step that is trained again after a crash comes again in the file, and is passed over: it was trained on the same
    groups with the same advantages, and no tracker takes a point back.

    Args:
        run: its folder.
        mark: file that says how far a sink has come; it outlives processes.
        run_id: a mark of another run does not count.
    """

    def __init__(self, run: Path, mark: Path, run_id: str) -> None:
        self._mark, self._run_id = mark, run_id
        self._steps, self._evaluations = _places(mark, run_id)
        self._files = (
            (RunFolder(run).metrics, self._steps, grouped),
            (RunFolder(RunFolder(run).evaluation).metrics, self._evaluations, of_evaluation),
        )

    @property
    def step(self) -> int:
        """The last optimizer step that was passed on."""
        return self._steps.step

    def skip_to(self, step: int) -> None:
        """Pass over steps that the sink is known to have."""
        self._steps.step = max(self._steps.step, step)

    def points(self) -> Iterator[Point]:
        """What has been written since. A point counts as passed on once the next is asked for."""
        for path, place, named in self._files:
            for metrics in _lines(path, place):
                step = int(metrics["step"])
                if step > place.step:
                    yield Point(step, named(metrics))
                    place.step = step

    def save(self) -> None:
        """Write down how far the sink has come."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        places = {"steps": asdict(self._steps), "evaluations": asdict(self._evaluations)}
        write_json(self._mark, {"run_id": self._run_id, **places})


def num_unsent(run: Path, mark: Path, run_id: str) -> int:
    """Points that a sink has not been told of."""
    return sum(1 for _ in Follower(run, mark, run_id).points())


def mark_file(run: Path, sink: str) -> Path:
    """Where the mark of a sink stands in a run folder."""
    return tracking_folder(run) / f"{sink}.json"


def tracking_folder(run: Path) -> Path:
    """What sinks keep in a run folder: their marks, and the files of those that send nothing away."""
    return run / "tracking"


def _places(mark: Path, run_id: str) -> tuple[Place, Place]:
    try:
        content = json.loads(mark.read_text())
        if content["run_id"] == run_id:
            return Place(**content["steps"]), Place(**content["evaluations"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return Place(), Place()


def _lines(path: Path, place: Place) -> Iterator[dict[str, float]]:
    """Whole lines beyond the place, which comes along; one that a crash cut short is left out."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        last = place.last.encode()
        file.seek(max(0, place.offset - len(last)))
        if file.read(len(last)) != last:
            # One that lacks older steps took its place: steps that were passed on are known by their numbers.
            place.offset = 0
            file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):
                return
            with contextlib.suppress(ValueError):
                yield json.loads(line)
            place.offset, place.last = place.offset + len(line), line.decode(errors="replace")
