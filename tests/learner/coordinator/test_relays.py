"""Whom actors are told to ask for weights, as relays come, go and are lost."""

from pathlib import Path

from dcpo_async.protocol.messages import Bye, VersionMessage, Welcome
from learner.scheduling.relay_tree import TAKEN_OUT_SECONDS
from tests.learner.coordinator.running import Learner, Peer, heartbeat, learning
from tests.learner.small_run import OpenIntake, make_config
from tests.protocol.made_session import hello


async def joined(learner: Learner, name: str, relay: str) -> tuple[Peer, str]:
    """An actor that has joined, and whom it is told to ask."""
    actor = learner.actor(name)
    await actor.say(hello(actor.name, relay=relay))
    return actor, (await actor.hear(Welcome)).ask


async def told(actor: Peer, relay: str, lost_relay: str = "") -> str:
    """Whom an actor is told to ask in the answer to its heartbeat."""
    await actor.say(heartbeat().model_copy(update={"relay": relay, "lost_relay": lost_relay}))
    return (await actor.hear(VersionMessage)).ask


async def test_actors_are_told_whom_to_ask_by_the_welcome_and_by_every_version(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        names = "abcdef"
        joining = [await joined(learner, name, f"tcp://{name}:1") for name in names]
        assert [ask for _, ask in joining] == ["", "", "tcp://a:1", "tcp://a:1", "tcp://b:1", "tcp://b:1"]
        assert await told(joining[4][0], "tcp://e:1") == "tcp://b:1"
        await learner.publish()
        assert (await joining[3][0].hear(VersionMessage)).ask == "tcp://a:1"


async def test_a_relay_that_was_lost_is_nobodys_parent_for_a_while(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        a, b, c = [(await joined(learner, name, f"tcp://{name}:1"))[0] for name in "abc"]
        assert await told(b, "tcp://b:1", lost_relay="tcp://a:1") == "", "it was not sent there, so it cannot say so"
        assert await told(c, "tcp://c:1") == "tcp://a:1"
        assert await told(c, "tcp://c:1", lost_relay="tcp://a:1") == ""
        assert await told(a, "tcp://a:1") == "tcp://c:1"
        learner.wait(TAKEN_OUT_SECONDS)
        _, ask = await joined(learner, "d", "")
        assert ask == "tcp://c:1"
        assert [await told(peer, f"tcp://{name}:1") for name, peer in zip("abc", (a, b, c), strict=True)] == [
            "tcp://c:1", "", "",
        ]  # fmt: skip


async def test_whoever_leaves_is_asked_no_more_and_so_is_a_machine_that_has_nothing_to_hand_on(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        a, b, c = [(await joined(learner, name, f"tcp://{name}:1"))[0] for name in "abc"]
        assert await told(a, "") == "tcp://c:1"
        assert await told(c, "tcp://c:1") == ""
        await c.say(Bye(reason="the end"))
        assert await told(a, "") == "tcp://b:1" or await told(b, "tcp://b:1") == ""
        learner.coordinator.actors.lose(b"b", "silent")
        assert await told(a, "") == ""


async def test_evaluators_ask_the_weight_server_and_take_no_place(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        for name in "ab":
            await joined(learner, name, f"tcp://{name}:1")
        evaluator = learner.actor("e")
        await evaluator.say(hello(evaluator.name, role="evaluator", relay="tcp://e:1"))
        assert (await evaluator.hear(Welcome)).ask == ""
        assert await told(evaluator, "tcp://e:1") == ""
        _, ask = await joined(learner, "c", "tcp://c:1")
        assert ask == "tcp://a:1"
