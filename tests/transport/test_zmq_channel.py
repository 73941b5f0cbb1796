import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.asyncio

from dcpo_async.errors import ConfigError, PeerLostError, ProtocolError
from dcpo_async.protocol.codec import decode, encode
from dcpo_async.protocol.messages import Bye, Envelope, Want
from dcpo_async.protocol.weight_messages import ChunkMessage
from dcpo_async.transport import zmq_channel
from dcpo_async.transport.zmq_channel import MAX_READ, DealerChannel, RouterChannel

LIMIT = 1 << 20
WANT = Envelope(Want(num_leases=3), run_id="run", incarnation=1)
DONE = Envelope(Bye(reason="done"))

Dial = Callable[..., DealerChannel]


@pytest.fixture
async def router() -> AsyncIterator[RouterChannel]:
    channel = RouterChannel("tcp://127.0.0.1:0", LIMIT)
    yield channel
    channel.close()


@pytest.fixture
def dial(router: RouterChannel) -> Iterator[Dial]:
    dealers = []

    def connect(max_message_bytes: int = LIMIT) -> DealerChannel:
        dealers.append(DealerChannel(f"tcp://127.0.0.1:{router.port}", max_message_bytes))
        return dealers[-1]

    yield connect
    for dealer in dealers:
        dealer.close()


async def test_messages_go_both_ways_and_answers_find_their_peer(router: RouterChannel, dial: Dial) -> None:
    one, two = dial(), dial()
    await one.send(WANT)
    [of_one] = await router.receive(5)
    await two.send(WANT)
    [of_two] = await router.receive(5)
    assert of_one.envelope == of_two.envelope == WANT
    await router.send(of_two.peer, DONE)
    assert await two.receive(5) == DONE
    assert await one.receive(0.05) is None


async def test_arrays_cross_a_socket_unchanged(router: RouterChannel, dial: Dial) -> None:
    data = np.random.default_rng(0).integers(0, 256, 500_000, dtype="|u1")
    await dial().send(Envelope(ChunkMessage(weights_version=1, file="f", offset=0), {"data": data}))
    [received] = await router.receive(5)
    assert isinstance(received.envelope, Envelope)
    np.testing.assert_array_equal(received.envelope.arrays["data"], data)


async def test_everything_that_waits_is_received_at_once_up_to_a_bound(router: RouterChannel, dial: Dial) -> None:
    dealer = dial()
    for _ in range(300):
        await dealer.send(WANT)
    sizes: list[int] = []
    while sum(sizes) < 300:
        await asyncio.sleep(0.2)
        sizes.append(len(await router.receive(5)))
    assert sizes == [256, 44]


async def test_a_flood_of_dropped_messages_does_not_keep_the_others_from_being_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT, messages_per_second=1)
    dealer = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT)
    num_read, read = Counter[int](), zmq_channel._waiting_message
    turn, is_over = 0, False

    async def counted(socket: zmq.asyncio.Socket) -> list[zmq.Frame]:
        num_read[turn] += 1
        return await read(socket)

    async def flood() -> None:
        while not is_over:
            await dealer.send(WANT)

    monkeypatch.setattr(zmq_channel, "_waiting_message", counted)
    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(60):
        while turn < 10 or max(num_read.values()) < MAX_READ:
            turn += 1
            await router.receive(0.1)
    is_over = True
    # Nobody receives any more, so that its last message may wait for room.
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flooding
    # One look at what waits, and one more once something came.
    assert max(num_read.values()) <= 2 * MAX_READ
    dealer.close()
    router.close()


async def test_silence_is_an_empty_list_at_the_deadline(router: RouterChannel) -> None:
    before = asyncio.get_running_loop().time()
    assert await router.receive(0.1) == []
    assert 0.09 < asyncio.get_running_loop().time() - before < 2


async def test_an_unroutable_message_marks_the_peer_lost(router: RouterChannel) -> None:
    with pytest.raises(PeerLostError, match="its connection is gone"):
        await router.send(b"nobody", DONE)


async def send_often(router: RouterChannel, peer: bytes, envelope: Envelope, times: int) -> None:
    for _ in range(times):
        await router.send(peer, envelope)


async def test_a_peer_that_reads_nothing_is_lost_and_blocks_nobody(router: RouterChannel, dial: Dial) -> None:
    await dial().send(WANT)
    [received] = await router.receive(5)
    chunk = ChunkMessage(weights_version=1, file="f", offset=0)
    envelope = Envelope(chunk, {"data": np.zeros(100_000, "|u1")})
    with pytest.raises(PeerLostError, match="256 messages wait"):
        await send_often(router, received.peer, envelope, 5000)


