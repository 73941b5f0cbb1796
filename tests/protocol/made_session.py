"""What tests of sessions begin with: who says hello, what welcomes it, a lease and its group."""

import hashlib
from typing import Any

import numpy as np

from dcpo_async.config import ActorSettings, GradingSettings, SamplingSettings
from dcpo_async.protocol.messages import Hello, Welcome
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import Group, Lease, Response, VersionSegment


def hello(name: str = "a", **more: Any) -> Hello:
    """Of an actor of this name, whose secret follows from it."""
    secret = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return Hello(**{"session_id": secret, "name": name, "host": "here", "engine": "scripted", **more})


HELLO = hello()
WELCOME = Welcome(
    weights_port=5558,
    weights_version=4,
    seed=0,
    dtype="float32",
    max_prompt_tokens=8,
    sampling=SamplingSettings(group_size=2, max_response_tokens=8),
    grading=GradingSettings(extraction="boxed", timeout_seconds=1.0, workers=1),
    actor=ActorSettings(groups_in_flight=2),
    heartbeat_seconds=3.0,
    silence_seconds=15.0,
    chunk_bytes=1024,
)


def lease(position: int, attempt: int = 1) -> Lease:
    return Lease(position, attempt, "p", 1, 1, np.array([1, 2], np.int32), "4")


def group(position: int, attempt: int = 1) -> Group:
    response = Response(np.array([5], np.int32), np.array([-1.0], np.float32), (VersionSegment(1, 1),), "stop", "4")
    return Group(position, attempt, (response, response), (1.0, 0.0), ("", ""))


def joining() -> ActorSession:
    return ActorSession(HELLO, "tcp://learner:5557", now=0.0, join_timeout_seconds=60.0, rejoin_timeout_seconds=600.0)
