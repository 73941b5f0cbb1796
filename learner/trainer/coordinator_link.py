"""What ranks and publisher say to the coordinator: facts are told, questions asked until they are answered."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dcpo_async.columns import parted
from dcpo_async.errors import PeerLostError, ProtocolError, TrainerError, UnansweredError
from dcpo_async.protocol.messages import Array, Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import (
    Published,
    PublishedAck,
    ShardMessage,
    ShardWant,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.supervision import sign_of_progress
from dcpo_async.transport.interfaces import Dealer

log = logging.getLogger(__name__)

ANSWER_DEADLINE_SECONDS = 30 * 24 * 3600.0
"""Actors decide how long a batch takes, and all may be away, or the disk full, for days; the wait is logged."""
RESEND_SECONDS = 5.0
"""A question is asked again this often; the coordinator answers the same question alike."""
REPORT_SECONDS = 60.0
"""A wait is logged this often."""
WAIT_SECONDS = 4 * RESEND_SECONDS
"""Who waits looks for an answer every RESEND_SECONDS, and is stopped or stuck where it has not for so long."""
WORK_SECONDS = 60.0
"""Until who has its answer gives the next sign of progress, unless it is told otherwise."""


@dataclass(slots=True)
class CoordinatorLink:
    """Asks and tells the coordinator, which starts and ends with its ranks.

    Attributes:
        channel: carries envelopes to the coordinator.
        address: the coordinator's, for messages to people.
        run_id, incarnation: go with every message: the coordinator turns away who is of another start.
        name: of this side, for messages to people.
        resend_seconds: a question is asked again this often.
        work_seconds: once there is an answer, so long until the next sign of progress at the latest.
    """

    channel: Dealer
    address: str
    run_id: str
    incarnation: int
    name: str
    resend_seconds: float = RESEND_SECONDS
    work_seconds: float = WORK_SECONDS

    async def tell(self, fact: Message, arrays: Mapping[str, Array] | None = None) -> None:
        """Send something once."""
        try:
            await self.channel.send(Envelope(fact, arrays or {}, self.run_id, self.incarnation))
        except PeerLostError as error:
            log.warning("%s was not sent: %s", fact.kind, error)

    async def ask_for_version(self, step: int, deadline_seconds: float) -> int:
        """The number under which the weights after `step` may be published.

        Raises:
            UnansweredError: no answer within the deadline.
            TrainerError: a refusal.
        """
        answer = await self._ask(VersionWant(step=step), step, (VersionGrant,), deadline_seconds)
        assert isinstance(answer.message, VersionGrant)
        return answer.message.weights_version

    async def announce(self, published: Published, deadline_seconds: float) -> None:
        """Tell that a version stands, until the coordinator has heard it.

        Raises:
            UnansweredError: no answer within the deadline.
            TrainerError: a refusal.
        """
        await self._ask(published, published.step, (PublishedAck,), deadline_seconds)

    async def _ask(
        self, request: Message, step: int, answers: tuple[type[Message], ...], deadline_seconds: float
    ) -> Envelope:
        started = time.monotonic()
        report_at = started + REPORT_SECONDS
        await self.tell(request)
        while (now := time.monotonic()) < started + deadline_seconds:
            sign_of_progress(f"{self.name} waits for the answer to {request.kind} of step {step}", WAIT_SECONDS)
            if now > report_at:
                report_at = now + REPORT_SECONDS
                log.info("%s of step %d: %.0f s without an answer", request.kind, step, now - started)
            answer = await self.channel.receive(self.resend_seconds)
            if answer is None:
                await self.tell(request)
            elif isinstance(answer.message, Reject):
                detail = answer.message.detail
                raise TrainerError(f"{self.name}: the coordinator at {self.address} refused: {detail}")
            elif isinstance(answer.message, answers) and getattr(answer.message, "step", None) == step:
                sign_of_progress(f"{self.name} has the answer to {request.kind} of step {step}", self.work_seconds)
                return answer
            # Anything else answers a question that was asked again too early.
        raise UnansweredError(
            f"{self.name}: the coordinator at {self.address} has not answered {request.kind} of step "
            f"{step} for {deadline_seconds:.0f} s; see whether it runs and whether actors are connected"
        )


@dataclass(slots=True, kw_only=True)
class RankLink(CoordinatorLink):
    """A trainer rank's.

    Attributes:
        rank, num_ranks: who this is.
        sequence_parallel: ranks that share the tokens of their samples; neighbours ask for the same shards.
        pair_cost: of the model, by which the ranks' work is balanced; the same on all of them.
        is_stopped: the run will go on later; known once there is no further shard.
        on_settings: called before a batch is trained with what was changed of the settings while the run went on.
    """

    rank: int
    num_ranks: int
    sequence_parallel: int = 1
    pair_cost: float = 0.0
    is_stopped: bool = False
    on_settings: Callable[[Mapping[str, float | None]], None] = lambda settings: None

    async def join(self, step: int) -> None:
        """Say hello, with the steps that this rank's state has behind it."""
        await self.tell(TrainerHello(rank=self.rank, num_ranks=self.num_ranks, step=step))

    async def tell_once(self, fact: Message, arrays: Mapping[str, Array]) -> None:
        """Send something about a shard once, whichever ranks share it."""
        if self.rank % self.sequence_parallel == 0:
            await self.tell(fact, arrays)

    async def ask_for_shard(
        self, step: int, deadline_seconds: float = ANSWER_DEADLINE_SECONDS
    ) -> list[TrainingSample] | None:
        """This rank's samples of the update after `step`; None when the run has reached its end, or is stopped.

        Raises:
            UnansweredError: no answer within the deadline.
            TrainerError: a refusal.
        """
        shared = self.sequence_parallel
        shard, num_shards = self.rank // shared, self.num_ranks // shared
        request = ShardWant(rank=shard, num_ranks=num_shards, step=step, pair_cost=self.pair_cost)
        answer = await self._ask(request, step, (ShardMessage, TrainerFinished), deadline_seconds)
        if isinstance(answer.message, TrainerFinished):
            self.is_stopped = answer.message.is_stopped
            return None
        assert isinstance(answer.message, ShardMessage)
        self.on_settings(answer.message.settings)
        return samples_of(answer)


def samples_of(shard: Envelope) -> list[TrainingSample]:
    """Return the samples of a shard.

    Raises:
        ProtocolError: columns or arrays that do not fit together.
    """
    message, arrays = shard.message, shard.arrays
    assert isinstance(message, ShardMessage)
    prompts = _split(arrays["prompt_token_ids"], message.prompt_lengths, "prompt_token_ids")
    by_token = {
        name: _split(arrays[name], message.lengths, name)
        for name in ("token_ids", "behavior_logprobs", "old_logprobs", "token_lags")
    }
    columns = (
        message.positions,
        message.indices,
        prompts,
        *by_token.values(),
        message.advantages,
        message.token_weights,
        message.token_counts,
        (message.kl_coefficient,) * len(message.positions),
    )
    if len({len(column) for column in columns}) > 1:
        raise ProtocolError(
            f"shard of step {message.step}: columns of {[len(column) for column in columns]} samples; "
            "all must have the same number"
        )
    return [TrainingSample(*values) for values in zip(*columns, strict=True)]


def _split(array: Array, lengths: tuple[int, ...], name: str) -> list[Array]:
    if sum(lengths) != len(array):
        raise ProtocolError(f"{name}: {len(array)} elements for lengths that add up to {sum(lengths)}")
    return parted(array, lengths)
