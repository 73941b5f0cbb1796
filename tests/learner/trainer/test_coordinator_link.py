import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcpo_async.errors import ProtocolError, TrainerError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import (
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.supervision import SIGNS
from dcpo_async.transport.interfaces import Router
from dcpo_async.transport.memory_channel import MemoryNetwork
from learner.coordinator.shards import shard_message
from learner.trainer.coordinator_link import RankLink, samples_of


def link_over(network: MemoryNetwork) -> RankLink:
    channel = network.dealer(b"rank")
    return RankLink(channel, "memory", "run", incarnation=3, name="rank 1", rank=1, num_ranks=2, resend_seconds=0.02)


def link_and_router() -> tuple[RankLink, Router]:
    network = MemoryNetwork()
    router = network.router()
    return link_over(network), router


async def heard(router: Router) -> list[Message]:
    messages = []
    for received in await router.receive(0.2):
        assert isinstance(received.envelope, Envelope)
        messages.append(received.envelope.message)
    return messages


async def say(router: Router, message: Message) -> None:
    await router.send(b"rank", Envelope(message, {}, "run", 3))


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
    assert await asking is None


async def test_a_rank_that_waits_is_missed_within_seconds_and_has_a_step_s_time_once_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = tmp_path / "signs"
    monkeypatch.setenv(SIGNS, str(signs))
    monkeypatch.setattr("dcpo_async.supervision._pen", None)
    link, router = link_and_router()
    link.work_seconds = 900.0
    asking = asyncio.create_task(link.ask_for_shard(4, deadline_seconds=5))
    await heard(router)
    _, next_within, words = signs.read_text().split(maxsplit=2)
    assert words.strip() == "rank 1 waits for the answer to shard_want of step 4"
    assert float(next_within) <= 20
    await say(router, TrainerFinished(step=4))
    await asking
    _, next_within, words = signs.read_text().split(maxsplit=2)
    assert (float(next_within), words.strip()) == (900, "rank 1 has the answer to shard_want of step 4")


async def test_answers_about_another_step_are_passed_over() -> None:
    link, router = link_and_router()
    await say(router, VersionGrant(weights_version=8, step=5))
    await say(router, VersionGrant(weights_version=9, step=6))
    assert await link.ask_for_version(6, deadline_seconds=5) == 9


async def test_every_message_says_of_which_start_of_the_learner_the_rank_is() -> None:
    link, router = link_and_router()
    await link.join(step=6)
    await link.tell(StepDone(step=7, metrics={"loss": 0.5}))
    received = await router.receive(0.2)
    envelopes = [one.envelope for one in received if isinstance(one.envelope, Envelope)]
    assert [(envelope.run_id, envelope.incarnation) for envelope in envelopes] == [("run", 3)] * 2
    assert envelopes[0].message == TrainerHello(rank=1, num_ranks=2, step=6)


async def test_silence_beyond_the_deadline_names_the_coordinator() -> None:
    link, _ = link_and_router()
    with pytest.raises(TrainerError, match=r"rank 1: the coordinator at memory .* shard_want of step 3"):
        await link.ask_for_shard(3, deadline_seconds=0.1)


async def test_a_coordinator_that_is_away_for_a_while_is_waited_for() -> None:
    network = MemoryNetwork()
    link = link_over(network)
    asking = asyncio.create_task(link.ask_for_shard(0, deadline_seconds=5))
    await asyncio.sleep(0.05)
    router = network.router()
    assert ShardWant(rank=1, num_ranks=2, step=0) in await heard(router)
    await say(router, TrainerFinished(step=0))
    assert await asking is None


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


async def test_ranks_that_share_tokens_ask_for_one_shard_and_one_of_them_tells_of_it() -> None:
    link, router = link_and_router()
    link.rank, link.num_ranks, link.sequence_parallel = 3, 4, 2
    with pytest.raises(TrainerError):
        await link.ask_for_shard(7, deadline_seconds=0.05)
    wants = await heard(router)
    assert {(want.rank, want.num_ranks) for want in wants if isinstance(want, ShardWant)} == {(1, 2)}
    await link.tell_once(TrainerHello(rank=3, num_ranks=4, step=7), {})
    link.rank = 2
    await link.tell_once(TrainerHello(rank=2, num_ranks=4, step=7), {})
    hellos = [message for message in await heard(router) if isinstance(message, TrainerHello)]
    assert [hello.rank for hello in hellos] == [2]
