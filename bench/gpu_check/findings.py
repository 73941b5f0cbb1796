"""What a check finds, where it runs, and the processes it starts."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcpo_async.devices import Devices
from learner.ranks import rank_environments


class SkippedError(Exception):
    """A check cannot run here; its message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One number or word that a check found.

    Attributes:
        bound: what it must be, for people; empty where nothing is asked.
        is_met: None where nothing is asked.
    """

    name: str
    found: str
    bound: str = ""
    is_met: bool | None = None


def at_most(name: str, value: float, bound: float, form: str = ".3g") -> Finding:
    """A number with an upper bound."""
    return Finding(name, format(value, form), f"≤ {bound:{form}}", value <= bound)


def holds(name: str, found: str, bound: str, is_met: bool) -> Finding:
    """A word, and what it must be."""
    return Finding(name, found, bound, is_met)


@dataclass(frozen=True, slots=True)
class Place:
    """Where checks run.

    Attributes:
        device: cuda, or cpu for a dry run: tiny sizes, bounds of speed and memory left out.
        folder: for what they write; as large as two copies of the model with its optimizer.
        packages: a folder with files of packages that are not installed; see the Makefile.
    """

    device: str
    folder: Path
    packages: Path

    @property
    def is_gpu(self) -> bool:
        """Whether the sizes are those of the headline run."""
        return self.device == "cuda"

    @property
    def name(self) -> str:
        """Of the card."""
        return str(torch.cuda.get_device_name(0)) if self.is_gpu else "CPU"

    def environment(self) -> dict[str, str]:
        """Of a process that trains as the only rank."""
        [rank] = rank_environments(1, Path(tempfile.mkdtemp(prefix="meeting-", dir=self.folder)))
        devices = Devices((0,), 1) if self.is_gpu else Devices((), 1)
        return {**os.environ, **rank, **devices.environment()}

    def run(self, module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
        """What a module prints as JSON on its last line; raises RuntimeError with the end of its output."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            env=dict(environment or self.environment()),
            capture_output=True,
            text=True,
            timeout=1800,
        )
        if done.returncode:
            raise RuntimeError(f"{module} {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def sync(device: torch.device) -> None:
    """Wait until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
