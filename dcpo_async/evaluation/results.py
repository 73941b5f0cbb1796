"""Results on disk: a line for each problem, so that an evaluation that was ended goes on where it stood."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dcpo_async.config import GradingSettings
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.records import FinishReason

Mode = Literal["greedy", "sampled"]

SETTINGS_NAME = "settings.json"
SUMMARY_NAME = "summary.json"
LOCK_NAME = ".lock"


class GradedResponse(BaseModel):
    """One response and its verdict.

    Attributes:
        index: its number among the problem's responses of this mode.
        seed: of its noise; None for a greedy one.
        num_tokens: its length, the stop token included.
        correct: it has the highest reward that there is.
        reward: None in results of earlier releases.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    mode: Mode
    index: int
    seed: int | None
    text: str
    extracted: str | None
    correct: bool
    reason: str
    num_tokens: int
    finish_reason: FinishReason
    reward: float | None = None


class ProblemResult(BaseModel):
    """All responses to one problem.

    Attributes:
        answer: the reference.
        weights_version, step: of the run's weights that generated every token; None where a model was named.
        elapsed_seconds: spent on the model when the line was written, earlier starts of the evaluation included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    problem: str
    answer: str
    responses: tuple[GradedResponse, ...]
    weights_version: int | None
    step: int | None
    elapsed_seconds: float


def of_grading(grading: GradingSettings) -> dict[str, Any]:
    """What of the grading shapes results, by name: extraction is not read where there is an own reward."""
    if grading.reward is None:
        return {"extraction": grading.extraction}
    return {"extraction": None, "reward": grading.reward, "reward_digest": grading.reward_digest}


class ResultLog:
    """The results of one model on one set, appended problem by problem.

    Attributes:
        results: by problem id, those of earlier starts included.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that a crash cut short is dropped. Raises ConfigError for a damaged one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        *lines, torn = content.split(b"\n")
        self.results = {result.id: result for result in _parsed(path, lines)}
        self._file = path.open("ab", buffering=0)
        self._file.truncate(len(content) - len(torn))

    def append(self, result: ProblemResult) -> None:
        """Keep a problem's result; the whole line goes out in one write."""
        self._file.write(result.model_dump_json().encode() + b"\n")
        self.results[result.id] = result

    def close(self) -> None:
        self._file.close()


def _parsed(path: Path, lines: list[bytes]) -> Iterator[ProblemResult]:
    for number, line in enumerate(lines, start=1):
        try:
            yield ProblemResult.model_validate_json(line)
        except ValidationError:
            raise ConfigError(
                f"{path}, line {number}: not the result of a problem; choose another --out, or --overwrite it"
            ) from None


class ResultsFolder:
    """The folder of an evaluation; one process writes to it at a time.

    Args:
        folder: made if need be; one that holds something else is refused.
        settings: what shapes every result, by name.
        overwrite: remove the results that are there.
        named: what the user calls the folder by.
        advice: what to do about results of other settings.

    Raises ConfigError for a folder of something else, one in use, and one with results of other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        named: str = "--out",
        advice: str = "choose another --out, or --overwrite them",
    ) -> None:
        self.folder, self._named, self._advice = folder, f"{named} {folder}", advice
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SETTINGS_NAME).exists() and {path.name for path in folder.iterdir()} - {LOCK_NAME}:
            raise ConfigError(f"{self._named}: the folder holds something that no evaluation wrote; choose a new one")
        self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(f"{self._named}: another evaluation is writing there; choose another folder") from None
        try:
            # One that failed before its first result binds nobody to its settings.
            if overwrite or not any(path.stat().st_size for path in folder.rglob("*.jsonl")):
                self._empty()
            self.add(settings)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def add(self, settings: Mapping[str, Any]) -> None:
        """Note further settings, such as the digest of one more model; raises ConfigError where they differ."""
        path = self.folder / SETTINGS_NAME
        known = json.loads(path.read_text()) if path.exists() else {}
        differing = [
            f"{name} {known[name]!r} there, {value!r} here"
            for name, value in settings.items()
            if name in known and known[name] != value
        ]
        if differing:
            raise ConfigError(f"{self._named} holds results of other settings: {'; '.join(differing)}; {self._advice}")
        write_json(path, known | dict(settings))

    def summary(self) -> dict[str, Any]:
        """The figures of the models that earlier starts measured."""
        path = self.folder / SUMMARY_NAME
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    @contextmanager
    def logs(self, model: str, sets: Iterable[str]) -> Iterator[dict[str, ResultLog]]:
        """The logs of a model, by set."""
        logs: dict[str, ResultLog] = {}
        try:
            for name in sets:
                logs[name] = ResultLog(self.folder / model / f"{name}.jsonl")
            yield logs
        finally:
            for log in logs.values():
                log.close()

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:
                path.unlink()
