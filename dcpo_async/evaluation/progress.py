"""What a person sees while an evaluation runs: a bar for each set, or lines in a log."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dcpo_async.evaluation.results import ProblemResult

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0


@dataclass(slots=True)
class _Tally:
    bar: TaskID
    problems: int
    done: int = 0
    responses: int = 0
    right: int = 0

    def add(self, result: ProblemResult) -> None:
        self.done += 1
        self.responses += len(result.responses)
        self.right += sum(response.correct for response in result.responses)


class EvaluationProgress:
    """Problems done, right responses so far and tokens per second, of one model.

    Args:
        model: its name.
        problems: of each set, by its name.
        console: bars are drawn on a terminal, else a line goes to the log now and then.
    """

    def __init__(self, model: str, problems: Mapping[str, int], console: Console) -> None:
        self._model = model
        self._started = self._logged_at = time.monotonic()
        self._num_tokens = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tallies = {
            name: _Tally(self._bars.add_task(f"{model} {name}", total=total, state=""), total)
            for name, total in problems.items()
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def resume(self, name: str, results: Iterable[ProblemResult]) -> None:
        """Problems of a set that an earlier start has answered."""
        for result in results:
            self._tallies[name].add(result)
        self._show(name)

    def advance(self, name: str, result: ProblemResult) -> None:
        """One more problem of a set is answered."""
        tally = self._tallies[name]
        tally.add(result)
        self._num_tokens += sum(response.num_tokens for response in result.responses)
        state, now = self._show(name), time.monotonic()
        if self._bars.disable and (tally.done == tally.problems or now - self._logged_at >= LOG_SECONDS):
            self._logged_at = now
            log.info("%s, %s: %d of %d problems, %s", self._model, name, tally.done, tally.problems, state)

    def _show(self, name: str) -> str:
        tally, seconds = self._tallies[name], max(time.monotonic() - self._started, 1e-3)
        share = f"{100 * tally.right / tally.responses:.1f} % right, " if tally.responses else ""
        state = f"{share}{self._num_tokens / seconds:.0f} tokens/s"
        self._bars.update(tally.bar, completed=tally.done, state=state)
        return state