async def test_an_end_closes_in_time_though_its_peer_drops_out_in_the_same_moment() -> None:
    for _ in range(200):
        router = RouterChannel("tcp://127.0.0.1:0", LIMIT)
        dealer = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT)
        await dealer.send(WANT)
        [received] = await router.receive(5)
        chunk = ChunkMessage(weights_version=1, file="f", offset=0)
        await send_often(router, received.peer, Envelope(chunk, {"data": np.zeros(100_000, "|u1")}), 20)
        dealer.close()
        router.close()


async def test_no_connection_takes_the_place_of_another_that_shows_the_same_identity(router: RouterChannel) -> None:
    context = zmq.asyncio.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(2)]
    frames = encode(WANT)
    for dealer in sockets:
        dealer.identity, dealer.linger = b"same", 0
        dealer.connect(f"tcp://127.0.0.1:{router.port}")
        await dealer.send_multipart(frames)
        if dealer is sockets[0]:
            [received] = await router.receive(5)
    assert await router.receive(0.3) == []
    await router.send(received.peer, DONE)
    assert decode(await sockets[0].recv_multipart(), LIMIT) == DONE
    context.destroy()


async def test_nobody_listening_is_an_error_after_the_deadline_of_a_send() -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT)
    address = f"tcp://127.0.0.1:{router.port}"
    router.close()
    dealer = DealerChannel(address, LIMIT, send_timeout_seconds=0.2)
    with pytest.raises(PeerLostError, match=rf"{address} took no message within 0.2 s"):
        await dealer.send(WANT)
    dealer.close()


async def test_an_actor_connects_again_when_the_learner_is_back() -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT)
    address = f"tcp://127.0.0.1:{router.port}"
    dealer = DealerChannel(address, LIMIT)
    await dealer.send(WANT)
    await router.receive(5)
    router.close()
    again = RouterChannel(address, LIMIT)
    await asyncio.sleep(0.2)
    await dealer.send(WANT)
    assert [received.envelope for received in await again.receive(5)] == [WANT]
    dealer.close()
    again.close()


async def test_a_taken_port_is_one_line_that_names_the_address(router: RouterChannel) -> None:
    address = f"tcp://127.0.0.1:{router.port}"
    with pytest.raises(ConfigError, match=rf"^{address} is in use, .* stop it or listen on another address$"):
        RouterChannel(address, LIMIT)


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on tcp://192\.0\.2\.1:5557"):
        RouterChannel("tcp://192.0.2.1:5557", LIMIT, insecure=True)


async def test_an_address_off_this_machine_is_refused_without_keys() -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        RouterChannel("tcp://0.0.0.0:0", LIMIT)
    with pytest.raises(ConfigError, match="--insecure"):
        DealerChannel("tcp://192.0.2.1:5557", LIMIT)


async def test_a_local_socket_has_no_port(tmp_path: Path) -> None:
    router = RouterChannel(f"ipc://{tmp_path}/s", LIMIT)
    dealer = DealerChannel(f"ipc://{tmp_path}/s", LIMIT)
    await dealer.send(WANT)
    assert [received.envelope for received in await router.receive(5)] == [WANT]
    assert router.port == 0
    dealer.close()
    router.close()


async def test_a_message_over_the_limit_is_not_sent(dial: Dial) -> None:
    chunk = Envelope(ChunkMessage(weights_version=1, file="f", offset=0), {"data": np.zeros(LIMIT, "|u1")})
    with pytest.raises(ProtocolError, match=r"raise network\.max_message_bytes"):
        await dial().send(chunk)


async def test_an_oversized_frame_never_reaches_the_router(router: RouterChannel, dial: Dial) -> None:
    chunk = Envelope(ChunkMessage(weights_version=1, file="f", offset=0), {"data": np.zeros(2 * LIMIT, "|u1")})
    await dial(max_message_bytes=1 << 30).send(chunk)
    assert await router.receive(0.3) == []


async def test_frames_that_add_up_to_too_much_are_received_as_an_error(router: RouterChannel, dial: Dial) -> None:
    chunk = Envelope(ChunkMessage(weights_version=1, file="f", offset=0), {"data": np.zeros(LIMIT - 10, "|u1")})
    await dial(max_message_bytes=1 << 30).send(chunk)
    [received] = await router.receive(5)
    assert isinstance(received.envelope, ProtocolError)
    # Frames that are kept alive keep all that was received at once.
    error = received.envelope
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
