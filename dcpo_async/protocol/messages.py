"""Every message of the system: small validated headers; arrays travel beside them as raw frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dcpo_async.records import FinishReason

PROTOCOL_VERSION = 2

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Text = Annotated[str, Field(max_length=1 << 20)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
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


class LeaseName(BaseModel):
    """Names a lease without its content."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    position: Count
    attempt: Count


class Hello(Message):
    """An actor joins, or joins again after a restart of the coordinator with what it holds."""

    kind = "hello"
    session_id: Name
    host: Name
    engine: Name
    role: Literal["actor", "evaluator"] = "actor"
    """An evaluator follows the weights and never wants a lease; it is not counted as an actor."""
    held: tuple[LeaseName, ...] = ()
    """Leases being worked on, and those whose groups are not acknowledged yet."""


class Want(Message):
    """Credit: the actor has room for this many further leases."""

    kind = "want"
    num_leases: Annotated[int, Field(ge=0, le=1 << 16)]


class GroupMessage(Message):
    """A finished group; arrays hold the responses one after another."""

    kind = "group"
    array_dtypes = {"token_ids": "<i4", "behavior_logprobs": "<f4"}
    position: Count
    attempt: Count
    lengths: tuple[Count, ...]
    segments: tuple[tuple[tuple[Count, Count], ...], ...]
    finish_reasons: tuple[FinishReason, ...]
    rewards: tuple[float, ...]
    reasons: tuple[Text, ...]
    texts: tuple[Text, ...]


class LeaseFailed(Message):
    """The actor could not finish a lease and gives it back."""

    kind = "lease_failed"
    position: Count
    attempt: Count
    reason: Text
    is_prompts_fault: bool
    """False when the actor drains or its engine died: such a return does not count towards quarantine."""


class Heartbeat(Message):
    """The actor is alive and holds exactly these leases."""

    kind = "heartbeat"
    held: tuple[LeaseName, ...]
    weights_version: Count
    tokens_generated: Count
    """Response tokens since the session began."""
    groups_in_flight: Count


class Bye(Message):
    """The actor leaves; whatever it still holds goes back."""

    kind = "bye"
    reason: Text


# ---- coordinator → actor


class Welcome(Message):
    """All that an actor needs to know about the run."""

    kind = "welcome"
    weights_port: Annotated[int, Field(ge=1, le=65535)]
    weights_version: Count
    group_size: Annotated[int, Field(ge=2)]
    temperature: Annotated[float, Field(gt=0)]
    max_response_tokens: Annotated[int, Field(gt=0)]
    max_prompt_tokens: Annotated[int, Field(gt=0)]
    seed: Count
    dtype: Literal["bfloat16", "float32"]
    extraction: Literal["boxed", "answer", "last_number"]
    format_penalty: float
    grading_timeout_seconds: float
    grading_workers: Annotated[int, Field(gt=0)]
    groups_in_flight: Annotated[int, Field(gt=0)]
    kv_after_update: Literal["keep", "recompute"]
    heartbeat_seconds: Annotated[float, Field(gt=0)]
    silence_seconds: Annotated[float, Field(gt=0)]
    chunk_bytes: Annotated[int, Field(gt=0)]


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
    outcome: Literal["accepted", "duplicate", "superseded", "invalid"]
    detail: Text = ""


class Reject(Message):
    """The coordinator will not talk on as things are."""

    kind = "reject"
    reason: Literal["rejoin", "protocol_version", "run_id", "draining", "invalid"]
    detail: Text


class VersionMessage(Message):
    """A weights version has been published."""

    kind = "version"
    weights_version: Count
    step: Count


# ---- actor ↔ weight server


class ManifestWant(Message):
    """Asks for the manifest of a version; 0 asks for the newest."""

    kind = "manifest_want"
    weights_version: Count


class ManifestMessage(Message):
    """The manifest of a version as JSON, or why there is none."""

    kind = "manifest"
    weights_version: Count
    manifest_json: Annotated[str, Field(max_length=64 << 20)]
    error: Text = ""


class ChunkWant(Message):
    """Asks for a stretch of one file of a version."""

    kind = "chunk_want"
    weights_version: Count
    file: Name
    offset: Count
    num_bytes: Annotated[int, Field(gt=0, le=1 << 28)]


class ChunkMessage(Message):
    """The stretch, or why there is none."""

    kind = "chunk"
    array_dtypes = {"data": "|u1"}
    weights_version: Count
    file: Name
    offset: Count
    error: Text = ""


# ---- trainer rank ↔ coordinator, over a local socket


class TrainerHello(Message):
    """A rank is up, with its state after `step` optimizer steps."""

    kind = "trainer_hello"
    rank: Count
    num_ranks: Annotated[int, Field(gt=0)]
    step: Count


class ShardWant(Message):
    """A rank asks for its shard of the batch that leads from `step` to `step + 1`."""

    kind = "shard_want"
    rank: Count
    num_ranks: Annotated[int, Field(gt=0)]
    step: Count


class ShardMessage(Message):
    """A rank's samples of one optimizer step, as parallel columns; arrays hold the samples one after another."""

    kind = "shard"
    array_dtypes = {
        "prompt_token_ids": "<i4",
        "token_ids": "<i4",
        "behavior_logprobs": "<f4",
        "old_logprobs": "<f4",
        "token_lags": "<i4",
    }
    step: Count
    positions: tuple[Count, ...]
    indices: tuple[Count, ...]
    prompt_lengths: tuple[Count, ...]
    lengths: tuple[Count, ...]
    advantages: tuple[float, ...]
    token_weights: tuple[float, ...]


class OldLogprobs(Message):
    """A rank's log-probs of a shard at the start of its batch (`old: proximal`), in the order of the shard."""

    kind = "old_logprobs"
    array_dtypes = {"old_logprobs": "<f4"}
    step: Count
    rank: Count
    positions: tuple[Count, ...]
    indices: tuple[Count, ...]
    lengths: tuple[Count, ...]


class StepDone(Message):
    """Rank 0: the optimizer step that led to `step` is done."""

    kind = "step_done"
    step: Count
    metrics: dict[str, float]


class VersionWant(Message):
    """Rank 0 asks for the number under which it may publish its state after `step` steps."""

    kind = "version_want"
    step: Count


class VersionGrant(Message):
    """A number that was never used before."""

    kind = "version_grant"
    weights_version: Count
    step: Count
    incarnation: Count


class Published(Message):
    """Rank 0: the version stands whole in the weight store."""

    kind = "published"
    weights_version: Count
    step: Count


class Checkpointed(Message):
    """Rank 0: the checkpoint after `step` steps stands whole; `retained` lists all that stand."""

    kind = "checkpointed"
    step: Count
    retained: tuple[Count, ...]


class TrainerFinished(Message):
    """Coordinator → ranks: the run has reached its last step; checkpoint, export and end."""

    kind = "finished"
    step: Count


MESSAGE_TYPES: Mapping[str, type[Message]] = {cls.kind: cls for cls in Message.__subclasses__()}


def concatenated(arrays: list[Array], dtype: str) -> Array:
    """Join one-dimensional arrays; an empty list gives an empty array of that type."""
    return np.concatenate([np.asarray(a, dtype=dtype) for a in arrays]) if arrays else np.empty(0, dtype=dtype)
