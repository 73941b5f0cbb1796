"""A puller that is killed in the middle of a fetch leaves whole versions, and nothing else after the next fetch."""

import asyncio
import sys
from pathlib import Path

import pytest

from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import verify
from tests.actor.weights.served import contents, names, publish, puller, served

PULL = """
import asyncio, sys
from pathlib import Path
from actor.weights.puller import WeightPuller
from dcpo_async.transport.zmq_channel import DealerChannel

async def main():
    channel = DealerChannel(sys.argv[1], 1 << 23)
    puller = WeightPuller(channel, Path(sys.argv[2]), "run", 1, in_place=False)
    for version in (1, 2, 3):
        print("begins", flush=True)
        await puller.fetch(version)
        # The third is written into the pages of the first.
        puller.prune({version})

asyncio.run(main())
"""


def whole_versions(folder: Path) -> list[int]:
    """Versions that stand in a folder, each checked byte for byte."""
    return [verify(version_folder(folder, version)).weights_version for version in versions(folder)]


@pytest.mark.parametrize(("begun", "seconds"), [(1, 0.03), (2, 0.0), (2, 0.04), (3, 0.0), (3, 0.03)])
async def test_a_killed_puller_leaves_whole_weights_or_none(
    store: Path, cache: Path, begun: int, seconds: float
) -> None:
    publish(store, 1)
    publish(store, 2)
    publish(store, 3)
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 23)
    address = f"tcp://127.0.0.1:{router.port}"
    async with served(router, store):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PULL, address, str(cache), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(begun):
            assert await process.stdout.readline() == b"begins\n"
        await asyncio.sleep(seconds)
        process.kill()
        await process.wait()
        assert set(await asyncio.to_thread(whole_versions, cache)) <= {1, 2, 3}
        channel = DealerChannel(address, 1 << 23)
        client = puller(channel, cache)
        folder, manifest = await client.fetch()
        assert (manifest.weights_version, contents(folder)) == (3, contents(version_folder(store, 3)))
        allowed = {".checked", ".fetch.lock", ".spare", "patches", "v00000001", "v00000002", "v00000003"}
        assert set(names(cache)) <= allowed
        client.close()
        channel.close()
