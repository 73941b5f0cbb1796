"""A learner and an actor of the release before it, over real sockets."""

from pathlib import Path

from dcpo_async.protocol.codec import PREVIOUS_VERSION
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Ack, Bye, VersionMessage, Want, Welcome
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, listening_to_actors
from tests.learner.coordinator.running import Learner, Peer, heartbeat, learning, name_of, until
from tests.learner.small_run import OpenIntake, make_config
from tests.protocol.made_session import hello

LIMIT = 1 << 24


async def test_an_actor_of_the_release_before_joins_answers_and_leaves_beside_one_of_today(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    router = listening_to_actors("tcp://127.0.0.1:0", LIMIT, LIMIT, None, False)
    async with learning(make_config(tmp_path), open_intake, lambda *_: router) as learner:  # type: ignore[arg-type, return-value]
        await _two_releases(learner, router)
    router.close()


async def _two_releases(learner: Learner, router: RouterChannel) -> None:
    peers = []
    for name, version in (("old", PREVIOUS_VERSION), ("new", PROTOCOL_VERSION)):
        peer = Peer(learner.actors, name)
        peer.channel = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, version=version)  # type: ignore[assignment]
        await peer.say(hello(name, release="1.0"))
        await peer.hear(Welcome)
        peers.append(peer)
    await learner.publish()
    connected = learner.coordinator.actors.connected
    assert {name: actor.release for name, actor in connected.items()} == {b"old": "", b"new": "1.0"}
    assert "an earlier dcpo-async, to be upgraded next" in str(connected[b"old"])
    for peer in peers:
        await peer.hear(VersionMessage)
        await peer.say(Want(num_leases=1))
        lease = await peer.lease()
        await peer.say(heartbeat(name_of(lease)))
        await peer.hear(VersionMessage)
        await peer.send_group(lease)
        assert (await peer.hear(Ack)).outcome == "accepted"
        await peer.say(Bye(reason="done"))
    await until(lambda: not connected)
    for peer in peers:
        peer.channel.close()
