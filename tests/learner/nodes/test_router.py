"""Who is let in among machines of ranks, over real sockets: by a key for ranks, with the same model and libraries."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeOrder, NodeWelcome, ShardWant, StepDone
from dcpo_async.transport.admission import Role
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.key_files import CurveClient, load_server_keys
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, new_pair
from learner.coordinator import disk_hold
from learner.coordinator.disk_hold import DiskHold
from learner.coordinator.mail import Mail
from learner.nodes.desk import NodeDesk
from learner.nodes.joining import tell_finished
from learner.nodes.place import NodePlace
from learner.nodes.router import RankRouter
from tests.transport.keys import admit, learner_keys

LIMIT = 1 << 24
VERSIONS = ("torch 2", "deepspeed 1")
HELLO = NodeHello(session="a" * 32, node=1, num_nodes=2, num_local=2, model="digest", versions=VERSIONS)


@dataclass
class Machines:
    """Node 0's sockets, with what came through to the coordinator."""

    keys: Path
    port: int
    desk: NodeDesk
    router: RankRouter
    came: list[Received] = field(default_factory=list)
    dealers: list[DealerChannel] = field(default_factory=list)
    hold: DiskHold | None = None

    async def serve(self) -> None:
        while True:
            self.came += await (self.hold.receive(self.router, 0.2) if self.hold else self.router.receive(0.2))

    def dealer(self, curve: CurveClient | None) -> DealerChannel:
        dealer = DealerChannel(f"tcp://127.0.0.1:{self.port}", LIMIT, curve, send_timeout_seconds=2.0)
        self.dealers.append(dealer)
        return dealer

    def admitted(self, role: Role) -> DealerChannel:
        return self.dealer(admit(self.keys, f"{role}-{len(self.dealers)}", role))


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    keys = learner_keys(tmp_path / "keys")
    here = RouterChannel(f"ipc://{tmp_path}/ranks", LIMIT)
    elsewhere = RouterChannel("tcp://127.0.0.1:0", LIMIT, load_server_keys(keys))
    desk = NodeDesk(NodePlace(0, 2, 2, "127.0.0.1:29500"), '{"seed": 1}', "digest", VERSIONS)
    made = Machines(keys, elsewhere.port, desk, RankRouter(here, elsewhere, desk, "run", 1))
    serving = asyncio.create_task(made.serve())
    yield made
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    for dealer in made.dealers:
        dealer.close()
    for router in (made.router, here, elsewhere):
        router.close()


async def told(dealer: DealerChannel, message: Message, run_id: str = "", seconds: float = 20.0) -> Message | None:
    await dealer.send(Envelope(message, {}, run_id, 1))
    answer = await dealer.receive(seconds)
    return answer.message if answer else None


async def test_a_machine_hears_settings_and_what_to_do(machines: Machines) -> None:
    node = machines.admitted("rank")
    welcome = await told(node, HELLO)
    assert welcome == NodeWelcome(config='{"seed": 1}')
    beat = NodeBeat(session=HELLO.session, node=1, round_number=0, state="idle")
    assert await told(node, beat, "run") == NodeOrder(round_number=0)
    await machines.desk.all_there()
    assert machines.desk.begin_round() == 1
    assert await told(node, beat, "run") == NodeOrder(round_number=1)
    ending = asyncio.create_task(machines.desk.end("the run is finished"))
    await asyncio.sleep(0)
    # It hears of the end by asking, and node 0 stays until it has.
    assert not ending.done()
    assert await told(node, beat, "run") == NodeOrder(round_number=0, over="the run is finished")
    async with asyncio.timeout(5.0):
        await ending
    assert machines.came == []


async def test_machines_are_answered_while_a_full_disk_holds_the_run_up(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_hold, "lacking_room", lambda path: 1.0)
    machines.hold = DiskHold(RunConfig(folder=tmp_path), machines.router, Mail("run", 1))
    node = machines.admitted("rank")
    assert await told(node, HELLO) == NodeWelcome(config='{"seed": 1}')
    fact = StepDone(step=1, metrics={})
    await node.send(Envelope(fact, {}, "run", 1))
    # What was told by its ranks is kept, and launchers, who give the run up after 15 s of silence, hear more.
    beat = NodeBeat(session=HELLO.session, node=1, round_number=0, state="idle")
    for _ in range(3):
        assert await told(node, beat, "run") == NodeOrder(round_number=0)
    assert machines.came == []
    machines.hold.release()
    async with asyncio.timeout(5.0):
        while not machines.came:  # noqa: ASYNC110 - filled by serve
            await asyncio.sleep(0.01)
    assert [received.envelope.message for received in machines.came] == [fact]


