"""The relay's process, over real sockets: killed or stopped in the middle of a fetch, and with keys."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actor.weights.relay import offer, offered, weight_server
from dcpo_async.demo.services import free_address
from dcpo_async.errors import ConfigError, PeerLostError
from dcpo_async.protocol.codec import SPOKEN_BY_RELAYS
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.transport.key_files import CurveClient, load_server_keys, revoke
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, connecting_to_relays, new_pair
from tests.actor.weights.relays import RELAY, Child
from tests.actor.weights.served import NUM_CHUNKS, Watched, contents, names, publish, puller, served
from tests.transport.keys import admit, learner_keys

SILENCE_SECONDS = 1.0


@asynccontextmanager
async def relay_process(
    cache: Path, *words: str, weights_address: str = ""
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """As the launcher starts it; serves a cache."""
    path, address = cache.parent / "relay.offer", free_address()
    offer(path, "run", cache, weights_address)
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


@dataclass
class Fleet:
    """A learner's keys, its weight server at work, and a relay of the actor `host`."""

    keys: Path
    host: CurveClient
    relay: str

    async def answer(self, curve: CurveClient, relay: str = "", seconds: float = 2.0) -> Envelope | None:
        """What a peer with these keys hears of the relay, if anything."""
        dealer = connecting_to_relays(curve, insecure=False)(relay or self.relay)
        answer = await heard(dealer, seconds)
        dealer.close()
        return answer


async def heard(dealer: DealerChannel, seconds: float) -> Envelope | None:
    """What the relay answers; a relay that does not know a key yet asks for it, and the peer comes again."""
    want = Envelope(ChunkWant(weights_version=1, file="config.json", offset=0, num_bytes=4), run_id="run")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        # Whoever is not admitted has no connection to send by.
        with contextlib.suppress(PeerLostError):
            await dealer.send(want)
            if answer := await dealer.receive(1.0):
                return answer
    return None


@pytest.fixture
async def fleet(store: Path, tmp_path: Path) -> AsyncIterator[Fleet]:
    publish(store, 1)
    keys = learner_keys(tmp_path / "keys")
    host, server = admit(keys, "host"), load_server_keys(keys)
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 23, server)
    address = f"tcp://127.0.0.1:{router.port}"
    words = ("--keys", str(keys / "peers" / "host.keys"))
    async with served(router, store, server.admission), relay_process(store, *words, weights_address=address) as found:
        yield Fleet(keys, host, f"{found[1]}/{host.public.decode()}")


async def test_a_relay_serves_the_actors_that_the_learner_admits_and_nobody_else(fleet: Fleet) -> None:
    public, secret = new_pair()
    assert await fleet.answer(admit(fleet.keys, "other"), seconds=60.0) is not None
    assert await fleet.answer(replace(fleet.host, public=public, secret=secret)) is None
    assert await fleet.answer(admit(fleet.keys, "watcher", "evaluator")) is None


async def test_a_relay_under_another_key_than_its_machines_is_not_spoken_to(fleet: Fleet) -> None:
    other = admit(fleet.keys, "other")
    assert await fleet.answer(other, f"{fleet.relay[:-40]}{other.public.decode()}") is None
    with pytest.raises(ConfigError, match="write tcp://HOST:PORT/KEY"):
        await fleet.answer(other, fleet.relay[:-41])


@pytest.mark.system
async def test_a_relay_shuts_out_a_key_that_the_learner_revokes(fleet: Fleet) -> None:
    gone, friend = admit(fleet.keys, "gone"), admit(fleet.keys, "friend")
    dealer = connecting_to_relays(gone, insecure=False)(fleet.relay)
    assert await heard(dealer, 60.0) is not None
    revoke(fleet.keys, "gone")
    until = time.monotonic() + 60
    while await heard(dealer, 1.0) is not None:
        assert time.monotonic() < until
    assert await heard(dealer, 5.0) is None
    dealer.close()
    assert await fleet.answer(friend, seconds=60.0) is not None


@pytest.mark.parametrize("version", SPOKEN_BY_RELAYS)
async def test_a_relay_answers_in_each_version_that_those_who_ask_may_be_of(
    store: Path, tmp_path: Path, version: int
) -> None:
    publish(store, 1)
    async with relay_process(store) as (_, address):
        dealer = DealerChannel(address, 1 << 23, version=version)
        answer = await heard(dealer, 20.0)
        dealer.close()
    assert answer is not None
    assert isinstance(answer.message, ChunkMessage)


def test_a_relay_hands_on_the_run_that_was_offered_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "relay.offer"
    assert offered(path, "run") is None
    assert weight_server(path) is None
    offer(path, "run", tmp_path / "cache", "tcp://127.0.0.1:5558")
    assert offered(path, "run") == tmp_path / "cache"
    assert offered(path, "other") is None
    assert weight_server(path) == ("run", "tcp://127.0.0.1:5558")
