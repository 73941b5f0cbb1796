"""What a key allows at the coordinator, over real sockets: a role, a name, a session, until it is revoked."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dcpo_async.errors import PeerLostError
from dcpo_async.protocol.messages import LeaseFailed, LeaseMessage, Reject, Want, Welcome
from dcpo_async.transport.admission import Role
from dcpo_async.transport.key_files import CurveClient, load_server_keys, revoke
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel
from learner.scheduling.sessions import ConnectedActor
from tests.learner.coordinator.running import Learner, Peer, learning, until
from tests.learner.small_run import OpenIntake, make_config
from tests.protocol.made_session import hello
from tests.transport.keys import admit, learner_keys

LIMIT = 1 << 24


class Keyed:
    """A learner whose actors come over TCP, each with keys of its own."""

    def __init__(self, keys: Path, learner: Learner, router: RouterChannel) -> None:
        self.keys, self.learner, self.router = keys, learner, router
        self.dealers: list[DealerChannel] = []

    def peer(self, name: str, role: Role = "actor") -> Peer:
        """One with new keys, which are admitted."""
        return self.with_keys(admit(self.keys, name, role), name)

    def with_keys(self, curve: CurveClient, name: str) -> Peer:
        dealer = DealerChannel(f"tcp://127.0.0.1:{self.router.port}", LIMIT, curve)
        self.dealers.append(dealer)
        peer = Peer(self.learner.actors, name)
        peer.channel = dealer  # type: ignore[assignment]
        return peer

    @property
    def connected(self) -> dict[bytes, ConnectedActor]:
        return self.learner.coordinator.actors.connected


@pytest.fixture
async def keyed(tmp_path: Path, open_intake: OpenIntake) -> AsyncIterator[Keyed]:
    keys = learner_keys(tmp_path / "keys")
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT, load_server_keys(keys))
    async with learning(make_config(tmp_path), open_intake, lambda *_: router) as learner:  # type: ignore[arg-type, return-value]
        await learner.publish()
        made = Keyed(keys, learner, router)
        yield made
    for dealer in made.dealers:
        dealer.close()
    router.close()


async def leased(peer: Peer) -> LeaseMessage:
    await peer.say(Want(num_leases=1))
    message = await peer.hear(LeaseMessage)
    peer.num_received = message.number
    return message


def holders(keyed: Keyed) -> set[bytes]:
    return {slot.holder for slot in keyed.learner.intake.table.open_slots if slot.holder}


async def test_a_peer_speaks_under_the_name_of_its_key_whatever_it_says(keyed: Keyed) -> None:
    actor = keyed.peer("node-1")
    await actor.say(hello("node-2").model_copy(update={"host": "node-2"}))
    await actor.hear(Welcome)
    assert {name: of.host for name, of in keyed.connected.items()} == {b"node-1/node-2": "node-1"}
    assert keyed.learner.intake.blame.host_of(b"node-1/node-2") == "node-1"


@pytest.mark.parametrize(("of_key", "said"), [("evaluator", "actor"), ("actor", "evaluator"), ("rank", "actor")])
async def test_a_key_of_another_role_joins_as_nothing_and_is_one_line(
    keyed: Keyed, caplog: pytest.LogCaptureFixture, of_key: Role, said: Role
) -> None:
    peer = keyed.peer("a", of_key)
    await peer.say(hello("x", role=said))
    reject = await peer.hear(Reject)
    assert reject.reason == "role"
    line = f"hello as {said}: the key of a is for the role {of_key}, which does not send it"
    assert reject.detail == line
    assert len([found for found in caplog.messages if line in found]) == 1
    assert keyed.connected == {}
    assert keyed.learner.intake.counts["messages_refused"] == 1


async def test_an_evaluator_gets_no_lease_and_cannot_speak_of_one(keyed: Keyed) -> None:
    evaluator = keyed.peer("watcher", "evaluator")
    await evaluator.say(hello("w", role="evaluator"))
    await evaluator.hear(Welcome)
    for message in (Want(num_leases=1), LeaseFailed(position=0, attempt=1, reason="no", is_prompts_fault=True)):
        await evaluator.say(message)
        assert (await evaluator.hear(Reject)).reason == "role"
    assert holders(keyed) == set()


async def test_a_key_for_ranks_says_nothing_to_the_socket_of_actors(keyed: Keyed) -> None:
    await keyed.peer("a", "rank").say(Want(num_leases=1))
    machine = keyed.peer("b", "rank")
    await machine.say(Want(num_leases=1))
    assert (await machine.hear(Reject)).reason == "role"
    assert keyed.connected == {}


async def test_what_a_revoked_key_held_goes_out_again_at_once_and_it_hears_nothing_more(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone, friend = keyed.peer("gone"), keyed.peer("friend")
    await gone.join()
    lease = await leased(gone)
    await friend.join()
    revoke(keyed.keys, "gone")
    # The clock of the learner stands still: nothing that follows is by silence.
    await until(lambda: holders(keyed) == set() and len(keyed.connected) == 1)
    [line] = [line for line in caplog.messages if "lost" in line]
    assert line.endswith("lost: the key of actor gone is no longer admitted; 1 leases go out again")
    again = await leased(friend)
    assert (again.position, again.attempt) == (lease.position, lease.attempt + 1)
    assert await gone.channel.receive(0.1) is None
    with pytest.raises(PeerLostError):
        await gone.say(hello("gone"))
    assert set(keyed.connected) == {b"friend/friend"}


async def test_another_key_cannot_take_a_session_over_though_it_knows_its_secret(keyed: Keyed) -> None:
    owner, thief = keyed.peer("owner"), keyed.peer("thief")
    await owner.join()
    lease = await leased(owner)
    await thief.say(hello("owner", held=((lease.position, lease.attempt),)))
    await thief.hear(Welcome)
    assert set(keyed.connected) == {b"owner/owner", b"thief/owner"}
    assert holders(keyed) == {b"owner/owner"}
    await thief.say(LeaseFailed(position=lease.position, attempt=lease.attempt, reason="no", is_prompts_fault=False))
    await thief.say(Want(num_leases=0))
    await owner.say(Want(num_leases=0))
    assert holders(keyed) == {b"owner/owner"}


async def test_a_key_takes_its_own_session_over_to_another_connection(keyed: Keyed) -> None:
    curve = admit(keyed.keys, "owner")
    before, after = keyed.with_keys(curve, "owner"), keyed.with_keys(curve, "owner")
    await before.join()
    lease = await leased(before)
    await after.say(hello("owner", held=((lease.position, lease.attempt),)))
    await after.hear(Welcome)
    assert set(keyed.connected) == {b"owner/owner"} == holders(keyed)


async def test_others_hear_of_a_relay_by_its_machines_key(keyed: Keyed) -> None:
    above = admit(keyed.keys, "above")
    relaying = keyed.with_keys(above, "above")
    await relaying.say(hello("above", relay="tcp://10.0.0.7:5560"))
    assert (await relaying.hear(Welcome)).ask == ""
    for name in ("b", "c"):
        peer = keyed.peer(name)
        await peer.say(hello(name, relay=f"tcp://10.0.0.8:{ord(name)}"))
        asked = (await peer.hear(Welcome)).ask
    assert asked == f"tcp://10.0.0.7:5560/{above.public.decode()}"


async def test_a_relays_address_that_is_too_long_to_tell_is_not_told(keyed: Keyed) -> None:
    relaying = keyed.peer("above")
    await relaying.say(hello("above", relay="t" * 300))
    await relaying.hear(Welcome)
    keyed.learner.coordinator.actors.announce()
    for name in ("b", "c"):
        peer = keyed.peer(name)
        await peer.say(hello(name))
        assert (await peer.hear(Welcome)).ask == ""
