"""The interface of a generation engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dcpo_async.records import Lease, Response, Sampling


@dataclass(frozen=True, slots=True)
class UpdateTiming:
    """How long one weights update took.

    Attributes:
        pause_seconds: from the pause of generation to its resumption.
        responses_in_flight: responses that were being generated when it began.
    """

    pause_seconds: float
    responses_in_flight: int


class Engine(Protocol):
    """Generates groups of responses under weights that can be exchanged while it runs."""

    @property
    def name(self) -> str:
        """What the engine is, for people: such as 'vllm 0.32.0 cpu'."""

    @property
    def weights_version(self) -> int:
        """The version that the next token will be sampled from."""

    async def start(self, weights_folder: Path, weights_version: int) -> None:
        """Load the model from a complete Hugging Face folder; raises EngineError."""

    async def generate(self, lease: Lease, sampling: Sampling) -> tuple[Response, ...]:
        """Sample G responses to the lease's prompt; many calls run at once. Raises EngineError."""

    async def adopt(self, weights_folder: Path, weights_version: int) -> UpdateTiming:
        """Exchange the weights without dropping what is in flight; raises EngineError."""

    async def close(self) -> None:
        """Stop generating and release the devices."""
