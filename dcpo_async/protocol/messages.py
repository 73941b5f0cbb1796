"""Messages between actors and coordinator: small validated headers; arrays travel beside them as raw frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dcpo_async.config import ActorSettings, GradingSettings, SamplingSettings
from dcpo_async.limits import ChunkBytes, Column, Credit, Held, Name, Seconds, Segments, Sentence, ShownName, Text
from dcpo_async.records import Count, FinishReason, GroupOutcome, Relay

PROTOCOL_VERSION = 7

Array = NDArray[Any]


class Message(BaseModel):
    """A header. Subclasses name their arrays and the little-endian type of each."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    kind: ClassVar[str]
    array_dtypes: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message with its arrays and the words that every message carries.

    Attributes:
        message: the header.
        arrays: one-dimensional arrays, by the names in `message.array_dtypes`.
        run_id: empty in a hello that asks for whatever run the learner is on.
        incarnation: start number of the coordinator, 0 in a first hello.
    """

    message: Message
    arrays: Mapping[str, Array] = field(default_factory=dict)
    run_id: str = ""
    incarnation: int = 0


# ---- actor → coordinator


class Hello(Message):
    """An actor joins, or joins again after a restart of the coordinator with what it holds."""

    kind = "hello"
    session_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$", repr=False)]
    """A secret, by which this actor alone can come back to what it holds after its connection broke."""
    name: ShownName
    host: ShownName
    engine: ShownName
    role: Literal["actor", "evaluator"] = "actor"
    """An evaluator follows the weights and never wants a lease; it is not counted as an actor."""
    held: Held = ()
    """Leases being worked on, and those whose groups are not acknowledged yet."""
    relay: Relay = ""
    gpus: Count = 0
    """That its engine spans; 0 on a CPU."""


class Want(Message):
    """Credit: the actor has room for this many further leases."""

    kind = "want"
    num_leases: Credit


class GroupMessage(Message):
    """A finished group; arrays hold the responses one after another, their texts in UTF-8."""

    kind = "group"
    array_dtypes = {"token_ids": "<i4", "behavior_logprobs": "<f4", "texts": "|u1"}
    position: Count
    attempt: Count
    lengths: Column[Count]
    segments: Column[Segments]
    finish_reasons: Column[FinishReason]
    rewards: Column[float]
    reasons: Column[Sentence]
    text_lengths: Column[Count]
    seconds: tuple[Seconds, Seconds, Seconds] = (0.0, 0.0, 0.0)
    """Of waiting for weights, of generation, of grading."""


class LeaseFailed(Message):
    """The actor could not finish a lease and gives it back."""

    kind = "lease_failed"
    position: Count
    attempt: Count
    reason: Sentence
    is_prompts_fault: bool
    """False when the actor drains or its engine died: such a return does not count towards quarantine."""


class Heartbeat(Message):
    """The actor is alive and holds exactly these leases; `lost_relay` was silent, or sent wrong bytes."""

    kind = "heartbeat"
    held: Held
    weights_version: Count
    tokens_generated: Count
    """Response tokens since the session began."""
    groups_in_flight: Count
    responses_in_flight: Count = 0
    response_capacity: Count = 0
    preemptions: Count = 0
    update: tuple[Seconds, Seconds, Seconds] | None = None
    """Of the last change of weights: seconds of the fetch, of the pause, and since its end."""
    canary_difference: Annotated[float, Field(ge=0)] | None = None
    """Largest difference from the canary of `weights_version`, in nats; none where the version has no canary."""
    canary_refusals: Count = 0
    """Versions since the session began that the engine, once it had applied them, was found not to hold."""
    relay: Relay = ""
    lost_relay: Relay = ""


class Bye(Message):
    """The actor leaves; whatever it still holds goes back."""

    kind = "bye"
    reason: Sentence
    canary_refusals: Count = 0
    """As in the heartbeat: one that makes an actor leave is in no heartbeat any more."""


# ---- coordinator → actor


class Welcome(Message):
    """All that an actor needs to know about the run."""

    kind = "welcome"
    weights_port: Annotated[int, Field(ge=1, le=65535)]
    weights_version: Count
    ask: Relay = ""
    seed: Count
    dtype: Literal["bfloat16", "float32"]
    max_prompt_tokens: Annotated[int, Field(gt=0)]
    sampling: SamplingSettings
    grading: GradingSettings
    actor: ActorSettings
    heartbeat_seconds: Annotated[float, Field(gt=0)]
    silence_seconds: Annotated[float, Field(gt=0)]
    chunk_bytes: ChunkBytes


class LeaseMessage(Message):
    """One visit of one prompt to answer."""

    kind = "lease"
    array_dtypes = {"prompt_token_ids": "<i4"}
    position: Count
    attempt: Count
    prompt_id: Name
    visit: Annotated[int, Field(ge=1)]
    min_version: Count
    answer: Text


class Ack(Message):
    """The group is durable, or was before; the actor may forget it."""

    kind = "ack"
    position: Count
    attempt: Count
    outcome: GroupOutcome
    detail: Sentence = ""


class Reject(Message):
    """The coordinator will not talk on as things are."""

    kind = "reject"
    reason: Literal["rejoin", "protocol_version", "run_id", "draining", "invalid"]
    detail: Sentence


class VersionMessage(Message):
    """A weights version has been published; `ask` is whom to ask for it first, before the weight server."""

    kind = "version"
    weights_version: Count
    step: Count
    ask: Relay = ""
