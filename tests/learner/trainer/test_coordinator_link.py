import asyncio
from dataclasses import replace

import numpy as np
import pytest

from dcpo_async.errors import ProtocolError, TrainerError
from dcpo_async.protocol.messages import (
    Envelope,
    Message,
    Published,
    Reject,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.transport.interfaces import Router
from dcpo_async.transport.memory_channel import MemoryNetwork
from learner.coordinator.shards import shard_message
from learner.trainer.coordinator_link import CoordinatorLink, samples_of


def link_and_router() -> tuple[CoordinatorLink, Router]:
    network = MemoryNetwork()
    router = network.router()
    link = CoordinatorLink(network.dealer(b"rank"), "memory", "run", rank=1, num_ranks=2, resend_seconds=0.02)
    return link, router


async def heard(router: Router) -> list[Message]:
    messages = []
    for received in await router.receive(0.2):
        assert isinstance(received.envelope, Envelope)
        messages.append(received.envelope.message)
    return messages


async def say(router: Router, message: Message, incarnation: int = 1) -> None:
    await router.send(b"rank", Envelope(message, {}, "run", incarnation))


def samples() -> list[TrainingSample]:
    return [
        TrainingSample(
            position=7,
            index=index,
            prompt_token_ids=np.arange(3 + index, dtype=np.int32),
            token_ids=np.arange(length, dtype=np.int32),
            behavior_logprobs=-np.arange(length, dtype=np.float32),
            old_logprobs=np.full(length, np.nan, dtype=np.float32),
            token_lags=np.full(length, 2, dtype=np.int32),
            advantage=0.5 - index,
            token_weight=0.25,
        )
        for index, length in enumerate((2, 0, 4))
    ]


async def test_a_question_is_asked_again_until_it_is_answered() -> None:
    link, router = link_and_router()
    asking = asyncio.create_task(link.ask_for_shard(4, deadline_seconds=5))
    await asyncio.sleep(0.1)
    asked = await heard(router)
    assert len(asked) > 1
    assert set(asked) == {ShardWant(rank=1, num_ranks=2, step=4)}
    await say(router, TrainerFinished(step=4))
    assert (await asking).message == TrainerFinished(step=4)


async def test_answers_about_another_step_are_passed_over() -> None:
    link, router = link_and_router()
    link.step = 6
    await say(router, VersionGrant(weights_version=8, step=5, incarnation=1))
    await say(router, VersionGrant(weights_version=9, step=6, incarnation=1))
    assert (await link.ask_for_version(deadline_seconds=5)).weights_version == 9


async def test_a_restarted_coordinator_hears_hello_and_the_newest_facts_again() -> None:
    link, router = link_and_router()
    for step in (3, 4):
        await link.tell(StepDone(step=step, metrics={"loss": 0.5}))
    await link.tell(Published(weights_version=2, step=4))
    link.step = 4
    await heard(router)
    asking = asyncio.create_task(link.ask_for_version(deadline_seconds=5))
    await say(router, Reject(reason="rejoin", detail="unknown"), incarnation=2)
    await asyncio.sleep(0.1)
    told = await heard(router)
    assert told[:4] == [
        VersionWant(step=4),
        TrainerHello(rank=1, num_ranks=2, step=4),
        StepDone(step=4, metrics={"loss": 0.5}),
        Published(weights_version=2, step=4),
    ]
    assert set(told[4:]) == {VersionWant(step=4)}
    assert link.incarnation == 2
    await say(router, VersionGrant(weights_version=3, step=4, incarnation=2), incarnation=2)
    assert (await asking).weights_version == 3


async def test_silence_beyond_the_deadline_names_the_coordinator() -> None:
    link, _ = link_and_router()
    with pytest.raises(TrainerError, match=r"rank 1: the coordinator at memory .* shard_want of step 3"):
        await link.ask_for_shard(3, deadline_seconds=0.1)


async def test_a_coordinator_that_is_away_for_a_while_is_waited_for() -> None:
    network = MemoryNetwork()
    link = CoordinatorLink(network.dealer(b"rank"), "memory", "run", rank=0, num_ranks=1, resend_seconds=0.02)
    asking = asyncio.create_task(link.ask_for_shard(0, deadline_seconds=5))
    await asyncio.sleep(0.05)
    router = network.router()
    assert ShardWant(rank=0, num_ranks=1, step=0) in await heard(router)
    await say(router, TrainerFinished(step=0))
    assert (await asking).message == TrainerFinished(step=0)


async def test_a_refusal_ends_the_rank_with_its_reason() -> None:
    link, router = link_and_router()
    await say(router, Reject(reason="run_id", detail="this learner is on run b"))
    with pytest.raises(TrainerError, match="this learner is on run b"):
        await link.ask_for_shard(0, deadline_seconds=5)


def test_samples_survive_the_message_of_their_shard() -> None:
    expected = samples()
    found = samples_of(Envelope(*shard_message(expected, 3)))
    for one, other in zip(expected, found, strict=True):
        assert (one.position, one.index, one.advantage, one.token_weight) == (
            other.position,
            other.index,
            other.advantage,
            other.token_weight,
        )
        for name in ("prompt_token_ids", "token_ids", "behavior_logprobs", "old_logprobs", "token_lags"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert samples_of(Envelope(*shard_message([], 3))) == []


def test_arrays_that_do_not_fit_the_lengths_are_refused() -> None:
    message, arrays = shard_message(samples(), 3)
    with pytest.raises(ProtocolError, match="token_lags: 5 elements for lengths that add up to 6"):
        samples_of(Envelope(message, {**arrays, "token_lags": arrays["token_lags"][:5]}))


def test_columns_of_different_lengths_are_refused() -> None:
    envelope = Envelope(*shard_message(samples(), 3))
    cut = envelope.message.model_copy(update={"advantages": (0.5,)})
    with pytest.raises(ProtocolError, match="columns of"):
        samples_of(replace(envelope, message=cut))
