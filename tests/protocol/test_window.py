"""Two versions of the protocol side by side: a learner, and actors of the release before it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgpack
import pytest

from dcpo_async.errors import ProtocolError, VersionMismatchError
from dcpo_async.protocol import weight_messages
from dcpo_async.protocol.codec import (
    ADDED,
    MESSAGE_TYPES,
    PREVIOUS_VERSION,
    SPOKEN_WITH_ACTORS,
    decode,
    encode,
)
from dcpo_async.protocol.messages import (
    PROTOCOL_VERSION,
    Envelope,
    Reject,
    Want,
    Welcome,
)
from dcpo_async.transport import zmq_channel
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel, connecting_to_relays
from tests.protocol.made_session import HELLO, WELCOME
from tests.protocol.shapes import recorded, shapes

LIMIT = 1 << 24


@pytest.fixture
async def router() -> AsyncIterator[RouterChannel]:
    channel = RouterChannel("tcp://127.0.0.1:0", LIMIT, versions=SPOKEN_WITH_ACTORS)
    yield channel
    channel.close()


@pytest.fixture
def dial() -> Iterator[Callable[[RouterChannel, int], DealerChannel]]:
    """Connects to a router, as a peer that speaks a version."""
    dealers = []

    def connect(router: RouterChannel, version: int) -> DealerChannel:
        dealers.append(DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, version=version))
        return dealers[-1]

    yield connect
    for dealer in dealers:
        dealer.close()


Dial = Callable[[RouterChannel, int], DealerChannel]


# ---- what changed between the two


def test_messages_are_as_they_were_recorded_for_their_version() -> None:
    assert shapes() == recorded(PROTOCOL_VERSION), (
        "messages have changed since this version of the protocol was recorded. Where it was released: raise "
        "PROTOCOL_VERSION and PREVIOUS_VERSION, and write what is new into dcpo_async/protocol/codec.py. Then record "
        "it: python -m tests.protocol.shapes"
    )


def test_what_the_version_before_does_not_know_is_named_and_nothing_else_differs() -> None:
    assert PREVIOUS_VERSION == PROTOCOL_VERSION - 1
    now, before = shapes(), recorded(PREVIOUS_VERSION)
    assert now.keys() == before.keys(), "a kind that one of the two does not know is never to be sent to it"
    for kind, words in now.items():
        without = {name: digest for name, digest in words.items() if name not in ADDED.get(kind, ())}
        assert without == before[kind], kind


def test_what_is_asked_of_relays_is_the_same_in_all_versions_that_they_speak() -> None:
    assert ADDED.keys().isdisjoint({"chunk_want", "chunk", "reject"})


def test_every_word_that_is_new_has_a_default_for_peers_that_do_not_say_it() -> None:
    new = [MESSAGE_TYPES[kind].model_fields[name] for kind, names in ADDED.items() for name in names]
    assert new
    assert not any(field.is_required() for field in new)


def test_a_message_is_written_for_a_peer_of_the_version_before_without_what_is_new_to_it() -> None:
    frames = encode(Envelope(WELCOME.model_copy(update={"release": "9.9"})), PREVIOUS_VERSION)
    words: dict[str, Any] = msgpack.unpackb(frames[0])
    assert words["v"] == PREVIOUS_VERSION
    assert recorded(PREVIOUS_VERSION)["welcome"].keys() - {"[arrays]"} == words["body"].keys()
    back = decode(frames, LIMIT, versions=(PREVIOUS_VERSION,))
    assert isinstance(back.message, Welcome)
    assert (back.message.release, back.version) == ("", PREVIOUS_VERSION)
    assert back.message.sampling == WELCOME.sampling


# ---- channels


async def test_each_peer_is_answered_in_the_version_that_it_speaks(router: RouterChannel, dial: Dial) -> None:
    old, new = dial(router, PREVIOUS_VERSION), dial(router, PROTOCOL_VERSION)
    said = HELLO.model_copy(update={"release": "1.2.3"})
    for dealer, release in ((old, ""), (new, "1.2.3"), (old, "")):
        await dealer.send(Envelope(said))
        [received] = await router.receive(5)
        assert isinstance(received.envelope, Envelope)
        assert received.envelope.message == said.model_copy(update={"release": release})
        await router.send(received.peer, Envelope(WELCOME.model_copy(update={"release": "2.0"})))
        answer = await dealer.receive(5)
        assert answer is not None
        assert answer.message == WELCOME.model_copy(update={"release": release and "2.0"})


@pytest.mark.parametrize("version", [PREVIOUS_VERSION - 1, PROTOCOL_VERSION + 1])
async def test_a_version_outside_is_refused_and_told_of_both(router: RouterChannel, dial: Dial, version: int) -> None:
    await dial(router, version).send(Envelope(HELLO))
    [received] = await router.receive(5)
    which = "the peer" if version < PREVIOUS_VERSION else "this side"
    assert isinstance(received.envelope, VersionMismatchError)
    assert str(received.envelope) == (
        f"the peer speaks protocol version {version}, this side speaks {PROTOCOL_VERSION} and {PREVIOUS_VERSION}: "
        f"upgrade dcpo-async on {which}"
    )


async def test_ranks_and_machines_of_a_learner_are_of_one_release(dial: Dial) -> None:
    router = RouterChannel("tcp://127.0.0.1:0", LIMIT)
    try:
        await dial(router, PREVIOUS_VERSION).send(Envelope(Want(num_leases=1)))
        [received] = await router.receive(5)
        assert isinstance(received.envelope, VersionMismatchError)
    finally:
        router.close()


async def test_what_could_not_be_read_is_answered_in_its_version_too(router: RouterChannel, dial: Dial) -> None:
    old = dial(router, PREVIOUS_VERSION)
    malformed = encode(Envelope(Want.model_construct(num_leases=-1, num_received=0)), PREVIOUS_VERSION)
    for frames in (malformed, [b"no header"]):
        await old._socket.send_multipart(frames)
        [received] = await router.receive(5)
        assert isinstance(received.envelope, ProtocolError)
        await router.send(received.peer, Envelope(Reject(reason="invalid", detail="no")))
        answer = await old.receive(5)
        assert answer is not None
        assert isinstance(answer.message, Reject)


async def test_a_peer_of_the_version_before_is_known_though_others_come_and_go(
    router: RouterChannel, dial: Dial
) -> None:
    """One that leaves with messages unread gives its descriptor to the next, and is heard after it."""
    leaving = DealerChannel(f"tcp://127.0.0.1:{router.port}", LIMIT, version=PREVIOUS_VERSION)
    await leaving.send(Envelope(HELLO))
    await router.receive(5)
    for _ in range(4):
        await leaving.send(Envelope(HELLO))
    leaving.close()
    await asyncio.sleep(0.5)
    old = dial(router, PREVIOUS_VERSION)
    await old.send(Envelope(Want(num_leases=1)))
    await asyncio.sleep(0.5)
    heard = []
    while len(heard) < 5:
        heard += await router.receive(5)
    [peer] = [
        each.peer for each in heard if isinstance(each.envelope, Envelope) and each.envelope.message.kind == "want"
    ]
    await asyncio.sleep(0.6)
    await router.receive(0.1)
    await router.send(peer, Envelope(WELCOME))
    answer = await old.receive(5)
    assert answer is not None
    assert answer.message == WELCOME


async def test_no_more_connections_are_remembered_than_a_bound_and_the_longest_silent_go_first(
    router: RouterChannel, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_channel, "MAX_REMEMBERED", 2)
    peers, heard = [dial(router, PREVIOUS_VERSION) for _ in range(3)], []
    for number in (0, 1, 0, 2):
        await peers[number].send(Envelope(HELLO))
        [received] = await router.receive(5)
        heard.append(received.peer)
    assert [*router._spoken] == [heard[0], heard[3]]


@pytest.mark.parametrize("release", [PREVIOUS_VERSION, PROTOCOL_VERSION, PROTOCOL_VERSION + 1])
async def test_relays_of_the_release_before_of_this_one_and_of_the_next_are_asked_in_words_that_they_know(
    release: int,
) -> None:
    # As SPOKEN_BY_RELAYS is in this release, and will be in the next; a relay of the one before takes its own.
    relay = RouterChannel("tcp://127.0.0.1:0", LIMIT, versions=(release, release - 1, release - 2))
    dealer = connecting_to_relays(None, insecure=False)(f"tcp://127.0.0.1:{relay.port}")
    want = weight_messages.ChunkWant(weights_version=1, file="f", offset=0, num_bytes=1)
    try:
        await dealer.send(Envelope(want))
        [received] = await relay.receive(5)
        assert isinstance(received.envelope, Envelope)
        assert received.envelope.message == want
        await relay.send(received.peer, Envelope(Reject(reason="invalid", detail="no")))
        answer = await dealer.receive(5)
        assert answer is not None
        assert answer.version == PREVIOUS_VERSION
    finally:
        dealer.close()
        relay.close()
