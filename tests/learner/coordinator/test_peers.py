"""One peer cannot hurt another: what a hostile one says is refused and counted, beside a good one that is served."""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpo_async.config import RunConfig
from dcpo_async.protocol.codec import encode
from dcpo_async.protocol.messages import (
    PROTOCOL_VERSION,
    Ack,
    Bye,
    Envelope,
    LeaseFailed,
    Reject,
    VersionMessage,
    Want,
    Welcome,
)
from dcpo_async.records import Lease
from dcpo_async.transport.memory_channel import MemoryNetwork
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger
from tests.forged import Frames, forged
from tests.learner.coordinator.running import Learner, Peer, heartbeat, holding_one_lease, learning, name_of
from tests.learner.small_run import OpenIntake, answer, make_config, make_intake
from tests.protocol.made_session import hello


def send_frames(network: MemoryNetwork, peer: bytes, frames: Frames) -> None:
    assert network.router_inbox is not None
    network.router_inbox.put([(peer, frames)])


def raw(kind: str, **words: Any) -> Frames:
    header = {"v": PROTOCOL_VERSION, "run": "", "inc": 1, "kind": kind, "body": {}, "arrays": []}
    return [msgpack.packb({**header, **words})]


async def of_kind(peer: Peer, *kinds: type) -> Any:
    """The next message of one of these kinds, whatever comes before."""
    while True:
        envelope = await peer.channel.receive(5.0)
        assert envelope is not None, "heard nothing"
        if isinstance(envelope.message, kinds):
            return envelope.message


@pytest.mark.parametrize(
    "frames",
    [
        raw("want", **{"k" * (1 << 20): 1}),
        raw("want", body={"k" * 60_000: 1}),
        raw("k" * 60_000),
        raw("want", run="r" * 60_000),
        raw("hello", body={"held": [[i, 1] for i in range(100_000)]}),
        [msgpack.packb({"k" * (1 << 20): 1})],
        [b""],
    ],
    ids=["word of 1 MiB", "body", "kind", "run", "held", "no version", "nothing"],
)
async def test_no_message_ends_the_coordinator(tmp_path: Path, open_intake: OpenIntake, frames: Frames) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        stranger = learner.actor("stranger")
        send_frames(learner.actors, b"stranger", frames)
        reject = await stranger.hear(Reject)
        assert reject.reason in ("invalid", "run_id")
        assert len(reject.detail) <= 1000
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"


