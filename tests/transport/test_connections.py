"""A listening end among connections that are too many, or that say nothing."""

import asyncio
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from dcpo_async.protocol.messages import Bye, Envelope, Want
from dcpo_async.transport.connections import Connections
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel

LIMIT = 1 << 20
WANT = Envelope(Want(num_leases=1), run_id="run", incarnation=1)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended a connection; the greeting that came before does not count."""
    connection.setblocking(False)
    try:
        while data := connection.recv(4096):
            assert data
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(3000):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 30 s")


@asynccontextmanager
async def idle(port: int, number: int) -> AsyncIterator[list[socket.socket]]:
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\nHost: here\r\n" + b"a: b\r\n" * 200 + b"\r\n", b'\x01\x00\x04\x00"abc"']
)
async def test_whoever_speaks_something_else_is_no_peer_and_ends_nothing(words: bytes) -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT)
    actor = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, send_timeout_seconds=20)
    async with idle(router.port, 3) as connections:
        for connection in connections:
            connection.sendall(words)
        assert await router.receive(0.5) == []
        await actor.send(WANT)
        [received] = await router.receive(20)
    assert received.envelope == WANT
    actor.close()
    router.close()


async def test_beyond_the_limit_the_oldest_silent_connection_is_closed_and_an_actor_gets_through() -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT, max_connections=8)
    actor = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, send_timeout_seconds=20)
    await actor.send(WANT)
    [received] = await router.receive(20)
    async with idle(router.port, 30) as connections:
        deadline = time.monotonic() + 30
        while not all(map(is_closed, connections[:22])):
            assert time.monotonic() < deadline
            await router.receive(0.1)
        await router.send(received.peer, WANT)
        assert await actor.receive(20) == WANT
        newcomer = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, send_timeout_seconds=20)
        await newcomer.send(WANT)
        assert [received.envelope for received in await router.receive(20)] == [WANT]
        newcomer.close()
    actor.close()
    router.close()


async def test_a_connection_that_says_nothing_is_closed_and_one_that_spoke_is_not() -> None:
    context = zmq.asyncio.Context()
    listening, speaking = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    listening.linger = speaking.linger = 0
    connections = Connections(listening, 100, silent_seconds=0.3)
    port = listening.bind_to_random_port("tcp://127.0.0.1")
    speaking.connect(f"tcp://127.0.0.1:{port}")
    await speaking.send(b"word")
    message = await listening.recv_multipart(copy=False)
    connections.look()
    connections.heard(message[-1].get(zmq.SRCFD), (message[0].bytes, None))
    async with idle(port, 5) as silent:
        await until(lambda: connections.look() is None and all(map(is_closed, silent)))
    assert connections.num_closed == 5
    await speaking.send(b"another")
    assert (await listening.recv_multipart())[-1] == b"another"
    connections.stop()
    context.destroy()


def serving(limit: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SERVE, str(limit)], stdout=subprocess.PIPE)


SERVE = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
from dcpo_async.transport.zmq_channel import RouterChannel

async def serve():
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 20)
    print(router.port, flush=True)
    while True:
        for received in await router.receive(0.2):
            open("/dev/null").close()
            await router.send(received.peer, received.envelope)

asyncio.run(serve())
"""


async def test_more_idle_connections_than_descriptors_do_not_end_a_service() -> None:
    limit = 128
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < limit + 200:
        pytest.skip(f"this test needs {limit + 200} descriptors, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process = serving(limit)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        async with idle(port, limit + 100):
            actor = DealerChannel(f"tcp://127.0.0.1:{port}", LIMIT, send_timeout_seconds=60)
            await actor.send(Envelope(Bye(reason="word")))
            assert await actor.receive(60) == Envelope(Bye(reason="word"))
            actor.close()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
