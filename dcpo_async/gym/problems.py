"""Problems of a Reasoning Gym task: generated once, and from then on read from the run's folder."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dcpo_async.config import GYM, SourceSettings
from dcpo_async.durable import write_text
from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.gym.tasks import REFUSED
from dcpo_async.limits import MAX_TEXT
from dcpo_async.prompts import LoadedProblems, Problem
from dcpo_async.prompts.digest import digest_of

log = logging.getLogger(__name__)

PACKAGE = "reasoning-gym"
_INSTALL = "install it with `pip install 'dcpo-async[reasoning-gym]'`, for the learner and for every actor"


def gym_problems(data: SourceSettings, folder: Path | None) -> LoadedProblems:
    """The problems of a source `reasoning-gym:TASK`.

    They are generated where no file of the same task, size, seed and settings stands in the folder: some tasks
    generate others with each start of Python, and each release of the package may.

    Args:
        folder: where the file stands, and is written if it does not; None writes none.

    Raises ConfigError for a task that is unknown or that one should not train on, or settings that it refuses;
    DatasetError for a file that was changed.
    """
    task = data.source.removeprefix(GYM)
    if task in REFUSED:
        raise ConfigError(f"source {data.source} is refused: {REFUSED[task]}")
    request = {"task": task, "size": data.gym_size, "seed": data.gym_seed, "settings": data.gym_settings}
    path = folder / f"{PACKAGE}-{task}-{digest_of([_line(request)])}.jsonl" if folder is not None else None
    if path is not None and path.exists():
        return _read(path)
    lines = [_line(row) for row in _generated(task, data)]
    header = {**request, "package": version(PACKAGE), "digest": digest_of(lines)}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([_line(header), *lines]) + "\n")
        log.info(
            "%d problems of %s were generated and stand in %s, digest %s", len(lines), task, path, header["digest"]
        )
    return _loaded(map(json.loads, lines))


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True)


def _generated(task: str, data: SourceSettings) -> Iterator[dict[str, Any]]:
    # Imported here since it takes a second, and only such a source needs it.
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        version(PACKAGE)
    except (ImportError, PackageNotFoundError) as error:
        raise ConfigError(f"source {data.source} needs the package {PACKAGE} ({error}); {_INSTALL}") from error
    if task not in DATASETS:
        names = ", ".join(sorted(DATASETS.keys() - REFUSED.keys()))
        raise ConfigError(f"source {data.source}: Reasoning Gym has no such task; there are {names}")
    try:
        entries = reasoning_gym.create_dataset(task, size=data.gym_size, seed=data.gym_seed, **data.gym_settings)
        for index in range(data.gym_size):
            entry = entries[index]
            metadata = _line({"task": task, "settings": data.gym_settings, "entry": entry})
            yield {"problem": str(entry["question"]).strip(), "answer": str(entry["answer"]), "metadata": metadata}
    except (AssertionError, TypeError, ValueError, KeyError, IndexError) as error:  # its words for what it refuses
        reason = " ".join(str(error).split())
        raise ConfigError(f"source {data.source} with gym_settings {data.gym_settings}: {reason}") from error


def _read(path: Path) -> LoadedProblems:
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if digest_of(lines) != json.loads(header)["digest"]:
        raise DatasetError(f"{path} is not what was written: its lines have digest {digest_of(lines)}; move it away")
    return _loaded(map(json.loads, lines))


def _loaded(rows: Iterable[dict[str, str]]) -> LoadedProblems:
    problems, left_out, num_rows = dict[str, Problem](), Counter[str](), 0
    for row in rows:
        num_rows += 1
        if row["problem"] in problems:
            left_out["duplicate"] += 1
        elif len(row["metadata"]) > MAX_TEXT:
            left_out["too much metadata"] += 1
        else:
            problems[row["problem"]] = Problem(row["problem"], row["answer"], metadata=row["metadata"])
    return LoadedProblems(tuple(problems.values()), num_rows, left_out)
