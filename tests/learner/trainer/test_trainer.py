"""A real trainer (DeepSpeed, ZeroMQ) and publisher against a coordinator that serves fixed shards."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dcpo_async.config import RunConfig
from dcpo_async.processes import kill_group, last_lines, module_argv, spawn
from dcpo_async.protocol.messages import Array, Envelope, Message
from dcpo_async.protocol.trainer_messages import (
    Checkpointed,
    OldLogprobs,
    Published,
    PublishedAck,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import run_members
from dcpo_async.transport.zmq_channel import RouterChannel
from dcpo_async.weights.places import version_folder, versions
from learner.coordinator.shards import shard_message, split_by_cost
from learner.ranks import rank_environments
from tests.tiny_families import make_family
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NUM_STEPS = 4


def fixed_samples(step: int) -> list[TrainingSample]:
    """24 samples of mixed lengths, some empty, advantages of both signs; a function of the step alone."""
    generator = np.random.default_rng(step)
    samples = []
    for number in range(24):
        length = 0 if number == 5 else int(generator.integers(1, 24))
        logprobs = np.minimum(generator.normal(-4.0, 0.5, length), 0).astype(np.float32)
        samples.append(
            TrainingSample(
                position=step * 6 + number // 4,
                index=number % 4,
                prompt_token_ids=generator.integers(4, 64, int(generator.integers(3, 12)), dtype=np.int32),
                token_ids=generator.integers(4, 64, length, dtype=np.int32),
                behavior_logprobs=logprobs,
                old_logprobs=np.full(length, np.nan, dtype=np.float32),
                token_lags=np.full(length, number % 3, dtype=np.int32),
                advantage=float(generator.normal()),
                token_weight=1 / (max(1, length) * 24),
            )
        )
    return samples


@dataclass(slots=True)
class ScriptedCoordinator:
    """Serves fixed shards to whatever ranks ask, and notes what they tell; `until` ends it early.

    Where it is synchronous, a shard goes out once the weights before it are published, as with max_lag 0.
    """

    channel: RouterChannel
    samples: Callable[[int], list[TrainingSample]] = fixed_samples
    until: Callable[[Message], bool] = lambda message: False
    told: list[Message] = field(default_factory=list)
    old_logprobs: list[tuple[OldLogprobs, Array]] = field(default_factory=list)
    num_versions: int = 0
    published_step: int = -1
    publish_interval: int = 1
    is_synchronous: bool = True
    waiting: list[tuple[bytes, Message]] = field(default_factory=list)

    async def serve(self) -> None:
        while True:
            for received in await self.channel.receive(0.2):
                envelope = received.envelope
                assert isinstance(envelope, Envelope)
                message = envelope.message
                self.told.append(message)
                if isinstance(message, OldLogprobs):
                    self.old_logprobs.append((message, envelope.arrays["old_logprobs"].copy()))
                if isinstance(message, Published):
                    self.published_step = message.step
                self.waiting.append((received.peer, message))
                for peer, question in self.waiting.copy():
                    if isinstance(question, ShardWant) and self.is_early(question.step):
                        continue
                    self.waiting.remove((peer, question))
                    if answer := self.answer(question):
                        await self.channel.send(peer, answer)
                if self.until(message):
                    return

    def is_early(self, step: int) -> bool:
        return self.is_synchronous and self.published_step < step // self.publish_interval * self.publish_interval

    def answer(self, message: Message) -> Envelope | None:
        if isinstance(message, Published):
            ack = PublishedAck(weights_version=message.weights_version, step=message.step)
            return Envelope(ack, {}, "run", 1)
        if isinstance(message, VersionWant):
            self.num_versions += 1
            return Envelope(VersionGrant(weights_version=self.num_versions, step=message.step), {}, "run", 1)
        if isinstance(message, ShardWant) and message.step >= NUM_STEPS:
            return Envelope(TrainerFinished(step=message.step), {}, "run", 1)
        if isinstance(message, ShardWant):
            samples = self.samples(message.step)
            lengths = [len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples]
            shard = split_by_cost(lengths, message.num_ranks)[message.rank]
            return Envelope(*shard_message([samples[i] for i in shard], message.step), "run", 1)
        return None

    def losses(self) -> list[float]:
        return [message.metrics["loss"] for message in self.told if isinstance(message, StepDone)]


def make_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    model = folder.parent / "model"
    if not model.is_dir():
        make_tiny_model(model, seed=3)
    training = {"micro_batch_tokens": 128, "learning_rate": 1e-2, "warmup_steps": 2, "zero_stage": 0}
    return RunConfig(
        folder=folder,
        model={"path": str(model), "gradient_checkpointing": False, "dtype": "float32"},
        training=training | sections.pop("training", {}),
        checkpoint={"interval_steps": 2},
        **sections,
    )


async def run_trainer(
    config: RunConfig,
    num_ranks: int = 1,
    expected_code: int = 0,
    publisher_from_step: int = 0,
    **script: Any,
) -> ScriptedCoordinator:
    """Run a trainer to its end, or kill it where `until` says so; the publisher begins once a step is done."""
    config.folder.mkdir(exist_ok=True)
    (config.folder / "config.json").write_text(config.model_dump_json())
    address = f"ipc://{config.folder}/trainer"
    coordinator = ScriptedCoordinator(
        RouterChannel(address, 1 << 30), publish_interval=config.lag.publish_interval, **script
    )
    buffers = [os.memfd_create("buffer") for _ in range(2)]
    words = ["--config", str(config.folder / "config.json"), "--coordinator", address, "--run-id", "run"]
    words += ["--incarnation", "1", "--buffers", *(f"/proc/{os.getpid()}/fd/{buffer}" for buffer in buffers)]
    log_file = config.folder / "trainer.log"
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = run_members(
        module_argv("learner.trainer.rank", *words), rank_environments(num_ranks, config.folder), log_file, environment
    )
    serving, ending = asyncio.create_task(coordinator.serve()), asyncio.create_task(ranks)
    while len(coordinator.losses()) < publisher_from_step and not ending.done():  # noqa: ASYNC110 - filled by serve
        await asyncio.sleep(0.01)
    publisher = await spawn(module_argv("learner.publisher", *words), config.folder / "publisher.log", environment)
    try:
        done, _ = await asyncio.wait([serving, ending], timeout=240, return_when=asyncio.FIRST_COMPLETED)
        assert done, last_lines(log_file, 30)
        if ending in done:
            assert ending.result() == expected_code, last_lines(log_file, 60)
        else:
            serving.result()
    finally:
        serving.cancel()
        ending.cancel()
        kill_group(publisher)
        await asyncio.gather(ending, publisher.wait(), return_exceptions=True)
        for buffer in buffers:
            os.close(buffer)
        coordinator.channel.close()
    return coordinator


def exported(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(config.folder / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, ScriptedCoordinator]:
    """An uninterrupted run of one rank."""
    config = make_config(tmp_path_factory.mktemp("reference") / "run")
    return config, asyncio.run(run_trainer(config))


def test_a_run_trains_publishes_and_checkpoints_in_order(
    reference: tuple[RunConfig, ScriptedCoordinator],
) -> None:
    config, coordinator = reference
    told = [message for message in coordinator.told if not isinstance(message, ShardWant | VersionWant)]
    kinds = [(type(message).__name__, getattr(message, "step", None)) for message in told]
    # Publisher and checkpoints work beside the steps: what is told of them stands anywhere after what it is of.
    assert [kind for kind in kinds if kind[0] in ("TrainerHello", "StepDone")] == [
        ("TrainerHello", 0),
        *(("StepDone", step) for step in (1, 2, 3, 4)),
    ]
    assert [step for kind, step in kinds if kind == "Checkpointed"] == [2, 4]
    for step in (2, 4):
        assert kinds.index(("StepDone", step)) < kinds.index(("Checkpointed", step))
    assert [step for kind, step in kinds if kind == "Published"] == [0, 1, 2, 3, 4]
    for step in range(4):
        assert kinds.index(("Published", step)) < kinds.index(("StepDone", step + 1))
    last = next(message for message in reversed(told) if isinstance(message, Checkpointed))
    assert (last.step, last.retained, last.num_put_off) == (4, (2, 4), 0)
    # Weights of the forward pass, and AdamW's two moments of each, all in float32.
    parameters = sum(weight.numel() for weight in exported(config).values())
    assert 12 * parameters < last.num_bytes < 12 * parameters + 100_000
    assert versions(config.folder / "weights") == [3, 4, 5]
    published = load_file(version_folder(config.folder / "weights", 5) / "model.safetensors")
    untrained = load_file(Path(config.model.path) / "model.safetensors")
    trained = exported(config)
    assert published.keys() == untrained.keys() == trained.keys()
    for name, weight in trained.items():
        assert torch.equal(weight, published[name]), name
        assert not torch.equal(weight, untrained[name]), name


def test_the_metrics_of_a_step_are_those_of_its_samples(reference: tuple[RunConfig, ScriptedCoordinator]) -> None:
    metrics = next(message.metrics for message in reference[1].told if isinstance(message, StepDone))
    samples = [sample for sample in fixed_samples(0) if len(sample.token_ids)]
    lengths = [len(sample.token_ids) for sample in samples]
    assert metrics["num_tokens"] == sum(lengths)
    assert metrics["tokens"] == sum(lengths) + sum(len(sample.prompt_token_ids) for sample in samples)
    assert metrics["lag_mean"] == pytest.approx(np.concatenate([sample.token_lags for sample in samples]).mean())
    assert metrics["learning_rate"] == pytest.approx(0.5e-2)
    assert metrics["grad_norm"] > 0
    assert metrics["step_skipped"] == 0


async def test_a_killed_and_resumed_run_ends_bit_identical(
    reference: tuple[RunConfig, ScriptedCoordinator], tmp_path: Path
) -> None:
    config = make_config(tmp_path / "run")
    killed = await run_trainer(config, until=lambda message: isinstance(message, Checkpointed))
    assert len(killed.losses()) in (2, 3)
    assert not (config.folder / "export").exists()
    # Another setting that shapes no number: the run says so, and ends in the same bits.
    training = config.training.model_copy(update={"step_timeout_seconds": 900.0})
    config = config.model_copy(update={"training": training})
    resumed = await run_trainer(config, num_versions=10)
    log = (config.folder / "trainer.log").read_text()
    assert log.count("settings have changed since the checkpoint of step 2 was written") == 1
    assert resumed.told[0] == TrainerHello(rank=0, num_ranks=1, step=2)
    published = next(message for message in resumed.told if isinstance(message, Published))
    assert (published.weights_version, published.step) == (11, 2)
    assert killed.losses()[:2] + resumed.losses() == reference[1].losses()
    expected, found = exported(reference[0]), exported(config)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("shared_by", [1, pytest.param(2, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    "zero_stage", [pytest.param(0, marks=pytest.mark.thorough), pytest.param(1, marks=pytest.mark.thorough), 2, 3]
)
async def test_two_ranks_train_as_one_does(
    reference: tuple[RunConfig, ScriptedCoordinator], tmp_path: Path, zero_stage: int, shared_by: int
) -> None:
    training = {"zero_stage": zero_stage, "micro_batch_tokens": 200 // shared_by, "sequence_parallel": shared_by}
    config = make_config(tmp_path / "run", training=training)
    killed = await run_trainer(config, num_ranks=2, until=lambda message: isinstance(message, Checkpointed))
    resumed = await run_trainer(config, num_ranks=2, num_versions=10)
    assert killed.losses()[:2] + resumed.losses() == pytest.approx(reference[1].losses(), abs=1e-5)
    metrics = [
        # A step that was trained again counts once.
        list({m.step: m.metrics["grad_norm"] for m in told if isinstance(m, StepDone)}.values())
        for told in (killed.told + resumed.told, reference[1].told)
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)
    by_step = {m.step: m.metrics["tokens"] for m in reference[1].told if isinstance(m, StepDone)}
    assert all(m.metrics["tokens"] == by_step[m.step] for m in resumed.told if isinstance(m, StepDone))
    expected, found = exported(reference[0]), exported(config)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)


async def test_a_rank_that_fails_alone_takes_the_others_with_it_and_is_named(tmp_path: Path) -> None:
    def samples(step: int) -> list[TrainingSample]:
        regular = fixed_samples(step)
        unknown_token = replace(regular[0], token_ids=np.full_like(regular[0].token_ids, 64))
        return [unknown_token, *regular[1:]] if step == 1 else regular

    config = make_config(tmp_path / "run", training={"step_timeout_seconds": 200.0})
    coordinator = await run_trainer(config, num_ranks=2, expected_code=1, samples=samples)
    assert len(coordinator.losses()) == 1
    log = (config.folder / "trainer.log").read_text()
    ends = re.findall(r"ERROR .*TrainerError: rank (\d) failed in step 1, and all ranks end", log)
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert log.count("IndexError: index out of range") == 1


def logprobs_of(model: Any, sample: TrainingSample) -> torch.Tensor:
    tokens = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long()
    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0].double().log_softmax(1)
    at = torch.arange(len(sample.prompt_token_ids) - 1, len(tokens) - 1)
    return logprobs[at, tokens[at + 1]]


async def test_proximal_log_probs_are_those_of_the_start_of_the_batch_and_are_not_computed_again(
    tmp_path: Path,
) -> None:
    config = make_config(
        tmp_path / "run",
        algorithm={"old": "proximal", "updates_per_batch": 2, "importance_cap": 1.5},
        lag={"publish_interval": 2},
    )
    coordinator = await run_trainer(config, until=lambda message: isinstance(message, Checkpointed))
    # The next batch may have begun before the checkpoint stood.
    assert [message.step for message, _ in coordinator.old_logprobs][:2] == [0, 1]
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    stored = {}
    for step, (message, values) in enumerate(coordinator.old_logprobs[:2]):
        expected = torch.cat([logprobs_of(model, sample) for sample in fixed_samples(step)])
        torch.testing.assert_close(torch.from_numpy(values).double(), expected, atol=1e-5, rtol=0)
        ends = np.cumsum(message.lengths)
        stored[step] = [values[end - length : end] for end, length in zip(ends, message.lengths, strict=True)]
    # At the first update the ratio is 1: only the truncated weights are left.
    expected_loss = -sum(
        sample.advantage
        * sample.token_weight
        * float((logprobs_of(model, sample) - torch.from_numpy(sample.behavior_logprobs)).exp().clamp(max=1.5).sum())
        for sample in fixed_samples(0)
    )
    assert coordinator.losses()[0] == pytest.approx(expected_loss, abs=1e-5)

    def with_old(step: int) -> list[TrainingSample]:
        samples = fixed_samples(step)
        return [
            replace(sample, old_logprobs=old) for sample, old in zip(samples, stored.get(step, []), strict=False)
        ] or samples

    shutil.rmtree(config.folder / "checkpoints")
    again = await run_trainer(
        config, num_versions=10, samples=with_old, until=lambda message: isinstance(message, Checkpointed)
    )
    assert [message.step for message, _ in again.old_logprobs if message.step < 2] == []
    assert again.losses()[:2] == coordinator.losses()[:2]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
async def test_a_gradient_that_overflows_changes_no_weights_and_the_run_goes_on(
    tmp_path: Path, zero_stage: int
) -> None:
    def samples(step: int) -> list[TrainingSample]:
        regular = fixed_samples(step)
        return [replace(sample, advantage=3e38) for sample in regular] if step == 1 else regular

    config = make_config(tmp_path / "run", training={"zero_stage": zero_stage}, lag={"keep_versions": 5})
    coordinator = await run_trainer(config, samples=samples)
    metrics = [message.metrics for message in coordinator.told if isinstance(message, StepDone)]
    assert [step["step_skipped"] for step in metrics] == [0, 1, 0, 0]
    after = [load_file(version_folder(config.folder / "weights", number) / "model.safetensors") for number in (2, 3, 4)]
    for name in after[0]:
        assert torch.equal(after[0][name], after[1][name]), name
        assert not torch.equal(after[1][name], after[2][name]), name


async def test_a_mixture_is_published_and_exported_under_the_names_of_its_checkpoint(tmp_path: Path) -> None:
    make_family(tmp_path / "model", "deepseek_v3")
    config = make_config(tmp_path / "run", training={"zero_stage": 3})
    await run_trainer(config, num_ranks=2)
    untrained, trained = load_file(tmp_path / "model" / "model.safetensors"), exported(config)
    published = load_file(version_folder(config.folder / "weights", 5) / "model.safetensors")
    assert published.keys() == untrained.keys() == trained.keys()
    for name, weight in trained.items():
        assert torch.equal(weight, published[name]), name
        # Four steps move no weight further than this, and weights of other experts are further away.
        torch.testing.assert_close(weight, untrained[name], atol=0.05, rtol=0)
    assert sum(not torch.equal(weight, untrained[name]) for name, weight in trained.items()) > 30
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(trained[bias], untrained[bias])


async def test_a_checkpoint_without_a_head_ends_the_trainer_in_one_line(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    await run_trainer(config, expected_code=2)
    told = json.loads(RunFolder(config.folder).trainer_error.read_text())
    assert told["exit_code"] == 2
    assert told["message"].endswith("lacks weights, which would be made up at random: 1 of them: lm_head.weight")
