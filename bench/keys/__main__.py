"""What keys cost a router: `python -m bench.keys`.

Messages a second of one peer with and without keys, handshakes a second, and a look at a folder of 1,000 keys.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from dcpo_async.protocol.messages import Envelope, Want
from dcpo_async.transport.admission import LOOK_SECONDS, AdmittedFolder
from dcpo_async.transport.key_files import (
    CurveClient,
    CurveServer,
    load_peer_keys,
    load_server_keys,
    write_peer_keys,
    write_server_keys,
)
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, new_pair

LIMIT = 1 << 20
WANT = Envelope(Want(num_leases=3), run_id="run", incarnation=1)


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(prog="bench.keys", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--handshakes", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        write_server_keys(keys, new_pair())
        peer = load_peer_keys(write_peer_keys(keys, "one", "actor", new_pair()))
        for words, server, client in (("without keys", None, None), ("with keys", load_server_keys(keys), peer)):
            used, rate = time.process_time(), asyncio.run(messages_per_second(server, client, options.messages))
            used = 1e6 * (time.process_time() - used) / options.messages
            print(f"{words}: {rate:.0f} messages a second, {used:.0f} µs of processor each, of both ends", flush=True)
        rate = asyncio.run(handshakes_per_second(load_server_keys(keys), peer, options.handshakes))
        print(f"{rate:.0f} handshakes a second, one after another, first message included")
        for number in range(1000):
            write_peer_keys(keys, f"node-{number}", "actor", new_pair())
        print(f"a look at 1,000 keys: {1000 * seconds_of_a_look(keys / 'admitted'):.2f} ms, once a second")


async def messages_per_second(server: CurveServer | None, client: CurveClient | None, number: int) -> float:
    """Of one peer that has no other work."""
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT, server)
    dealer = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, client)

    async def send() -> None:
        for _ in range(number):
            await dealer.send(WANT)

    sending, heard = asyncio.create_task(send()), 0
    started = time.perf_counter()
    while heard < number:
        heard += len(await router.receive(1.0))
    seconds = time.perf_counter() - started
    await sending
    dealer.close()
    router.close()
    return number / seconds


async def handshakes_per_second(server: CurveServer, client: CurveClient, number: int) -> float:
    """From a new channel to its first message."""
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT, server)
    started = time.perf_counter()
    for _ in range(number):
        dealer = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, client)
        await dealer.send(WANT)
        while not await router.receive(1.0):
            continue
        dealer.close()
    seconds = time.perf_counter() - started
    router.close()
    return number / seconds


def seconds_of_a_look(folder: Path) -> float:
    """At a folder in which nothing has changed."""
    now = 0.0
    admitted = AdmittedFolder(folder, lambda: now)
    started = time.perf_counter()
    for _ in range(50):
        now += LOOK_SECONDS
        admitted.look()
    return (time.perf_counter() - started) / 50


if __name__ == "__main__":
    main()
