"""A user's reward: where its source is, what it asks for, and whether it is the one that the run was started with."""

import ast
import asyncio
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcpo_async.config import GYM, GYM_REWARD, GradingSettings, RunConfig
from dcpo_async.config.rewards import own_reward
from dcpo_async.errors import ConfigError
from dcpo_async.grading.interface import Submission

PACKAGES = "REWARD_PACKAGES"
"""A reward's module may name distributions in a tuple of this name; their versions are part of its digest."""


class RewardFunction:
    """A function `package.module:function`, called with those parts of a submission that its signature names.

    Raises ConfigError where it cannot be imported, or asks for what a submission has not got.
    """

    def __init__(self, name: str) -> None:
        module_name, _, function_name = name.partition(":")
        try:
            function: object = getattr(importlib.import_module(module_name), function_name, None)
        except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
            raise ConfigError(
                f"grading.reward {name}: {module_name} cannot be imported: {_in_a_line(error)}; install it, or put its "
                "folder on PYTHONPATH, for the learner and for every actor"
            ) from error
        if not callable(function):
            raise ConfigError(f"grading.reward {name}: {module_name} has no function {function_name}")
        self._function: Callable[..., Any] = function
        self._wanted = _wanted(name, function)

    def __call__(self, submission: Submission) -> object:
        """Whatever it gives; of a coroutine, once that has run to its end in a loop of its own."""
        given = {**submission._asdict(), "metadata": json.loads(submission.metadata or "{}")}
        result = self._function(**{name: given[name] for name in self._wanted})
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


def source_digest(name: str) -> str:
    """16 hex digits of the file of a reward's module, and of the versions of what it names in REWARD_PACKAGES.

    Nothing of the module is run. What else it imports is not covered: a change there is not noticed.

    Raises ConfigError where there is no such file or package.
    """
    module_name = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (Exception, SystemExit) as error:  # a package above it is imported, which may raise anything
        raise ConfigError(f"grading.reward {name}: {module_name} cannot be imported: {_in_a_line(error)}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"grading.reward {name}: there is no {module_name} in Python source; install it, or put its folder on "
            "PYTHONPATH, for the learner and for every actor"
        )
    source = Path(spec.origin).read_bytes()
    state = hashlib.blake2b(source, digest_size=8)
    for package in _packages(name, source):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(f"grading.reward {name} needs the package {package}; install it") from error
        state.update(f"{package}=={version}\n".encode())
    return state.hexdigest()


def resolved_rewards(config: RunConfig) -> RunConfig:
    """The settings with every own reward's digest, and with the scorer of each task of Reasoning Gym.

    Raises ConfigError where a function cannot be called, or is not the one whose digest the settings give.
    """
    grading, data = config.grading, config.data
    if grading.reward is None and not data.sources and data.source.startswith(GYM):
        grading = grading.model_copy(update={"reward": GYM_REWARD})
    sources = []
    for source in data.sources:
        reward = own_reward(source)
        digest = "" if reward is None else _digest(reward, source.reward_digest)
        sources.append(source.model_copy(update={"reward": reward, "reward_digest": digest}))
    data = data.model_copy(update={"sources": tuple(sources)})
    return config.model_copy(update={"grading": resolved_reward(grading), "data": data})


def resolved_reward(grading: GradingSettings) -> GradingSettings:
    """The settings with the digest of the reward's source as it stands; as they are where there is no own reward.

    Raises ConfigError where the function cannot be called, or is not the one whose digest the settings give.
    """
    if grading.reward is None:
        return grading
    return grading.model_copy(update={"reward_digest": _digest(grading.reward, grading.reward_digest)})


def require_digest(name: str, digest: str) -> None:
    """Raise ConfigError where the source of a reward is not the one of this digest."""
    found = source_digest(name)
    if found != digest:
        raise ConfigError(
            f"grading.reward {name}: its source here has digest {found}, the run's has {digest}; install the same "
            "version of it for the learner and for every actor"
        )


def _digest(name: str, expected: str) -> str:
    RewardFunction(name)
    if expected:
        require_digest(name, expected)
    return expected or source_digest(name)


def _wanted(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"grading.reward {name}: its parameters cannot be seen; write it as a function") from error
    known, wanted = Submission._fields, list[str]()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            return known
        if parameter.name in known and parameter.kind is not parameter.POSITIONAL_ONLY:
            wanted.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise ConfigError(
                f"grading.reward {name} asks for {parameter.name!r}; by name it may ask for {', '.join(known)}"
            )
    return tuple(wanted)


def _packages(name: str, source: bytes) -> tuple[str, ...]:
    try:
        body = ast.parse(source).body
        for node in body:
            if isinstance(node, ast.Assign) and any(
                isinstance(to, ast.Name) and to.id == PACKAGES for to in node.targets
            ):
                return tuple(map(str, ast.literal_eval(node.value)))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(f"grading.reward {name}: its source cannot be read: {_in_a_line(error)}") from error
    return ()


async def _awaited(result: Any) -> object:
    return await result


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
