"""Messages between actors and coordinator: small validated headers; arrays travel beside them as raw frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcpo_async import limits
from dcpo_async.columns import aligned
from dcpo_async.config import ActorSettings, GradingSettings, SamplingSettings
from dcpo_async.records import Activity, Count, EvaluationTerms, FinishReason, GroupOutcome, Hold, Relay

PROTOCOL_VERSION = 8

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
        incarnation, version: start of the coordinator, from 1, 0 in a first hello; protocol that its sender speaks.
    """

    message: Message
    arrays: Mapping[str, Array] = field(default_factory=dict)
    run_id: str = ""
    incarnation: int = 0
    version: int = PROTOCOL_VERSION


# ---- actor → coordinator


class Hello(Message):
    """An actor joins, or again after a coordinator's restart, with what it holds: in work, or not acknowledged yet."""

    kind = "hello"
    session_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$", repr=False)]
    """A secret, by which this actor alone can come back to what it holds after its connection broke."""
    name: limits.ShownName
    host: limits.ShownName
    engine: limits.ShownName
    role: Literal["actor", "evaluator"] = "actor"
    """An evaluator follows the weights and never wants a lease; it is not counted as an actor."""
    held: limits.Held = ()
    relay: Relay = ""
    gpus: Count = 0
    """That its engine spans; 0 on a CPU."""
    weights_version: Count = 0
    release: limits.Release = ""


class Want(Message):
    """Credit: the actor has room for this many leases beyond that of `number` num_received, the last that came."""

    kind = "want"
    num_leases: limits.Credit
    num_received: Count = 0


class GroupMessage(Message):
    """A finished group, responses one after another, texts in UTF-8; `made_by` is how it was sampled and graded."""

    kind = "group"
    array_dtypes = {"token_ids": "<i4", "behavior_logprobs": "<f4", "texts": "|u1"}
    position: Count
    attempt: Count
    lengths: limits.Column[Count]
    segments: limits.Column[limits.Segments]
    finish_reasons: limits.Column[FinishReason]
    rewards: limits.Column[float]
    reasons: limits.Column[limits.Sentence]
    text_lengths: limits.Column[Count]
    seconds: tuple[limits.Seconds, limits.Seconds, limits.Seconds] = (0.0, 0.0, 0.0)
    """Of waiting for weights, of generation, of grading."""
    made_by: Annotated[str, Field(max_length=64)] = ""


class LeaseFailed(Message):
    """The actor gives a lease back; only the prompt's fault, never a drain or a dead engine, leads to quarantine."""

    kind = "lease_failed"
    position: Count
    attempt: Count
    reason: limits.Sentence
    is_prompts_fault: bool


class Heartbeat(Message):
    """What the actor holds, response `tokens` of each lease so far; `lost_relay` was silent, or sent wrong bytes."""

    kind = "heartbeat"
    held: limits.Held
    tokens: limits.HeldTokens = ()
    engine_steps: Count = 0
    activity: Activity = "idle"
    weights_version: Count
    tokens_generated: Count
    """Response tokens since the session began."""
    groups_in_flight: Count
    responses_in_flight: Count = 0
    response_capacity: Count = 0
    preemptions: Count = 0
    update: tuple[limits.Seconds, limits.Seconds, limits.Seconds] | None = None
    """Of the last change of weights: seconds of the fetch, of the pause, and since its end."""
    canary_difference: Annotated[float, Field(ge=0)] | None = None
    """Largest difference from the canary of `weights_version`, in nats; none where the version has no canary."""
    canary_refusals: Count = 0
    """Versions since the session began that the engine, once it had applied them, was found not to hold."""
    relay: Relay = ""
    lost_relay: Relay = ""
    _is_whole = model_validator(mode="after")(aligned("held", "tokens"))


class Bye(Message):
    """The actor leaves, and its leases go back, perhaps the reason if `has_failed`; refusals as in a heartbeat."""

    kind = "bye"
    reason: limits.Sentence
    canary_refusals: Count = 0
    has_failed: bool = False


# ---- coordinator → actor


class Welcome(Message):
    """All that an actor needs to know about the run."""

    kind = "welcome"
    weights_port: Annotated[int, Field(ge=1, le=65535)]
    weights_version: Count
    ask: Relay = ""
    hold: Hold | None = None
    seed: Count
    dtype: Literal["bfloat16", "float32"]
    max_prompt_tokens: Annotated[int, Field(gt=0)]
    sampling: SamplingSettings
    grading: GradingSettings
    grading_by_source: Annotated[dict[limits.SourceName, GradingSettings], Field(max_length=limits.MAX_SOURCES)] = {}
    actor: ActorSettings
    heartbeat_seconds: Annotated[float, Field(gt=0)]
    silence_seconds: Annotated[float, Field(gt=0)]
    chunk_bytes: limits.ChunkBytes
    release: limits.Release = ""


class LeaseMessage(Message):
    """One visit of one prompt to answer: the session's lease number `number` since its hello."""

    kind = "lease"
    array_dtypes = {"prompt_token_ids": "<i4"}
    position: Count
    attempt: Count
    prompt_id: limits.Name
    visit: Annotated[int, Field(ge=1)]
    min_version: Count
    answer: limits.Text
    problem: limits.Text = ""
    metadata: limits.Text = ""
    source: limits.SourceName = ""
    terms: EvaluationTerms | None = None
    number: Count = 0


class Ack(Message):
    """The group is durable, or was before; the actor may forget it."""

    kind = "ack"
    position: Count
    attempt: Count
    outcome: GroupOutcome
    detail: limits.Sentence = ""


class Reject(Message):
    """The coordinator will not talk on as things are."""

    kind = "reject"
    reason: Literal["rejoin", "protocol_version", "run_id", "role", "draining", "stopping", "unsound", "invalid"]
    detail: limits.Sentence


class VersionMessage(Message):
    """A version was published; `ask` whom for it first, `hold` one to stay at, `drain` why to finish and leave."""

    kind = "version"
    weights_version: Count
    step: Count
    ask: Relay = ""
    hold: Hold | None = None
    drain: limits.Sentence = ""
