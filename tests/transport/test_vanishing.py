"""A peer that floods and vanishes while its messages wait: libzmq's own pings would end the process then."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SERVE = """
import asyncio, time
from dcpo_async.transport.zmq_channel import RouterChannel

async def serve():
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 20)
    print(router.port, flush=True)
    input()
    # Two of the pings that there were: the first was answered by a reset, the second found what it had left.
    time.sleep(11)
    print(len(await router.receive(1)), flush=True)

asyncio.run(serve())
"""
FLOOD = """
import os, sys, time, zmq
dealer = zmq.Context().socket(zmq.DEALER)
dealer.sndtimeo = 1000
dealer.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
try:
    while True:
        dealer.send(b"x" * 1000)
except zmq.Again:
    os.kill(os.getpid(), 9)
"""


@contextmanager
def running(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.system
def test_a_peer_that_floods_and_vanishes_does_not_end_the_process_that_has_not_read_it_yet() -> None:
    with running(SERVE) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        port = service.stdout.readline().strip()
        for _ in range(2):
            with running(FLOOD, port) as flooder:
                flooder.wait(60)
        service.stdin.write("\n")
        service.stdin.flush()
        assert service.stdout.readline() == "256\n"
