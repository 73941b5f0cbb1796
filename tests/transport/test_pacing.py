"""A paced router: no faster than its rate, in order, and each link by itself where that is asked for."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from dcpo_async.errors import PeerLostError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ManifestWant
from dcpo_async.transport.memory_channel import MemoryDealer, MemoryNetwork
from dcpo_async.transport.pacing import QUEUED_MESSAGES, PacedRouter


def chunk(num_bytes: int, offset: int = 0) -> Envelope:
    data = np.zeros(num_bytes, np.uint8)
    return Envelope(ChunkMessage(weights_version=1, file="a.txt", offset=offset), {"data": data}, "run")


@asynccontextmanager
async def paced(
    bytes_per_second: float, *, per_peer: bool = False
) -> AsyncIterator[tuple[PacedRouter, list[MemoryDealer]]]:
    network = MemoryNetwork()
    router = PacedRouter(network.router(), bytes_per_second, per_peer=per_peer)
    try:
        yield router, [network.dealer(name) for name in (b"a", b"b")]
    finally:
        router.close()


async def heard(dealer: MemoryDealer, count: int) -> list[int]:
    """The offsets of the next chunks."""
    envelopes = [await dealer.receive(5.0) for _ in range(count)]
    return [envelope.message.offset for envelope in envelopes if envelope]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("per_peer", "seconds"), [(False, 0.7), (True, 0.3)])
async def test_messages_leave_in_their_order_at_the_rate_and_after_a_burst(per_peer: bool, seconds: float) -> None:
    async with paced(10_000, per_peer=per_peer) as (router, dealers):
        started = time.monotonic()
        for offset in range(4):
            for peer in (b"a", b"b"):
                await router.send(peer, chunk(1000, offset))
        assert [await heard(dealer, 4) for dealer in dealers] == [[0, 1, 2, 3]] * 2
        took = time.monotonic() - started
    # Eight messages of 0.1 s each, or four on each of two links; the first is the burst.
    assert seconds - 0.01 <= took < seconds + 0.5


async def test_peers_that_share_the_rate_take_turns() -> None:
    async with paced(100_000) as (router, dealers):
        for offset in range(8):
            await router.send(b"a", chunk(10_000, offset))
        await router.send(b"b", chunk(10_000, 9))
        assert await heard(dealers[1], 1) == [9]
        assert await dealers[0].receive(0) is not None
        # What is left for the first: seven messages of a tenth of a second each, less the one on its way.
        assert await heard(dealers[0], 7) == [1, 2, 3, 4, 5, 6, 7]


async def test_one_slow_link_does_not_hold_up_another() -> None:
    async with paced(10_000, per_peer=True) as (router, dealers):
        await router.send(b"a", chunk(100_000))
        await router.send(b"b", chunk(500))
        assert await heard(dealers[1], 1) == [0]
        assert await dealers[0].receive(0.1) is None


async def test_a_pause_allows_no_more_than_the_burst() -> None:
    async with paced(10_000) as (router, dealers):
        await asyncio.sleep(0.5)
        started = time.monotonic()
        for offset in range(4):
            await router.send(b"a", chunk(1000, offset))
        await heard(dealers[0], 4)
        assert time.monotonic() - started >= 0.29


async def test_what_waits_is_bounded_and_what_comes_in_is_passed_on() -> None:
    async with paced(1.0) as (router, dealers):
        for offset in range(QUEUED_MESSAGES):
            await router.send(b"a", chunk(10, offset))
        with pytest.raises(PeerLostError, match="too slow"):
            await router.send(b"a", chunk(10))
        await dealers[1].send(Envelope(ManifestWant(weights_version=0), run_id="run"))
        [received] = await router.receive(5.0)
        assert received.peer == b"b"


async def test_a_peer_that_is_gone_costs_the_others_nothing() -> None:
    async with paced(1e6) as (router, dealers):
        await router.send(b"nobody", chunk(10))
        await router.send(b"a", chunk(10, 7))
        assert await heard(dealers[0], 1) == [7]
