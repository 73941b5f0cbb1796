"""What keeps a run from starting here: a model that is not whole, and what the learner itself would refuse."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dcpo_async.doctor.findings import Finding, error, said

CHECK_SECONDS = 600.0
WARNING = "warning: "
LEARNER = "dcpo-learner: "


def refused(configs: Sequence[Path], gpus: str | None, seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """What `dcpo-learner CONFIG… --check` refuses or warns of: settings, data, the model, memory and disk.

    Args:
        gpus: as `--gpus` takes them; None leaves the choice to the learner.
    """
    words = ["--gpus", gpus] if gpus else []
    argv = [sys.executable, "-m", "learner.launcher", *map(str, configs), "--check", *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        yield error(f"`dcpo-learner --check` has not ended within {seconds:g} s", "run it by itself, and see where")
        return
    for line in done.stdout.splitlines():
        if line.startswith(WARNING):
            yield said("warning", line.removeprefix(WARNING), "`dcpo-learner --check` has the figures")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        told = next((line for line in reversed(lines) if line.startswith(LEARNER)), lines[-1])
        yield said("error", told.removeprefix(LEARNER), "`dcpo-learner --check` has the rest")


INDEX = "model.safetensors.index.json"
AGAIN = "download the model again, or copy it whole: `hf download MODEL --local-dir FOLDER`"
MAX_HEADER_BYTES = 100 << 20


def model(name: str) -> Iterator[Finding]:
    """What a model's folder lacks; one that is not here is fetched from the hub, and found out about there."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    for file in (folder / "config.json", *sorted(folder.glob("token*.json"))):
        try:
            json.loads(file.read_text())
        except (OSError, ValueError) as failure:
            yield error(f"{file} cannot be read: {_first(failure)}", AGAIN)
    tensors: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors[path.name] = _tensors(path)
        except (OSError, ValueError) as failure:
            tensors[path.name] = set()
            yield error(f"{path} is broken: {_first(failure)}", AGAIN)
    if not tensors and not any(folder.glob("*.bin")):
        yield error(f"{folder} has no weights in it, *.safetensors", AGAIN)
    if (folder / INDEX).exists():
        yield from _missing(folder / INDEX, tensors)


def _missing(index: Path, tensors: dict[str, set[str]]) -> Iterator[Finding]:
    """What the index of a model in several files names, and no file has."""
    try:
        places = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        yield error(f"{index} cannot be read: {_first(failure)}", AGAIN)
        return
    gone = sorted(set(places.values()) - tensors.keys())
    if gone:
        yield error(f"{index.parent} lacks {len(gone)} files of its index, {gone[0]} among them", AGAIN)
    lost = [name for name, file in places.items() if tensors.get(file) and name not in tensors[file]]
    if lost:
        yield error(f"{index.parent}: {places[lost[0]]} lacks the tensor {lost[0]} of the index", AGAIN)


def _tensors(path: Path) -> set[str]:
    """The names in a file; raises ValueError where its header or its length is wrong.

    A file is the header's length in 8 bytes, the header as JSON, and the bytes that it places.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError("it has no header of a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    try:
        places = {name: value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"}
        end = 8 + length + max(places.values(), default=0)
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError("its header does not place its tensors") from None
    if end != size:
        raise ValueError(f"its header places {end} bytes, it has {size}")
    return set(places)


def _first(failure: Exception) -> str:
    return (getattr(failure, "strerror", None) or str(failure)).partition("\n")[0]
