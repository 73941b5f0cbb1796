"""A trainer rank's side of its talk with the coordinator: facts are told, questions asked again until answered."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from dcpo_async.errors import PeerLostError, ProtocolError, TrainerError
from dcpo_async.protocol.messages import (
    Array,
    Envelope,
    Message,
    Reject,
    ShardMessage,
    ShardWant,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.transport.interfaces import Dealer

logger = logging.getLogger(__name__)

RESEND_SECONDS = 5.0
"""A question is asked again this often; the coordinator answers the same question alike."""
REPORT_SECONDS = 60.0
"""A wait is logged this often."""


@dataclass(slots=True)
class CoordinatorLink:
    """Asks and tells the coordinator, and joins it again when it has been restarted.

    Attributes:
        channel: carries envelopes to the coordinator.
        address: the coordinator's, for messages to people.
        run_id: goes with every message.
        rank, num_ranks: who this is.
        step: optimizer steps done; kept up to date by the trainer, for a coordinator that has been restarted.
        incarnation: start number of the coordinator that was heard last.
    """

    channel: Dealer
    address: str
    run_id: str
    rank: int
    num_ranks: int
    step: int = 0
    incarnation: int = 0
    resend_seconds: float = RESEND_SECONDS
    _facts: dict[type[Message], Message] = field(default_factory=dict)

    async def join(self) -> None:
        """Say hello, and repeat the newest fact of each kind: a coordinator that died may not have stored it."""
        await self._send(TrainerHello(rank=self.rank, num_ranks=self.num_ranks, step=self.step))
        for fact in self._facts.values():
            await self._send(fact)

    async def tell(self, fact: Message) -> None:
        """Send something that the coordinator may hear twice without harm."""
        self._facts[type(fact)] = fact
        await self._send(fact)

    async def hand_over(self, message: Message, arrays: Mapping[str, Array]) -> None:
        """Send data once; the coordinator asks for it again by serving its shard without it."""
        await self._send(message, arrays)

    async def ask_for_shard(self, step: int, deadline_seconds: float) -> Envelope:
        """Return this rank's shard of the update after `step`, or the word that the run has reached its end.

        Raises:
            TrainerError: no answer within the deadline, or a refusal.
        """
        request = ShardWant(rank=self.rank, num_ranks=self.num_ranks, step=step)
        return await self._ask(request, step, (ShardMessage, TrainerFinished), deadline_seconds)

    async def ask_for_version(self, deadline_seconds: float) -> VersionGrant:
        """Return the number under which the weights as they are may be published.

        Raises:
            TrainerError: no answer within the deadline, or a refusal.
        """
        answer = (await self._ask(VersionWant(step=self.step), self.step, (VersionGrant,), deadline_seconds)).message
        assert isinstance(answer, VersionGrant)
        return answer

    async def _ask(
        self, request: Message, step: int, answers: tuple[type[Message], ...], deadline_seconds: float
    ) -> Envelope:
        started = time.monotonic()
        report_at = started + REPORT_SECONDS
        await self._send(request)
        while (now := time.monotonic()) < started + deadline_seconds:
            if now > report_at:
                report_at = now + REPORT_SECONDS
                logger.info("%s of step %d: %.0f s without an answer", request.kind, step, now - started)
            answer = await self.channel.receive(self.resend_seconds)
            if answer is None:
                await self._send(request)
                continue
            self.incarnation = answer.incarnation
            if isinstance(answer.message, Reject):
                await self._join_again(answer.message)
            elif isinstance(answer.message, answers) and getattr(answer.message, "step", None) == step:
                return answer
            # Anything else answers a question that was asked again too early.
        raise TrainerError(
            f"rank {self.rank}: the coordinator at {self.address} has not answered {request.kind} of step "
            f"{step} for {deadline_seconds:.0f} s; see whether it runs and whether actors are connected"
        )

    async def _join_again(self, reject: Reject) -> None:
        if reject.reason != "rejoin":
            raise TrainerError(f"rank {self.rank}: the coordinator at {self.address} refused: {reject.detail}")
        logger.info("the coordinator at %s has been restarted: joining it again", self.address)
        await self.join()

    async def _send(self, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        envelope = Envelope(message, arrays=arrays or {}, run_id=self.run_id, incarnation=self.incarnation)
        try:
            await self.channel.send(envelope)
        except PeerLostError as error:
            # Nothing is lost for good: questions are asked again, and facts told again on joining.
            logger.warning("%s was not sent: %s", message.kind, error)


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
    ends = list(accumulate(lengths))
    return np.split(array, ends[:-1]) if ends else []