async def test_a_machine_that_comes_to_a_run_that_was_finished_before_hears_so(machines: Machines) -> None:
    telling = asyncio.create_task(tell_finished(machines.desk, machines.router))
    node = machines.admitted("rank")
    assert await told(node, HELLO) == NodeWelcome(config='{"seed": 1}')
    assert not telling.done()
    beat = NodeBeat(session=HELLO.session, node=1, round_number=0, state="idle")
    assert await told(node, beat, "run") == NodeOrder(round_number=0, over="the run was finished before")
    async with asyncio.timeout(20.0):
        assert await telling


async def test_who_waits_for_machines_that_do_not_come_is_ended_by_a_signal(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    telling = asyncio.create_task(tell_finished(machines.desk, machines.router))
    async with asyncio.timeout(20.0):
        while "the other machines have heard it: node 1; a signal ends this" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not await telling
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the next signal ends what comes after"


async def test_a_rank_of_another_machine_reaches_the_coordinator_and_is_answered(machines: Machines) -> None:
    want = ShardWant(rank=2, num_ranks=4, step=0)
    assert await told(machines.admitted("rank"), want, "run", seconds=0.5) is None
    (received,) = machines.came
    assert isinstance(received.envelope, Envelope)
    assert (received.envelope.message, received.holder) == (want, None)
    await machines.router.send(received.peer, Envelope(NodeOrder(round_number=3), {}, "run", 1))
    answer = await machines.dealers[0].receive(20.0)
    assert answer is not None
    assert answer.message == NodeOrder(round_number=3)


@pytest.mark.parametrize("role", ["actor", "evaluator"])
@pytest.mark.parametrize("message", [HELLO, ShardWant(rank=0, num_ranks=1, step=0)])
async def test_a_key_for_another_role_gets_nothing(machines: Machines, role: Role, message: Message) -> None:
    answer = await told(machines.admitted(role), message, "run")
    assert isinstance(answer, Reject)
    assert (answer.reason, answer.detail.split(":")[0]) == ("role", f"the key is for the role {role}")
    assert machines.came == []


async def test_nobody_is_let_in_without_a_key_that_is_admitted(machines: Machines) -> None:
    stranger = admit(machines.keys, "known", "rank")
    public, secret = new_pair()
    other = CurveClient("known", "rank", public, secret, stranger.server_public)
    for curve in (None, other):
        assert await told_if_taken(machines.dealer(curve)) is None
    assert machines.came == []


async def told_if_taken(dealer: DealerChannel) -> Message | None:
    try:
        return await told(dealer, HELLO, seconds=1.0)
    except Exception:
        return None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_nodes": 3}, "it is node 1 of 3, and node 0 is one of 2"),
        ({"node": 2}, "it is node 2 of 2"),
        ({"num_local": 1}, "it has 1 ranks and node 0 has 2"),
        ({"model": "another"}, "its copy of the model is another one"),
        ({"versions": ("torch 3", "deepspeed 1")}, "it has torch 3 and node 0 has torch 2"),
    ],
)
async def test_a_machine_that_is_not_as_node_0_is_refused(
    machines: Machines, changes: dict[str, object], problem: str
) -> None:
    answer = await told(machines.admitted("rank"), HELLO.model_copy(update=changes))
    assert isinstance(answer, Reject)
    assert problem in answer.detail


async def test_a_machine_whose_place_another_has_taken_is_told_so(machines: Machines) -> None:
    first, second = machines.admitted("rank"), machines.admitted("rank")
    await told(first, HELLO)
    await told(second, HELLO.model_copy(update={"session": "b" * 32}))
    answer = await told(first, NodeBeat(session="a" * 32, node=1, round_number=0, state="idle"), "run")
    assert isinstance(answer, Reject)
    assert (answer.reason, answer.detail) == ("invalid", "another machine is node 1 by now")


async def test_a_machine_that_a_new_start_does_not_know_joins_again(machines: Machines) -> None:
    beat = NodeBeat(session="a" * 32, node=1, round_number=3, state="running")
    answer = await told(machines.admitted("rank"), beat, "run")
    assert isinstance(answer, Reject)
    assert answer.reason == "rejoin"
