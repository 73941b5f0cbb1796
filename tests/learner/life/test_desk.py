"""A learner at work takes what commands ask of it, once, and says so; without one they say that there is none."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.protocol.messages import Ack, Bye, Reject, VersionMessage, Want
from dcpo_async.run_folder import REQUESTS, RunFolder
from learner.life.asking import ask, main
from learner.life.desk import LifeDesk, life_desk
from learner.life.events import write_event
from tests.learner.coordinator.running import Learner, heartbeat, holding_one_lease, learning, until
from tests.learner.life.made_run import begin
from tests.learner.small_run import OpenIntake, make_config


@asynccontextmanager
async def at_work(folder: Path, open_intake: OpenIntake) -> AsyncIterator[tuple[Learner, LifeDesk, list[bool]]]:
    """A learner with its desk, and how it was asked to stop."""
    stops: list[bool] = []

    def stop(dismiss: bool) -> int:
        stops.append(dismiss)
        return 3

    async with learning(make_config(folder), open_intake) as learner:
        coordinator, config = learner.coordinator, learner.intake.config
        desk = life_desk(config, coordinator, learner.intake, stop)
        task = asyncio.create_task(desk.run())
        try:
            yield learner, desk, stops
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def asked(folder: Path, kind: str, **content: Any) -> Any:
    return await asyncio.to_thread(ask, RunFolder(folder), kind, **content)


async def test_a_setting_is_taken_and_one_that_may_not_change_is_refused(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with at_work(tmp_path, open_intake) as (learner, _, _):
        answer = await asked(tmp_path, "set", settings={"network.silence_seconds": "60"}, at_step=None)
        assert answer["says"] == "network.silence_seconds 60.0: from step 1 on"
        assert learner.intake.config.network.silence_seconds == 60
        with pytest.raises(ConfigError, match="seed belongs to the run"):
            await asked(tmp_path, "set", settings={"seed": "3"}, at_step=None)
        assert not list((tmp_path / "requests").iterdir())


async def test_an_actor_that_is_drained_answers_what_it_holds_and_is_dismissed(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with at_work(tmp_path, open_intake) as (learner, _, stops):
        actor, lease = await holding_one_lease(learner)
        with pytest.raises(ConfigError, match="no actor b is connected; there are a"):
            await asked(tmp_path, "drain", actor="b", by="somebody")
        assert (await asked(tmp_path, "drain", actor="a", by="somebody"))["waits"] == {"a": 1}
        assert (await actor.hear(VersionMessage)).drain == "dcpo drain, asked by somebody"
        await actor.say(Want(num_leases=4))
        assert await actor.hears_nothing()
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"
        assert (await actor.hear(Reject)).reason == "draining"
        assert stops == []


async def test_an_actor_is_told_that_it_is_let_go_and_by_whom(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with at_work(tmp_path, open_intake) as (learner, _, _):
        actor, _ = await holding_one_lease(learner)
        await actor.say(heartbeat())
        assert (await actor.hear(VersionMessage)).drain == ""
        await asked(tmp_path, "drain", actor="a", by="somebody on a machine")
        assert (await actor.hear(VersionMessage)).drain == "dcpo drain, asked by somebody on a machine"
        # Again and again, should it not have heard it.
        await actor.say(heartbeat())
        assert (await actor.hear(VersionMessage)).drain == "dcpo drain, asked by somebody on a machine"


async def test_of_actors_that_are_drained_one_alone_is_waited_for_and_one_that_is_lost_is_told_of(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with at_work(tmp_path, open_intake) as (learner, _, _):
        await holding_one_lease(learner)
        b = learner.actor("b")
        await b.join()
        await b.say(Want(num_leases=1))
        lease = await b.lease()
        await asked(tmp_path, "drain", actor="a", by="")
        assert (await asked(tmp_path, "drain", actor="b", by=""))["waits"] == {"b": 1}
        # One leaves in order, the other falls silent with what it holds.
        await b.hear(VersionMessage)
        await b.send_group(lease)
        assert (await b.hear(Ack)).outcome == "accepted"
        await b.say(Bye(reason="drained"))
        await until(lambda: b"b" not in learner.coordinator.actors.connected)
        learner.wait(60.0)
        await until(lambda: not learner.coordinator.actors.connected)
        assert await told_of(tmp_path, "a") == ({}, True)
        assert await told_of(tmp_path, "b") == ({}, False)
        assert learner.coordinator.actors.rotation.drained == {}


async def told_of(folder: Path, actor: str) -> tuple[dict[str, int], bool]:
    answer = await asked(folder, "waits", actor=actor)
    return answer["waits"], answer["lost"]


async def test_a_run_that_is_drained_stops_once_nothing_is_held(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with at_work(tmp_path, open_intake) as (learner, _, stops):
        actor, lease = await holding_one_lease(learner)
        late = learner.actor("late")
        assert (await asked(tmp_path, "drain", actor=None, by=""))["waits"] == {"a": 1}
        await late.join()
        await late.say(Want(num_leases=4))
        await until(lambda: learner.coordinator.actors.rotation.drained.keys() >= {b"late"})
        assert stops == []
        await actor.send_group(lease)
        await until(lambda: stops == [True])


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_stop_says_what_has_no_checkpoint(tmp_path: Path, open_intake: OpenIntake, is_kept: bool) -> None:
    async with at_work(tmp_path, open_intake) as (_, _, stops):
        answer = await asked(tmp_path, "stop", keep_actors=is_kept)
        assert (answer["unsaved"], stops) == (3, [not is_kept])


async def test_what_others_could_have_written_or_nobody_understands_is_refused(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with at_work(tmp_path, open_intake) as (_, _, stops):
        requests = tmp_path / "requests"
        text = json.dumps({"kind": "stop", "content": {"keep_actors": False}})
        for name, content, mode in (("a", text, 0o622), ("b", "{", 0o600), ("c", '{"kind": "fly"}', 0o600)):
            path = requests / f".{name}"
            path.write_text(content)
            path.chmod(mode)
            path.rename(requests / f"{name}.request")
        await until(lambda: len(list(requests.glob("*.answer"))) == 3)
        answers = [json.loads(path.read_text()) for path in sorted(requests.glob("*.answer"))]
        assert [answer["taken"] for answer in answers] == [False] * 3
        assert "others than the learner's user can write it" in answers[0]["says"]
        assert stops == []


async def test_requests_of_before_a_start_are_not_done(tmp_path: Path, open_intake: OpenIntake) -> None:
    folder = tmp_path / REQUESTS
    folder.mkdir()
    (folder / "1.request").write_text(json.dumps({"kind": "stop", "content": {"keep_actors": False}}))
    async with learning(make_config(tmp_path), open_intake) as learner:
        desk = life_desk(learner.intake.config, learner.coordinator, learner.intake, lambda dismiss: 1 // 0)
        await asyncio.sleep(0)
        desk.look()
        assert not list(folder.iterdir())


def test_without_a_learner_commands_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger").mkdir()
    for words in (["stop", str(tmp_path)], ["drain", str(tmp_path)], ["set", str(tmp_path), "actor.stall_seconds=9"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert "no learner is at work on it, and nothing has changed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["set", str(tmp_path), "lag.max_lag=9"])
    assert "decides which groups may train" in capsys.readouterr().err


def test_a_stop_tells_of_this_learners_end_and_of_no_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    intake = begin(tmp_path)
    write_event(intake.ledger, 7, "stopped", unsaved=0)
    intake.ledger.close()
    # This one finishes the run, and so writes no such thing.
    learner = begin(tmp_path)
    requests = tmp_path / REQUESTS
    requests.mkdir()
    incarnation = learner.ledger.incarnation

    def take() -> None:
        while not (found := list(requests.glob("*.request"))):
            time.sleep(0.01)
        answer = {"taken": True, "unsaved": 0, "step": 9, "incarnation": incarnation}
        write_json(found[0].with_suffix(".answer"), answer)
        learner.ledger.close()

    # SQLite's connection is this thread's.
    asking = threading.Thread(target=main, args=(["stop", str(tmp_path)],))
    asking.start()
    take()
    asking.join()
    said = capsys.readouterr().out
    assert "taken at step 9" in said
    assert "stopped after step 7" not in said
    assert "the learner has ended" in said
