"""Peers that send forged messages over sockets as fast as they are taken, in a process of their own.

`python -m bench.fleet.forgers ADDRESS NUMBER` is what `bench.fleet --forgeries` starts.
"""

import sys
from contextlib import suppress
from itertools import islice

import numpy as np
import zmq

from dcpo_async.protocol.codec import encode
from dcpo_async.protocol.conversion import group_to_message
from dcpo_async.protocol.messages import Bye, Envelope, Heartbeat, Hello, LeaseFailed, Want
from dcpo_async.records import Group, LeaseName, Response, VersionSegment
from tests.forged import Frames, forged

SOCKETS = 8
ANSWERS_AT_ONCE = 64
SEED = 7


def recordings() -> list[Frames]:
    """What an honest actor sends, by the settings of `bench.fleet.learner`."""
    response = Response(
        token_ids=np.arange(8, dtype=np.int32),
        behavior_logprobs=np.full(8, -1.0, dtype=np.float32),
        segments=(VersionSegment(1, 8),),
        finish_reason="stop",
        text="x" * 32,
    )
    message, arrays = group_to_message(Group(1, 1, (response,) * 8, (1.0,) * 8, ("equal",) * 8))
    held = LeaseName(1, 1)
    envelopes = [
        Envelope(Hello(session_id="f" * 32, name="forger", host="elsewhere", engine="none"), {}, "run"),
        Envelope(Want(num_leases=2), {}, "run", 1),
        Envelope(
            Heartbeat(held=(held,), tokens=(0,), weights_version=1, tokens_generated=0, groups_in_flight=1),
            {},
            "run",
            1,
        ),
        Envelope(message, arrays, "run", 1),
        Envelope(LeaseFailed(position=1, attempt=1, reason="x", is_prompts_fault=True), {}, "run", 1),
        Envelope(Bye(reason="done"), {}, "run", 1),
    ]
    return [[bytes(frame) for frame in encode(envelope)] for envelope in envelopes]


def send(address: str, number: int) -> None:
    """Send so many forgeries over a few connections in turn, and stay connected until this process is killed."""
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(SOCKETS)]
    poller = zmq.Poller()
    for socket in sockets:
        socket.linger, socket.sndhwm = 0, ANSWERS_AT_ONCE
        socket.connect(address)
        poller.register(socket, zmq.POLLIN)
    for index, frames in enumerate(islice(forged(recordings(), SEED), number)):
        sockets[index % SOCKETS].send_multipart(frames)
        if index % ANSWERS_AT_ONCE == 0:
            read_all(poller, 0)
    # A connection that is closed before its answers are read is reset: what was not read on the other side is lost.
    while True:
        read_all(poller, 1000)


def read_all(poller: zmq.Poller, milliseconds: int) -> None:
    """Read and forget what is answered."""
    for socket, _ in poller.poll(milliseconds):
        with suppress(zmq.Again):
            while True:
                socket.recv_multipart(zmq.NOBLOCK)


if __name__ == "__main__":
    send(sys.argv[1], int(sys.argv[2]))
