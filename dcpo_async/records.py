"""The nouns of the system: Prompt, Lease, Response, Group and TrainingSample."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number that SQLite and the wire can hold."""
STRETCH_BYTES = 4 << 20
"""Files of weights are digested, asked for and checked in stretches of this length, the last one apart."""
FinishReason = Literal["stop", "length"]
GroupOutcome = Literal["accepted", "duplicate", "superseded", "invalid"]
Activity = Literal["starting", "updating", "waiting for weights", "generating", "grading", "idle", "draining"]
"""What an actor does at the moment; "updating" exchanges weights in the engine."""
Relay = Annotated[str, Field(max_length=300, pattern="^[!-~]*$")]
"""Address at which a machine hands on the weights that it has, in printable ASCII; empty for none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem of the training set, tokenized once by the learner.

    Attributes:
        id: digest of problem and answer; the key of the prompt's reward statistics.
        problem: the problem as the data set has it.
        answer: the reference answer.
        token_ids: the templated prompt, ready for the engine.
        metadata: what the row brings for an own reward, a JSON object; empty for none.
        source: name of the data that it is from; "" where a run has one.
    """

    id: str
    problem: str
    answer: str
    token_ids: tuple[int, ...]
    metadata: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled: by temperature alone, so that both sides of a training know the distribution.

    Attributes:
        group_size: G, the number of responses for each prompt visit.
        temperature: above 0 in training, where the learner divides its logits by it too; 0 is greedy, with G = 1.
        max_response_tokens: a response that reaches it is finished by "length".
        seed: run seed; an engine derives each response's own seed from it, prompt, visit and response number.
        stop: texts that end a response, which keeps the token that completes one.
        stop_token_ids: tokens that end a response beside those of the model; the response keeps its own.
    """

    group_size: int
    temperature: float
    max_response_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


class VersionSegment(NamedTuple):
    """A stretch of a response that one weights version generated."""

    weights_version: int
    num_tokens: int


class LeaseName(NamedTuple):
    """Names a lease without its content: position and fencing token."""

    position: Count
    attempt: Count


class Hold(NamedTuple):
    """What an engine is asked for while a version is measured: stay at it, once you have it, for so many seconds."""

    weights_version: Count
    seconds: Annotated[float, Field(gt=0, le=1e9)]


class EvaluationTerms(NamedTuple):
    """How a lease of an evaluation is answered: so many responses, every token of them of this version alone."""

    exact_version: Count
    samples: Annotated[int, Field(ge=1, le=1 << 10)]
    temperature: Annotated[float, Field(ge=0)]


EVALUATION_POSITIONS = 1 << 62
"""Leases of evaluations are numbered from here on: no training lease ever gets so far."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to answer one visit of a prompt, held by one session at a time.

    Attributes:
        position: place in the endless prompt order; the group's identity.
        attempt: fencing token; only the newest attempt at a position is accepted.
        prompt_id: digest of the prompt.
        visit: 1 for the prompt's first visit.
        min_version: the actor adopts a weights version at least this new before the first token.
        prompt_token_ids: int32 [prompt tokens].
        answer: reference answer for the grader.
        problem, metadata: of the prompt, where an own reward may ask for them; else empty.
        source: of the prompt.
        terms: of an evaluation; None in training, where the run's own sampling holds.
    """

    position: int
    attempt: int
    prompt_id: str
    visit: int
    min_version: int
    prompt_token_ids: NDArray[np.int32]
    answer: str
    problem: str = ""
    metadata: str = ""
    source: str = ""
    terms: EvaluationTerms | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer as the engine made it.

    Attributes:
        token_ids: int32 [tokens], the stop token included.
        behavior_logprobs: float32 [tokens], log-probabilities under the distribution sampled from.
        segments: weights versions in order; their token counts add up to the length.
        finish_reason: "stop" or "length".
        text: detokenized response, for grading and for people; begins with `<think>` where its prompt ends so.
    """

    token_ids: NDArray[np.int32]
    behavior_logprobs: NDArray[np.float32]
    segments: tuple[VersionSegment, ...]
    finish_reason: FinishReason
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """The G graded responses of one prompt visit.

    Attributes:
        position, attempt: of the lease that it answers.
        responses: exactly G.
        rewards: one for each response.
        reasons: the grader's reason for each verdict.
        seconds: of waiting for weights, of generation, of grading; told to the learner, and not kept.
        made_by: digest of the settings that it was sampled and graded by; told to the learner, and not kept.
    """

    position: int
    attempt: int
    responses: tuple[Response, ...]
    rewards: tuple[float, ...]
    reasons: tuple[str, ...]
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    made_by: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One response as a trainer rank sees it.

    Attributes:
        position: the group's position; index: the response's number in its group.
        prompt_token_ids: int32 [prompt tokens].
        token_ids: int32 [tokens].
        behavior_logprobs, old_logprobs: float32 [tokens].
        token_lags: int32 [tokens], optimizer steps between the training step and the version that sampled the token.
        advantage: the stored advantage.
        token_weight: weight of each of its tokens in the step's loss.
        token_count: how many tokens of the batch each of its tokens stands for in diagnostics: more than 1 where few
            of those without a gradient are looked at.
        kl_coefficient: of the step's loss; above 0 its KL term gives every sample a gradient.
    """

    position: int
    index: int
    prompt_token_ids: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    behavior_logprobs: NDArray[np.float32]
    old_logprobs: NDArray[np.float32]
    token_lags: NDArray[np.int32]
    advantage: float
    token_weight: float
    token_count: float = 1.0
    kl_coefficient: float = 0.0

    @property
    def has_gradient(self) -> bool:
        """Whether it can change the weights: without a KL term a response of advantage 0 adds exactly nothing."""
        factors = self.advantage * self.token_weight, self.kl_coefficient * self.token_weight
        return any(factor != 0 for factor in factors) and len(self.token_ids) > 0
