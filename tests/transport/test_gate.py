"""Who gets a message through to a router with keys, over real sockets."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dcpo_async.errors import PeerLostError, RevokedError
from dcpo_async.protocol.messages import Bye, Envelope, Want
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.key_files import CurveClient, load_server_keys, revoke
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, new_pair
from tests.transport.keys import admit, learner_keys

LIMIT = 1 << 20
WANT = Envelope(Want(num_leases=3), run_id="run", incarnation=1)
DONE = Envelope(Bye(reason="done"))

Dial = Callable[[CurveClient | None], DealerChannel]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return learner_keys(tmp_path / "keys")


@pytest.fixture
async def router(keys: Path) -> AsyncIterator[RouterChannel]:
    channel = RouterChannel("tcp://127.0.0.1:0", LIMIT, load_server_keys(keys))
    yield channel
    channel.close()


@pytest.fixture
def dial(router: RouterChannel) -> Iterator[Dial]:
    dealers = []

    def connect(curve: CurveClient | None) -> DealerChannel:
        address = f"tcp://127.0.0.1:{router.port}"
        dealers.append(DealerChannel(address, LIMIT, curve, send_timeout_seconds=0.5))
        return dealers[-1]

    yield connect
    for dealer in dealers:
        dealer.close()


async def heard(router: RouterChannel, within_seconds: float = 20.0) -> list[Received]:
    """What comes next, however busy the machine is."""
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        if received := await router.receive(0.2):
            return received
    raise AssertionError("heard nothing")


async def said(dealer: DealerChannel) -> None:
    """Send, as soon as it can be."""
    until = time.monotonic() + 40
    while True:
        try:
            await dealer.send(WANT)
        except PeerLostError:
            assert time.monotonic() < until, "never connected"
        else:
            return


async def shut_out(dealer: DealerChannel) -> None:
    """Send until nothing can be sent any more; it takes a moment before a peer notices."""
    until = time.monotonic() + 40
    while time.monotonic() < until:
        try:
            await dealer.send(WANT)
        except PeerLostError:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("still connected")


async def saying(dealer: DealerChannel) -> None:
    """Send again and again."""
    while True:
        await said(dealer)
        await asyncio.sleep(0.2)


async def logged(router: RouterChannel, caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The lines with these words, once there is one."""
    until = time.monotonic() + 20
    while not (lines := [line for line in caplog.messages if words in line]):
        assert time.monotonic() < until, caplog.messages
        assert await router.receive(0.2) == []
    return lines


async def test_a_message_comes_with_whose_key_it_is(router: RouterChannel, dial: Dial, keys: Path) -> None:
    for name, role in (("node-1", "actor"), ("watcher", "evaluator")):
        dealer = dial(admit(keys, name, role))  # type: ignore[arg-type]
        await said(dealer)
        [received] = await heard(router)
        assert received.holder is not None
        assert (received.holder.name, received.holder.role, received.envelope) == (name, role, WANT)
        await router.send(received.peer, DONE)
        assert await dealer.receive(5) == DONE


@pytest.mark.parametrize(
    ("who", "line"),
    [
        ("without keys", "refused a handshake: it has no keys, or broke off"),
        ("with a key of its own", "refused a handshake of 127.0.0.1: key "),
        ("for another server", "refused a handshake: it has the public key of another server"),
        ("as the learner itself", "refused a handshake of 127.0.0.1: key "),
    ],
)
async def test_a_stranger_gets_nothing_through_and_is_one_line(
    who: str, line: str, router: RouterChannel, dial: Dial, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, server, (public, secret) = admit(keys, "one"), load_server_keys(keys), new_pair()
    curve = {
        "without keys": None,
        "with a key of its own": replace(ours, public=public, secret=secret),
        "for another server": replace(ours, server_public=public),
        "as the learner itself": replace(ours, public=server.public, secret=server.secret),
    }[who]
    with pytest.raises(PeerLostError, match="the keys differ"):
        await dial(curve).send(WANT)
    [found] = await logged(router, caplog, line)
    assert found.endswith("… is not admitted") or line == found
    friend = dial(ours)
    await said(friend)
    assert [received.envelope for received in await heard(router)] == [WANT]


async def test_a_key_that_is_revoked_loses_its_open_connection_and_gets_no_other(
    router: RouterChannel, dial: Dial, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone, friend = dial(admit(keys, "gone")), dial(admit(keys, "friend"))
    await said(gone)
    [first] = await heard(router)
    await said(friend)
    await heard(router)
    revoke(keys, "gone")
    # It says nothing itself.
    [last] = await heard(router)
    assert (last.peer, last.holder) == (first.peer, first.holder)
    assert isinstance(last.envelope, RevokedError)
    [line] = await logged(router, caplog, "refused an open connection of 127.0.0.1:")
    assert line.endswith(": actor gone is no longer admitted by its key")
    await shut_out(gone)
    with pytest.raises(PeerLostError, match="its connection is gone"):
        await router.send(first.peer, DONE)
    assert await gone.receive(0.1) is None
    [line] = await logged(router, caplog, "refused a handshake of 127.0.0.1: the key of gone is revoked")
    await said(friend)
    assert [received.envelope for received in await heard(router)] == [WANT]


async def test_what_a_revoked_key_has_sent_before_is_not_handed_over(
    router: RouterChannel, dial: Dial, keys: Path
) -> None:
    gone = dial(admit(keys, "gone"))
    await said(gone)
    await heard(router)
    for _ in range(20):
        await gone.send(WANT)
    await asyncio.sleep(0.3)
    revoke(keys, "gone")
    await asyncio.sleep(1.2)
    assert [type(received.envelope) for received in await heard(router)] == [RevokedError]
    assert await router.receive(0.5) == []


@pytest.mark.system
async def test_a_key_gets_in_once_it_is_admitted_though_it_was_refused_before(
    router: RouterChannel, dial: Dial, keys: Path, tmp_path: Path
) -> None:
    curve = admit(keys, "late")
    file = (keys / "admitted" / "late.key").rename(tmp_path / "late.key")
    dealer = dial(curve)
    with pytest.raises(PeerLostError):
        await dealer.send(WANT)
    file.rename(keys / "admitted" / "late.key")
    sent = asyncio.create_task(said(dealer))
    assert [received.envelope for received in await heard(router, 40)] == [WANT]
    await sent


async def test_a_key_of_another_role_is_another_peer(router: RouterChannel, dial: Dial, keys: Path) -> None:
    dealer, path = dial(admit(keys, "one")), keys / "admitted" / "one.key"
    await said(dealer)
    await heard(router)
    other = path.with_suffix(".new")
    other.write_text(path.read_text().replace("actor", "evaluator"))
    other.rename(path)
    [last] = await heard(router)
    assert isinstance(last.envelope, RevokedError)
    # What it says before it notices is lost.
    speaking = asyncio.create_task(saying(dealer))
    [again, *_] = await heard(router, 60)
    speaking.cancel()
    assert again.holder is not None
    assert again.holder.role == "evaluator"


async def test_a_peer_that_is_refused_over_and_over_is_one_line(
    router: RouterChannel, dial: Dial, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    public, secret = new_pair()
    stranger = replace(admit(keys, "one"), public=public, secret=secret)
    for _ in range(10):
        dial(stranger)
    await logged(router, caplog, "is not admitted")
    assert await router.receive(1.0) == []
    assert len([line for line in caplog.messages if "refused" in line]) == 1
