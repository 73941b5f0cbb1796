"""The relay's process, over real sockets: killed or stopped in the middle of a fetch, and with keys."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actor.weights.relay import offer, offered
from dcpo_async.demo.services import free_address
from dcpo_async.errors import PeerLostError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkWant
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.transport.security import load_client_keys, relay_client
from dcpo_async.transport.zmq_channel import DealerChannel, connecting, generate_keys
from tests.actor.weights.relays import RELAY, Child
from tests.actor.weights.served import NUM_CHUNKS, Watched, contents, names, publish, puller, served

SILENCE_SECONDS = 1.0


@asynccontextmanager
async def relay_process(cache: Path, *words: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """As the launcher starts it; serves a cache."""
    path, address = cache.parent / "relay.offer", free_address()
    offer(path, "run", cache)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "actor.weights.relay", "--listen", address, "--offer", str(path), *words,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert b"handing on weights" in await process.stderr.readline()
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_relay_that_ends_or_stands_still_in_the_middle_costs_its_silence_and_nothing_else(
    store: Path, cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    publish(store, 1)
    origin, upper = MemoryNetwork(), tmp_path / "upper"
    async with served(origin.router(), store):
        await puller(origin.dealer(b"upper"), upper).fetch()
        # A fifth of a second for each stretch.
        async with relay_process(upper, "--mbps", "20") as (process, address):
            heard = Watched(DealerChannel(address, 1 << 23, send_timeout_seconds=0.2))
            asked, num_heard = Watched(origin.dealer(b"a")), list[float]()

            async def strike(envelope: Envelope) -> Envelope:
                num_heard.append(time.monotonic())
                if len(num_heard) == 4:
                    process.send_signal(number)
                return envelope

            heard.on_chunk = strike
            child = Child(asked, heard, cache, SILENCE_SECONDS)
            folder, _ = await child.puller.fetch()
            took = time.monotonic() - num_heard[3]
            heard.close()
    assert contents(folder) == contents(store / "v00000001")
    assert child.lost == [RELAY]
    # What was on its way may still arrive.
    assert NUM_CHUNKS - len(num_heard) <= len(asked.asked) <= NUM_CHUNKS - 4
    assert took < SILENCE_SECONDS + 4
    assert names(cache) == [".checked", ".fetch.lock", "v00000001"]


async def test_a_relay_admits_whoever_has_the_actors_keys_and_nobody_else(
    store: Path, cache: Path, tmp_path: Path
) -> None:
    publish(store, 1)
    keys, others = tmp_path / "keys", tmp_path / "others"
    generate_keys(keys)
    generate_keys(others)
    async with relay_process(store, "--keys", str(keys)) as (_, address):
        want = Envelope(ChunkWant(weights_version=1, file="config.json", offset=0, num_bytes=4), run_id="run")
        for folder, is_admitted in ((keys, True), (others, False)):
            connect = connecting(relay_client(load_client_keys(folder)), insecure=False, send_timeout_seconds=2.0)
            dealer, answer = connect(address), None
            # Whoever is not admitted has no connection to send by.
            with contextlib.suppress(*() if is_admitted else (PeerLostError,)):
                await dealer.send(want)
                answer = await dealer.receive(3.0)
            dealer.close()
            assert (answer is not None) == is_admitted


def test_a_relay_hands_on_the_run_that_was_offered_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "relay.offer"
    assert offered(path, "run") is None
    offer(path, "run", tmp_path / "cache")
    assert offered(path, "run") == tmp_path / "cache"
    assert offered(path, "other") is None
