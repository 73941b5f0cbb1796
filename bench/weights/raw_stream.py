"""The plain stream that a pull is compared with: a file's stretches over ZeroMQ and nothing else, one way.

`python -m bench.weights.raw_stream FILE FRAME_BYTES [--keys DIR]` is the sending process; it prints its port.
"""

import argparse
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import zmq

from dcpo_async.transport.key_files import load_peer_keys, load_server_keys

HEADER = bytes(150)
QUEUED = 8
DEADLINE_MS = 60_000


class Cost(NamedTuple):
    """What a transfer took: of the clock, and of the processors on both sides."""

    seconds: float
    processor_seconds: float


@contextmanager
def measured(sender: int) -> Iterator[list[Cost]]:
    """Measure a block in which another process sends to this one; the list has its cost afterwards."""
    costs = list[Cost]()
    started, used = time.monotonic(), time.process_time() + _used_by(sender)
    yield costs
    costs.append(Cost(time.monotonic() - started, time.process_time() + _used_by(sender) - used))


def _used_by(process_id: int) -> float:
    """Processor seconds of another process so far, in steps of 0.01."""
    words = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def stream(path: Path, keys: Path | None, frame_bytes: int) -> Cost:
    """What a file takes from another process, over loopback, to frames that are let go at once."""
    words = [
        sys.executable,
        "-m",
        "bench.weights.raw_stream",
        str(path),
        str(frame_bytes),
        *(["--keys", str(keys)] if keys else []),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as sender, zmq.Context() as context:
        assert sender.stdout is not None
        socket = _socket(context, zmq.DEALER)
        if keys:
            curve = load_peer_keys(keys / "peers" / "bench.keys")
            socket.curve_publickey, socket.curve_secretkey = curve.public, curve.secret
            socket.curve_serverkey = curve.server_public
        socket.connect(f"tcp://127.0.0.1:{int(sender.stdout.readline())}")
        # Connected before the clock starts, as a puller is.
        socket.send(b"ready?")
        socket.recv()
        with measured(sender.pid) as costs:
            socket.send(b"go")
            missing = path.stat().st_size
            while missing:
                missing -= len(socket.recv_multipart(copy=False)[1])
        socket.close(0)
        sender.kill()
    return costs[0]


def main() -> None:
    """Send a file's stretches to whoever asks."""
    parser = argparse.ArgumentParser(prog="bench.weights.raw_stream", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("frame_bytes", type=int)
    parser.add_argument("--keys", type=Path)
    options = parser.parse_args()
    socket = _socket(zmq.Context.instance(), zmq.ROUTER)
    # Without it, messages over the bound would be dropped instead of waited for.
    socket.router_mandatory = True
    if options.keys:
        curve = load_server_keys(options.keys)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = curve.public, curve.secret
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    with options.file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = memoryview(mapped)
        peer, _ = socket.recv_multipart()
        socket.send_multipart([peer, b"ready"])
        socket.recv_multipart()
        for start in range(0, len(content), options.frame_bytes):
            socket.send_multipart([peer, HEADER, content[start : start + options.frame_bytes]], copy=False)
        # The receiver ends this process: what is queued lies in the map.
        time.sleep(DEADLINE_MS / 1000)


def _socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.sndhwm = socket.rcvhwm = QUEUED
    socket.sndtimeo = socket.rcvtimeo = DEADLINE_MS
    return socket


if __name__ == "__main__":
    main()
