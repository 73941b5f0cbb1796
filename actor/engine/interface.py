"""The interface of a generation engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dcpo_async.records import Lease, LeaseName, Response, Sampling

if TYPE_CHECKING:
    # Its package imports torch, which the launcher need not wait for.
    from dcpo_async.weights.canary import Canary


@dataclass(frozen=True, slots=True)
class UpdateTiming:
    """How one weights update went.

    Attributes:
        pause_seconds: from the pause of generation to its resumption.
        responses_in_flight: responses that were being generated when it began.
        canary_difference: largest difference of a log-prob of the canary from the trainer's, in nats; None without one.
        was_refused: the canary refused the weights as they had been exchanged, and the engine was started anew.
        stage_seconds: parts of the pause, by name.
    """

    pause_seconds: float
    responses_in_flight: int
    canary_difference: float | None = None
    was_refused: bool = False
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds at the moment.

    Attributes:
        num_running: responses that had a place in the KV cache in the last step, those that ended in it among them;
            others in flight wait for one.
        kv_cache_share: share of the KV cache that they take, in [0, 1].
        preemptions: how often a response has lost its place to others and had to be computed again, since the start.
        steps: that it has taken since the start.
    """

    num_running: int = 0
    kv_cache_share: float = 0.0
    preemptions: int = 0
    steps: int = 0


class Engine(Protocol):
    """Generates groups of responses under weights that can be exchanged while it runs."""

    @property
    def name(self) -> str:
        """What the engine is, for people: such as 'vllm 0.32.0 cpu'."""

    @property
    def weights_version(self) -> int:
        """The version that the next token will be sampled from."""

    @property
    def load(self) -> EngineLoad:
        """What it holds at the moment."""

    @property
    def running_tokens(self) -> Mapping[LeaseName, int]:
        """Tokens so far of the responses in it that have not ended, by lease; empty where there is no work in it."""

    @property
    def signs_of_work(self) -> tuple[int, ...]:
        """Numbers of which one changes every few seconds while it works, and none where it hangs."""

    async def start(self, weights_folder: Path, weights_version: int, canary: "Canary | None") -> float | None:
        """Load the model from a complete Hugging Face folder.

        Args:
            canary: of the version; None where nothing is to be compared.

        Returns:
            The largest difference from the canary, in nats.

        Raises:
            CanaryError: the difference is above its bound.
            EngineError: it did not start.
        """

    async def generate(
        self, lease: Lease, sampling: Sampling, response_ended: Callable[[int], None] | None = None
    ) -> tuple[Response, ...]:
        """Sample G responses to the lease's prompt; many calls run at once.

        Args:
            response_ended: called with the tokens of each response as it ends, G times before the call returns.

        Raises:
            EngineError: the engine failed, or the prompt cannot be answered.
        """

    async def adopt(self, weights_folder: Path, weights_version: int, canary: "Canary | None") -> UpdateTiming:
        """Exchange the weights without dropping what is in flight, and compare before the first new token.

        Weights that the canary refuses generate nothing: the engine is started anew from the folder, and what was in
        flight begins anew.

        Raises:
            CanaryError: the engine that was started anew was refused too; it has ended.
            EngineError: the update failed.
        """

    async def close(self) -> None:
        """Stop generating and release the devices."""
