"""A trainer that takes no time, as the coordinator sees one: a process of its own, as ranks are."""

import asyncio
import sys
from typing import TypeVar

from dcpo_async.limits import MAX_MESSAGE_BYTES
from dcpo_async.protocol.messages import Envelope, Message
from dcpo_async.protocol.trainer_messages import (
    Published,
    ShardMessage,
    ShardWant,
    StepDone,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.transport.zmq_channel import DealerChannel

M = TypeVar("M", bound=Message)


class InstantRank:
    """Says all that trainer and publisher say, and trains nothing.

    Args:
        channel: to a coordinator that is on a run called "run".
        incarnation: of that start of it.

    Attributes:
        step: optimizer steps taken.
    """

    def __init__(self, channel: Dealer, incarnation: int) -> None:
        self._channel, self._incarnation = channel, incarnation
        self.step = 0

    async def run(self) -> None:
        """Publish, take a shard, be done, without end."""
        await self._say(TrainerHello(rank=0, num_ranks=1, step=0))
        while True:
            await self._say(VersionWant(step=self.step))
            grant = await self._hear(VersionGrant)
            await self._say(Published(weights_version=grant.weights_version, step=self.step))
            await self._say(ShardWant(rank=0, num_ranks=1, step=self.step))
            await self._hear(ShardMessage)
            self.step += 1
            await self._say(StepDone(step=self.step, metrics={"step_seconds": 0.0}))

    async def _say(self, message: Message) -> None:
        await self._channel.send(Envelope(message, {}, "run", self._incarnation))

    async def _hear(self, kind: type[M]) -> M:
        while True:
            envelope = await self._channel.receive(60.0)
            if envelope is not None and isinstance(envelope.message, kind):
                return envelope.message


async def _train(address: str, incarnation: int) -> None:
    await InstantRank(DealerChannel(address, MAX_MESSAGE_BYTES), incarnation).run()


if __name__ == "__main__":
    asyncio.run(_train(sys.argv[1], int(sys.argv[2])))
