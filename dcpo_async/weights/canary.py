"""The canary of a version: log-probs of a fixed token sequence, by which an engine proves that it holds the weights."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]


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
