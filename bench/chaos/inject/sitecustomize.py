"""What each Python process of a service imports at its start where this folder is on PYTHONPATH: faults, and a record.

CHAOS_DIE_AT is `module:Class.method:before` or `…:after`, and `:SHARE` of the calls: the process writes a line into the
file CHAOS_DEATHS and kills itself there. CHAOS_ACKS is a folder: each process of an actor writes down there what it was
told is durable, by its own account.
Nothing of the product knows of this.
"""

import functools
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def _die(place: str) -> None:
    descriptor = os.open(os.environ["CHAOS_DEATHS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{place}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(function: Callable[..., Any], place: str, when: str, share: float) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        is_last = random.random() < share
        if is_last and when == "before":
            _die(f"{when} {place}")
        result = function(*arguments, **named)
        if is_last:
            _die(f"{when} {place}")
        return result

    return wrapped


def _recording(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Writes down each group that an actor may forget, before it does."""
    descriptor = os.open(folder / f"{os.getpid()}.acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @functools.wraps(function)
    def wrapped(session: Any, envelope: Any, now: float) -> Any:
        message = envelope.message
        if message.kind == "ack" and message.outcome in ("accepted", "duplicate"):
            os.write(descriptor, f"{message.position} {message.attempt}\n".encode())
        return function(session, envelope, now)

    return wrapped


class _Wrapper(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Wraps methods of modules as they are imported."""

    def __init__(self, wrappers: dict[str, list[tuple[str, Callable[..., Any]]]]) -> None:
        self._wrappers = wrappers
        self._loaders: dict[str, importlib.abc.Loader] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._wrappers or name in self._loaders:
            return None
        self._loaders[name] = None  # type: ignore[assignment]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loaders[module.__name__].exec_module(module)
        for place, wrap in self._wrappers[module.__name__]:
            *path, name = place.split(".")
            owner = functools.reduce(getattr, path, module)
            setattr(owner, name, wrap(getattr(owner, name)))


def _wrappers() -> dict[str, list[tuple[str, Callable[..., Any]]]]:
    found: dict[str, list[tuple[str, Callable[..., Any]]]] = {}
    if point := os.environ.get("CHAOS_DIE_AT"):
        module, place, when, share = point.split(":")
        found.setdefault(module, []).append(
            (place, functools.partial(_dying, place=place, when=when, share=float(share)))
        )
    if folder := os.environ.get("CHAOS_ACKS"):
        record = functools.partial(_recording, folder=Path(folder))
        found.setdefault("dcpo_async.protocol.session", []).append(("ActorSession.on_envelope", record))
    return found


if wrappers := _wrappers():
    sys.meta_path.insert(0, _Wrapper(wrappers))