def group_frames(lease: Lease, **changes: Any) -> Frames:
    """The honest group of a lease, with other words in its body."""
    frames = [bytes(frame) for frame in encode(answer(lease, 1))]
    header = msgpack.unpackb(frames[0])
    header["body"] |= changes
    return [msgpack.packb(header), *frames[1:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": [[[1, 1]] * 100_000, [[1, 2]]]},
        {"segments": [[[1, 0]] * 200, [[1, 2]]]},
        {"rewards": [float("nan"), 0.0]},
        {"lengths": [1 << 62, 2]},
        {"text_lengths": [1 << 62, 2]},
        {"reasons": ["\n" * 5000, ""]},
    ],
    ids=["many segments", "empty segments", "nan", "lengths", "text lengths", "reasons"],
)
async def test_a_group_that_cannot_be_read_is_a_bad_group_and_its_actor_lives(
    tmp_path: Path, open_intake: OpenIntake, changes: dict[str, Any]
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        send_frames(learner.actors, b"a", group_frames(lease, **changes))
        ack = await of_kind(actor, Ack)
        expected = "accepted" if "reasons" in changes else "invalid"
        assert (ack.position, ack.attempt, ack.outcome) == (lease.position, lease.attempt, expected)
        assert len(ack.detail) <= 1000
        assert learner.intake.ledger.num_groups == (expected == "accepted")
        await actor.say(heartbeat())
        await of_kind(actor, VersionMessage)


async def test_a_peer_that_shows_the_name_of_another_touches_neither_its_session_nor_its_leases(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner, "actor")
        thief = Peer(learner.actors, "thief")
        await thief.say(hello("thief").model_copy(update={"name": "actor", "held": (name_of(lease),)}))
        await thief.hear(Welcome)
        assert list(learner.coordinator.actors.connected) == [b"actor", b"actor~1"]
        await thief.say(LeaseFailed(position=lease.position, attempt=lease.attempt, reason="", is_prompts_fault=True))
        await thief.send_group(lease)
        assert (await of_kind(thief, Ack)).outcome == "invalid"
        await thief.say(Bye(reason="gone"))
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"


async def test_a_session_comes_back_over_another_connection_and_keeps_its_leases(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        _, lease = await holding_one_lease(learner, "actor")
        again = Peer(learner.actors, "another connection", "run", 1)
        await again.say(heartbeat(name_of(lease)))
        assert (await again.hear(Reject)).reason == "rejoin"
        await again.say(hello("actor", held=(name_of(lease),)))
        await again.hear(Welcome)
        assert list(learner.coordinator.actors.connected) == [b"actor"]
        await again.send_group(lease)
        assert (await again.hear(Ack)).outcome == "accepted"


async def test_no_secret_stands_where_others_read(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        secret = hello("a").session_id
        body = hello("a").model_dump() | {"surprise": 1}
        send_frames(learner.actors, b"a", raw("hello", body=body))
        del body["name"]
        send_frames(learner.actors, b"a", raw("hello", body=body))
        await actor.hear(Reject)
        await actor.send_group(lease)
        await of_kind(actor, Ack)
        learner.coordinator.status.write()
    assert secret not in caplog.text
    assert not files_with(tmp_path, secret.encode())


def files_with(folder: Path, word: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


FORGERY = "x\n12:00:00 learner forged line\x1b[2J"


async def test_no_words_of_a_peer_make_a_line_of_their_own(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        forger = learner.actor(FORGERY)
        await forger.say(hello("f").model_copy(update={"name": FORGERY, "host": FORGERY, "engine": FORGERY}))
        await forger.hear(Welcome)
        await forger.say(Want(num_leases=1))
        lease = await forger.lease()
        learner.coordinator.status.write()
        send_frames(learner.actors, FORGERY.encode(), raw(FORGERY))
        await of_kind(forger, Reject)
        failed = LeaseFailed(position=lease.position, attempt=1, reason=FORGERY, is_prompts_fault=False)
        await forger.say(failed)
        await forger.say(Bye(reason=FORGERY))
        await forger.say(Want(num_leases=1))
        await of_kind(forger, Reject)
    assert caplog.messages
    assert not [message for message in caplog.messages if not message.isprintable()]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["actors_connected"][0]["session"].isprintable()


async def test_a_peer_that_asks_for_everything_holds_no_more_than_an_engine_can(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=8, actor={"groups_in_flight": 1})
    async with learning(config, open_intake) as learner:
        await learner.publish()
        hoarder = learner.actor("hoarder")
        await hoarder.join()
        for _ in range(3):
            await hoarder.say(Want(num_leases=1000))
        await hoarder.say(heartbeat())
        await of_kind(hoarder, VersionMessage)
        assert len(learner.intake.table.held[b"hoarder"]) == 4


async def test_what_is_known_of_peers_that_went_does_not_grow(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actors = learner.coordinator.actors
        for number in range(50):
            passer = learner.actor(f"p{number}")
            await passer.join()
            await passer.say(Bye(reason="passing"))
        await learner.actor("last").join()
        assert list(actors.connected) == [b"last"]


def recordings(lease: Lease) -> list[Frames]:
    """What an honest actor sends."""
    envelopes = [
        Envelope(hello("forger"), run_id="run"),
        Envelope(Want(num_leases=2), {}, "run", 1),
        Envelope(heartbeat(name_of(lease)), {}, "run", 1),
        answer(lease, 1),
        Envelope(LeaseFailed(position=0, attempt=1, reason="", is_prompts_fault=True), {}, "run", 1),
        Envelope(Bye(reason="done"), {}, "run", 1),
    ]
    return [[bytes(frame) for frame in encode(envelope)] for envelope in envelopes]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 32))
async def test_forged_messages_change_nothing_beside_a_good_session(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    ledgers: list[Ledger] = []

    def opened(config: RunConfig) -> Intake:
        intake = make_intake(config)
        ledgers.append(intake.ledger)
        return intake

    async with learning(make_config(folder), opened) as learner:
        actor, lease = await holding_one_lease(learner, "good")
        before = await seen(learner)
        for frames in islice(forged(recordings(lease), seed), 150):
            send_frames(learner.actors, b"forger", frames)
        await actor.say(heartbeat(name_of(lease)))
        await of_kind(actor, VersionMessage)
        assert await seen(learner) == before
        slot = learner.intake.table.get(lease.position)
        assert slot is not None
        assert slot.holder == b"good"
        await actor.send_group(lease)
        assert (await of_kind(actor, Ack)).outcome == "accepted"
        assert learner.intake.counts["messages_refused"] > 50
    ledgers[0].abandon()


async def seen(learner: Learner) -> tuple[int, int, list[str]]:
    """What a forger must not change: groups that count, what was quarantined, and states of the good actor's leases."""
    ledger = learner.intake.ledger
    return ledger.num_groups, len(learner.intake.quarantined), [row.prompt_id for row in ledger.visits("accepted")]
