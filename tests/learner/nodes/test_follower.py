"""What the launcher of another machine makes of what node 0 says, and of what it says late."""

import asyncio
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.errors import ConfigError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeOrder, NodeWelcome
from dcpo_async.transport.memory_channel import MemoryNetwork, MemoryRouter
from learner.nodes.follower import Follower
from learner.nodes.place import NodePlace


class NodeZero:
    """Answers one machine as a test says."""

    def __init__(self, folder: Path) -> None:
        network = MemoryNetwork()
        self.router: MemoryRouter = network.router()
        self.config = RunConfig(folder=folder / "run")
        scratch = folder / "scratch"
        scratch.mkdir()
        place = NodePlace(1, 2, 1, "127.0.0.1:29500")
        self.follower = Follower(
            place,
            network.dealer(b"node-1"),
            self.config,
            Devices((), 1),
            "digest",
            (),
            folder / "node-1.keys",
            scratch,
            asyncio.Event(),
        )

    async def heard(self, count: int) -> list[Message]:
        """So many messages of the machine, none of which is answered."""
        found = list[Message]()
        while len(found) < count:
            for received in await self.router.receive(30.0):
                assert isinstance(received.envelope, Envelope)
                found.append(received.envelope.message)
        return found

    async def say(self, *messages: Message, run_id: str = "run") -> None:
        for message in messages:
            await self.router.send(b"node-1", Envelope(message, {}, run_id, 1))

    async def welcome(self) -> None:
        (hello,) = await self.heard(1)
        assert isinstance(hello, NodeHello)
        await self.say(NodeWelcome(config=self.config.model_dump_json()))


async def test_answers_that_were_held_up_do_not_leave_a_machine_behind(tmp_path: Path) -> None:
    node = NodeZero(tmp_path)
    running = asyncio.create_task(node.follower.run())
    await node.welcome()
    beats = await node.heard(4)
    # All arrive at once, as where a link has been cut; what counts is the last.
    await node.say(*[NodeOrder(round_number=0)] * len(beats), NodeOrder(round_number=0, over="the run is finished"))
    async with asyncio.timeout(30.0):
        await running
    assert len(await node.router.receive(0.0)) <= 1


async def test_a_machine_that_is_asked_to_join_again_does_so_however_often_it_is_asked(tmp_path: Path) -> None:
    node = NodeZero(tmp_path)
    running = asyncio.create_task(node.follower.run())
    await node.welcome()
    rejoin = Reject(reason="rejoin", detail="node 1 has not said hello to this start")
    assert isinstance((await node.heard(1))[0], NodeBeat)
    await node.say(rejoin)
    assert isinstance((await node.heard(1))[0], NodeHello)
    await node.say(rejoin)
    await node.welcome()
    await node.heard(1)
    await node.say(NodeOrder(round_number=0, over="the run is finished"))
    async with asyncio.timeout(30.0):
        await running


async def test_a_machine_whose_folder_is_of_another_run_takes_no_part(tmp_path: Path) -> None:
    node = NodeZero(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "node.json").write_text('{"run_id": "another"}')
    running = asyncio.create_task(node.follower.run())
    await node.welcome()
    with pytest.raises(ConfigError, match="belongs to run another, node 0 is on run run; choose another one"):
        await running
