"""Actors without engines, many to a process: real sessions over real sockets, which answer after a while."""

import asyncio
import gc
import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import zmq
import zmq.asyncio

from dcpo_async.protocol.codec import decode, encode
from dcpo_async.protocol.conversion import made_by
from dcpo_async.protocol.events import GroupAcknowledged, Joined, LeaseGranted
from dcpo_async.protocol.messages import Hello, Want
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import Group, Lease, Response, VersionSegment

MAX_BYTES = 1 << 30
GROUP_SIZE, RESPONSE_TOKENS = 8, 200
GROUP_TOKENS = GROUP_SIZE * RESPONSE_TOKENS
POLL_SECONDS = 5.0
"""A session says itself when it is due; groups are sent when they are ready."""


@dataclass(slots=True)
class Seen:
    """What actors saw, in seconds.

    Attributes:
        acks: from the sending of a group to its acknowledgement.
        leases: from a want to its lease.
        groups: acknowledged.
    """

    acks: list[float] = field(default_factory=list)
    leases: list[float] = field(default_factory=list)
    groups: int = 0


class SimulatedActor:
    """A session that holds one lease, answered after a time that is drawn evenly around a mean.

    Args:
        context: shared by all actors of the process.
        mean_seconds: from a lease to its group.
    """

    def __init__(self, context: zmq.asyncio.Context, address: str, number: int, mean_seconds: float) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)
        self._draws = np.random.default_rng(number)
        self._mean_seconds = mean_seconds
        now = time.monotonic()
        hello = Hello(
            session_id=secrets.token_hex(16), name=f"actor-{number}", host=f"host-{number}", engine="simulated"
        )
        self._session = ActorSession(hello, address, now, join_timeout_seconds=120.0, rejoin_timeout_seconds=600.0)
        self._wanted_at: float | None = None
        self._sent_at: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen = Seen()

    async def run(self) -> None:
        """Serve until this is cancelled."""
        try:
            while True:
                await self._send_due()
                wait = min(self._session.seconds_until_due(time.monotonic()), POLL_SECONDS)
                if await self._socket.poll(max(1, int(wait * 1000))):
                    self._take(decode(await self._socket.recv_multipart(), MAX_BYTES))
        finally:
            for task in self._tasks:
                task.cancel()

    async def _send_due(self) -> None:
        now = time.monotonic()
        for envelope in self._session.messages_due(now):
            if isinstance(envelope.message, Want) and envelope.message.num_leases:
                self._wanted_at = self._wanted_at or now
            await self._socket.send_multipart(encode(envelope))

    def _take(self, envelope: object) -> None:
        now = time.monotonic()
        for event in self._session.on_envelope(envelope, now):  # type: ignore[arg-type]
            if isinstance(event, Joined):
                # One group's worth of responses at a time.
                self._session.capacity = event.welcome.sampling.group_size
            elif isinstance(event, LeaseGranted):
                if self._wanted_at is not None:
                    self.seen.leases.append(now - self._wanted_at)
                    self._wanted_at = None
                task = asyncio.create_task(self._answer(event.lease, made_by(event.welcome)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif isinstance(event, GroupAcknowledged):
                assert event.ack.outcome == "accepted", event.ack
                self.seen.acks.append(now - self._sent_at.pop(event.ack.position))
                self.seen.groups += 1

    async def _answer(self, lease: Lease, settings: str) -> None:
        await asyncio.sleep(self._draws.uniform(0.5, 1.5) * self._mean_seconds)
        now = time.monotonic()
        self._sent_at[lease.position] = now
        self._session.finish(self._group(lease, settings), now)
        await self._send_due()

    def _group(self, lease: Lease, settings: str) -> Group:
        responses = tuple(
            Response(
                token_ids=self._draws.integers(0, 1000, RESPONSE_TOKENS, dtype=np.int32),
                behavior_logprobs=np.full(RESPONSE_TOKENS, -1.0, dtype=np.float32),
                segments=(VersionSegment(max(1, lease.min_version), RESPONSE_TOKENS),),
                finish_reason="stop",
                text="x" * 4 * RESPONSE_TOKENS,
            )
            for _ in range(GROUP_SIZE)
        )
        rewards = tuple(float(reward) for reward in self._draws.integers(0, 2, GROUP_SIZE))
        return Group(lease.position, lease.attempt, responses, rewards, ("equal",) * GROUP_SIZE, made_by=settings)


async def crowd(address: str, numbers: range, mean_seconds: float, seconds: float, warm_up: float) -> Sequence[Seen]:
    """Run actors for a while; what they saw before the warm-up's end is left out.

    Args:
        numbers: of the actors, which name them.
        mean_seconds: from a lease to its group.
    """
    if not numbers:
        return []
    context = zmq.asyncio.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, len(numbers) + 100)
    actors = [SimulatedActor(context, address, number, mean_seconds) for number in numbers]
    tasks = [asyncio.create_task(actor.run()) for actor in actors]
    await asyncio.sleep(warm_up)
    # Collecting the objects of a thousand stops them all for 0.1 s, as it never does an actor in a process of its own.
    gc.freeze()
    for actor in actors:
        actor.seen = Seen()
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    context.destroy(linger=0)
    return [actor.seen for actor in actors]


def main() -> None:
    """Run actors in this process, and print what they saw."""
    address, first, end, *times = sys.argv[1:]
    seen = asyncio.run(crowd(address, range(int(first), int(end)), *map(float, times)))
    print(json.dumps([asdict(each) for each in seen]))


if __name__ == "__main__":
    main()
