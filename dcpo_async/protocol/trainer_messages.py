"""Messages between the ranks of the trainer and the coordinator."""

from typing import Annotated, Literal

from pydantic import Field

from dcpo_async.limits import MAX_TEXT, Sentence, ShownName
from dcpo_async.protocol.messages import Message
from dcpo_async.records import Count

NodeState = Literal["idle", "running", "ended", "failed"]
"""Of a machine's ranks: none run, all run, all have ended well, one has failed and none run."""


class TrainerHello(Message):
    """A rank is up, with its state after `step` optimizer steps."""

    kind = "trainer_hello"
    rank: Count
    num_ranks: Annotated[int, Field(gt=0, le=1 << 16)]
    step: Count


class ShardWant(Message):
    """A rank asks for its shard of the batch that leads from `step` to `step + 1`."""

    kind = "shard_want"
    rank: Count
    num_ranks: Annotated[int, Field(gt=0, le=1 << 16)]
    step: Count
    pair_cost: Annotated[float, Field(ge=0)] = 0.0
    """Work of the model's attention between two tokens, in tokens; the same from all ranks, which share by it."""


class ShardMessage(Message):
    """A rank's samples of one optimizer step, as parallel columns; arrays hold the samples one after another.

    `settings` are those that were changed while the run went on, as they are at this step, by their dotted names.
    """

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
    token_counts: tuple[float, ...]
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    settings: Annotated[dict[str, int | float | None], Field(max_length=64)] = {}


class OldLogprobs(Message):
    """A rank's log-probs of a shard at the start of its batch (`old: proximal`), in the order of the shard."""

    kind = "old_logprobs"
    array_dtypes = {"old_logprobs": "<f4"}
    step: Count
    positions: tuple[Count, ...]
    indices: tuple[Count, ...]
    lengths: tuple[Count, ...]


class StepDone(Message):
    """Rank 0: the optimizer step that led to `step` is done."""

    kind = "step_done"
    step: Count
    metrics: dict[str, float]


class VersionWant(Message):
    """The publisher asks for the number under which it may publish the state after `step` steps."""

    kind = "version_want"
    step: Count


class VersionGrant(Message):
    """A number that was never used before."""

    kind = "version_grant"
    weights_version: Count
    step: Count


class Published(Message):
    """The publisher: the version stands whole in the weight store.

    Attributes:
        seconds: since the state was whole in a shared buffer.
        num_bytes: of the version's files.
        patch_bytes: of the patch from the version before, 0 without one.
        num_skipped: states that were overtaken since the version before.
    """

    kind = "published"
    weights_version: Count
    step: Count
    seconds: Annotated[float, Field(ge=0)] = 0.0
    num_bytes: Count = 0
    patch_bytes: Count = 0
    num_skipped: Count = 0


class PublishedAck(Message):
    """The coordinator has heard that a version stands; it answers every time that it is told."""

    kind = "published_ack"
    weights_version: Count
    step: Count


class Checkpointed(Message):
    """Rank 0: the checkpoint after `step` steps stands whole.

    Attributes:
        retained: steps of all that stand.
        seconds: since the state was copied.
        num_bytes: of its files.
        num_put_off: batches for which it waited until the one before was written.
    """

    kind = "checkpointed"
    step: Count
    retained: tuple[Count, ...]
    seconds: Annotated[float, Field(ge=0)] = 0.0
    num_bytes: Count = 0
    num_put_off: Count = 0


class CheckpointFailed(Message):
    """Rank 0: the checkpoint after `step` steps could not be written; the next one that is due is tried.

    Attributes:
        reason: which rank could not, and why.
        failures_left: so many more in a row are borne.
    """

    kind = "checkpoint_failed"
    step: Count
    reason: Sentence
    failures_left: Count


class TrainerFinished(Message):
    """Coordinator → ranks: no batch follows; write a checkpoint and end.

    Attributes:
        is_stopped: for now; else the run has reached its last step, and the model is exported.
    """

    kind = "finished"
    step: Count
    is_stopped: bool = False


class NodeHello(Message):
    """The launcher of another machine than the coordinator's is there.

    Attributes:
        session: newly drawn at each start of a launcher; the newest one is the machine.
        node, num_nodes, num_local: its number, of how many machines, and the ranks of each.
        model: digest of its copy of the model.
        versions: of the libraries that ranks must have in common, "NAME VERSION".
    """

    kind = "node_hello"
    session: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    node: Count
    num_nodes: Count
    num_local: Count
    model: ShownName
    versions: Annotated[tuple[ShownName, ...], Field(max_length=16)]


class NodeWelcome(Message):
    """Coordinator → machine: the settings of the run, as JSON; paths in them are those of the coordinator's machine."""

    kind = "node_welcome"
    config: Annotated[str, Field(max_length=MAX_TEXT)]


class NodeBeat(Message):
    """A machine says every second what its ranks of a round of starts do; `reason` is why they failed."""

    kind = "node_beat"
    session: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    node: Count
    round_number: Count
    state: NodeState
    reason: Sentence = ""


class NodeOrder(Message):
    """Coordinator → machine: the round whose ranks are to run, 0 for none; `over` is why no other will follow."""

    kind = "node_order"
    round_number: Count
    over: Sentence = ""
