"""The canary of a version: log-probs of a fixed token sequence, by which an engine proves that it holds the weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcpo_async.errors import CanaryError

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]

DEFAULT_BOUND_NATS: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 1.0}
"""By the type of the forward pass; decision 22 has what was measured."""


def canary_bound(setting: float | None, dtype: str) -> float:
    """The bound of a run's canaries in nats: `weights.canary_bound`, or what fits the type of the forward pass."""
    return DEFAULT_BOUND_NATS[dtype] if setting is None else setting


class Canary(BaseModel):
    """What the trainer's model says of a token sequence under exactly the weights of a version.

    Attributes:
        token_ids: the sequence, the same for all versions of a run.
        logprobs: natural log-prob at temperature 1 of each token given all before it, from the second token on.
        bound: largest difference of one token's log-prob, in nats, that an engine may find.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    token_ids: Annotated[tuple[TokenId, ...], Field(min_length=2, max_length=4096)]
    logprobs: tuple[LogProb, ...]
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.logprobs) != len(self.token_ids) - 1:
            raise ValueError(f"{len(self.logprobs)} log-probs for {len(self.token_ids)} tokens; the first has none")
        return self

    def largest_difference(self, logprobs: Sequence[float], weights_version: int) -> float:
        """Compare what an engine found with what the trainer said; returns the largest difference, in nats.

        Args:
            logprobs: by the engine, of the same tokens.
            weights_version: for the message.

        Raises:
            CanaryError: the difference is above the bound, or a log-prob is not a finite number.

        Example: (-1.0, -2.0) against (-1.1, -2.05) differ by 0.1 at token 1.
        """
        if len(logprobs) != len(self.logprobs):
            raise CanaryError(f"weights version {weights_version}: {len(logprobs)} log-probs of {len(self.logprobs)}")
        differences = [abs(found - said) for found, said in zip(logprobs, self.logprobs, strict=True)]
        worst = max(range(len(differences)), key=lambda i: differences[i] if differences[i] < math.inf else math.inf)
        if differences[worst] <= self.bound:
            return differences[worst]
        raise CanaryError(
            f"weights version {weights_version} is not in the engine: at token {worst + 1} of {len(self.token_ids)} "
            f"of its canary the engine's log-prob is {logprobs[worst]:.6g}, the trainer's {self.logprobs[worst]:.6g}; "
            f"they differ by {differences[worst]:.3g} nats, at most {self.bound:g} (weights.canary_bound) are allowed"
        )
