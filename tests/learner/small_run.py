"""A run small enough to be counted by hand: settings, prompts, and groups as an actor would send them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dcpo_async.config import RunConfig
from dcpo_async.errors import DcpoError
from dcpo_async.protocol.conversion import group_to_message, settings_digest
from dcpo_async.protocol.messages import Envelope
from dcpo_async.records import Group, Lease, Prompt, Response, VersionSegment
from learner.coordinator.intake import Intake
from learner.coordinator.shards import StepGroup, step_groups
from learner.ledger.ledger import Ledger

VOCAB_SIZE = 50


def make_config(
    folder: Path, *, groups_per_step: int = 2, max_lag: int = 1, updates: int = 1, **sections: dict[str, Any]
) -> RunConfig:
    """Groups of two responses; sections such as `training={"max_steps": 3}` add to it."""
    settings: dict[str, dict[str, Any]] = {
        "sampling": {"group_size": 2, "max_response_tokens": 8},
        "training": {"groups_per_step": groups_per_step},
        "lag": {"max_lag": max_lag, "publish_interval": updates},
        "algorithm": {"updates_per_batch": updates},
        "checkpoint": {"interval_steps": updates},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return RunConfig(folder=folder, **settings)  # type: ignore[arg-type]


def make_prompts(count: int) -> list[Prompt]:
    """Prompt number i is called `prompt-i` and has the tokens (i % 50, 1)."""
    return [Prompt(f"prompt-{i}", f"problem {i}", str(i), (i % VOCAB_SIZE, 1)) for i in range(count)]


class OpenIntake(Protocol):
    """Opens the ledger in a config's folder as a new incarnation; the fixture of this name closes it."""

    def __call__(self, config: RunConfig, num_prompts: int = 16) -> Intake: ...


def make_intake(config: RunConfig, num_prompts: int = 16, segment_bytes: int = 1 << 20) -> Intake:
    """The intake of the ledger in the config's folder, as a new incarnation; the caller closes its ledger."""
    ledger = Ledger(config.folder / "ledger", segment_bytes)
    try:
        return Intake(config, make_prompts(num_prompts), VOCAB_SIZE, ledger)
    except DcpoError:
        ledger.abandon()
        raise


def publish(intake: Intake, step: int) -> int:
    """Publish the state after `step` as the trainer does; returns the version."""
    version = intake.grant_version(step)
    intake.publish(version)
    return version


def answer(
    lease: Lease,
    versions: int | Sequence[int],
    rewards: Sequence[float] = (1.0, 0.0),
    num_tokens: int = 2,
    text: str = "response {index}",
    made_by: str | None = None,
    log_prob: float = -0.5,
) -> Envelope:
    """The group of a lease, by the settings of `make_config`; responses have `num_tokens` tokens under each version."""
    spans = [versions] if isinstance(versions, int) else versions
    segments = tuple(VersionSegment(version, num_tokens) for version in spans if num_tokens)
    length = num_tokens * len(spans)
    responses = tuple(
        Response(
            token_ids=np.arange(length, dtype=np.int32),
            behavior_logprobs=np.full(length, log_prob, dtype=np.float32),
            segments=segments,
            finish_reason="stop",
            text=text.replace("{index}", str(index)),
        )
        for index in range(len(rewards))
    )
    reasons = tuple("equal" if reward > 0 else "different" for reward in rewards)
    made_by = MADE_BY if made_by is None else made_by
    group = Group(lease.position, lease.attempt, responses, tuple(rewards), reasons, made_by=made_by)
    return Envelope(*group_to_message(group), "run", 1)


def train(intake: Intake, *steps: Sequence[Sequence[float]], text: str = "response {index}") -> None:
    """Go on by these steps, each with the rewards of its groups; weights are published before every step."""
    made_by = settings_digest(intake.config.sampling, intake.config.grading)
    for groups in steps:
        step = intake.ledger.next_batch_step()
        version = publish(intake, step)
        for rewards in groups:
            lease = intake.grant(b"a", now=0.0)
            assert lease is not None
            assert (
                intake.accept(b"a", answer(lease, version, rewards, text=text, made_by=made_by)).outcome == "accepted"
            )
        assert intake.commit_batch(step)


def leases_of(intake: Intake, session: bytes = b"a", at_most: int = 100, now: float = 0.0) -> list[Lease]:
    """Everything that the gate gives out now, at most `at_most`."""
    granted: list[Lease] = []
    while len(granted) < at_most and (lease := intake.grant(session, now)) is not None:
        granted.append(lease)
    return granted


def stored_groups(intake: Intake, step: int) -> list[StepGroup]:
    """What ranks would train on at this step."""
    return step_groups(intake.ledger, step, intake.prompts, with_old=False)


def outcome(intake: Intake, group: Envelope, session: bytes = b"a") -> str:
    return intake.accept(session, group).outcome


MADE_BY = settings_digest(make_config(Path("nowhere")).sampling, make_config(Path("nowhere")).grading)
"""What groups say that are made by the settings of `make_config`, where a test does not change them."""
