"""Why nothing happens in a run, or not enough: from its status, its newest metrics and its logs."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dcpo_async import __version__
from dcpo_async.doctor.findings import Finding, error, warning
from dcpo_async.metrics.health import LATE_SECONDS, Health, duration, health_of, is_running
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.live_table import read_status
from dcpo_async.processes import last_lines
from dcpo_async.run_folder import RunFolder

NEWEST_STEPS = 20
SILENT_SHARE = 0.6
"""Of network.silence_seconds: an actor that has not been heard of for longer is about to be given up."""
INVALID_SHARE, FAILED_REWARD_SHARE, DISAGREEMENT_SHARE, CUT_SHARE = 0.01, 0.01, 0.001, 0.5
MIN_COUNT = 100
"""Shares of fewer say little."""


def run(folder: Path) -> Iterator[Finding]:
    """All that is wrong with the run in a folder."""
    where = RunFolder(folder)
    status = read_status(folder)
    if not status:
        yield error(f"{folder}: no learner has written a status there", "start `dcpo-learner`, or name its run folder")
        return
    health = health_of(status, time.time(), is_running(status))
    config = json.loads(where.config.read_text()) if where.config.exists() else {}
    yield from life(status, health, where)
    if health.is_live:
        yield from waits(status)
        yield from actors(status, config)
        yield from disk(status, config)
    yield from counts(status)
    yield from training(read_metrics(folder)[-NEWEST_STEPS:])


def life(status: Mapping[str, Any], health: Health, where: RunFolder) -> Iterator[Finding]:
    """Whether a learner is at work, and what made parts of it start again."""
    if health.state == "dead":
        yield error(
            f"the learner is dead: {health.why}{_said(where)}",
            "start the same command; where it ends again, its stderr and dmesg (out of memory?) say why",
        )
    elif health.state == "silent":
        pid = (status.get("process") or {}).get("pid")
        yield error(
            f"the learner is silent: {health.why}",
            f"`kill -CONT {pid}` where it was stopped; is its disk gone? Else kill it, the same command resumes",
        )
    elif health.state == "stopped":
        yield warning("the learner was stopped in order", "start the same command to go on")
    if health.is_live and status.get("release") not in (None, __version__):
        yield warning(
            f"the learner is of release {status['release']}, this is {__version__}",
            "install one release on all machines; those with another protocol are refused",
        )
    if status.get("trainer_restarts"):
        end = last_lines(where.log("trainer"), 1)
        yield warning(
            f"the trainer was started again {status['trainer_restarts']} times since the learner's start{_said(where)}",
            f"read {where.log('trainer')}" + (f", which ends with: {end}" if end else ""),
        )


def waits(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Who is waited for."""
    if not status.get("actors_connected"):
        yield error(
            "no actor is connected",
            "start `dcpo-actor --learner ADDRESS`; there, `dcpo doctor --learner ADDRESS` tries the way",
        )
        return
    waiting = status.get("waiting_for") or {"seconds": 0.0}
    if waiting["seconds"] < LATE_SECONDS:
        return
    if not waiting.get("holder"):
        if not status.get("weights_version"):
            yield error("no weights are published, so that nothing is leased", "logs/publisher.log, logs/trainer.log")
        else:
            yield warning(
                f"the next batch has waited {duration(waiting['seconds'])}, and no lease is out for it",
                "are actors full (responses in flight), or at work on versions that are too old? `dcpo status`",
            )
        return
    yield warning(
        f"the next batch has waited {duration(waiting['seconds'])} for lease {waiting['position']} of "
        f"{waiting['holder']}, "
        f"{duration(waiting['lease_seconds'])} old, with {waiting['tokens']} tokens",
        "look at that machine: another load, a GPU that throttles; end its actor, and others answer the lease",
    )


def actors(status: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Finding]:
    """Actors that are about to be given up, behind, or not to be trusted."""
    silence = config.get("network", {}).get("silence_seconds", 15.0)
    window = config.get("lag", {}).get("max_lag", 4) + config.get("lag", {}).get("publish_interval", 1)
    bound = status.get("canary_bound")
    for actor in status["actors_connected"]:
        name = f"{actor['session']} on {actor.get('host', 'an unknown host')}"
        heard = actor.get("heard_seconds_ago", 0.0)
        if heard > SILENT_SHARE * silence:
            yield warning(
                f"actor {name} was not heard of for {heard:.0f} s and is lost after {silence:g} s",
                "does its process run, is it stopped, does the network drop it? Its leases go to others",
            )
        behind = status.get("weights_version", 0) - actor["weights_version"]
        # What its newest heartbeat said may be as old as two of them: short steps publish many versions meanwhile.
        age = heard + 2 * config.get("network", {}).get("heartbeat_seconds", 3.0)
        meanwhile = age / usual if (usual := status.get("seconds_per_step")) else 0.0
        if actor["weights_version"] and behind > window + meanwhile:
            yield warning(
                f"actor {name} is {behind} weights versions behind ({actor.get('activity')})",
                "its engine's log says what keeps it: a slow fetch, or a full /dev/shm",
            )
        nats = actor.get("canary_difference")
        if bound is not None and nats is not None and nats > bound / 2:
            yield warning(
                f"actor {name} computes other log-probs than the trainer, by {nats:.3g} nats",
                "bench/logprob_parity.py compares the two; take the machine out where it is alone with it",
            )


def disk(status: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether what the run keeps fits what is free."""
    step, kept = status.get("last_step") or {}, config.get("checkpoint", {}).get("keep_last", 2)
    checkpoint, version = step.get("checkpoint_bytes", 0.0), step.get("publish_bytes", 0.0)
    free = status.get("disk_free_bytes")
    # One checkpoint is written while those that are kept stand, and one version.
    needed = checkpoint + version
    if free is not None and free < needed:
        yield error(
            f"{free / 1e9:.2f} GB are free on the run's disk, a checkpoint and a version take {needed / 1e9:.2f} GB",
            f"make room, or keep fewer than checkpoint.keep_last {kept} and lag.keep_versions",
        )
    if step.get("checkpoint_failures"):
        yield error(
            f"{step['checkpoint_failures']:.0f} checkpoints could not be written since the learner's start",
            "make room on the run's disk: three in a row end the run; the learner's log has the reason",
        )


def counts(status: Mapping[str, Any]) -> Iterator[Finding]:
    """What was counted since the learner's start."""
    accepted = status.get("total_groups_accepted", 0.0)
    invalid = status.get("total_groups_invalid", 0.0)
    if invalid and invalid > INVALID_SHARE * (accepted + invalid):
        yield warning(
            f"{invalid:.0f} groups were refused as not sound, {accepted:.0f} accepted",
            "the learner's log names the actors: a GPU that computes NaN, or another release",
        )
    failed = {
        name.removeprefix("total_rewards_"): value
        for name, value in status.items()
        if name.startswith("total_rewards_")
    }
    responses = status.get("generated_responses", 0.0)
    if responses >= MIN_COUNT and sum(failed.values()) > FAILED_REWARD_SHARE * responses:
        kinds = ", ".join(f"{name} {value:.0f}" for name, value in sorted(failed.items()))
        yield warning(
            f"rewards of {sum(failed.values()):.0f} of {responses:.0f} responses could not be worked out ({kinds})",
            "`dcpo show RUN --json` has their texts; look at the own reward, or grading.timeout_seconds",
        )
    regraded, differing = status.get("total_regraded", 0.0), status.get("total_regrade_disagreements", 0.0)
    if regraded >= MIN_COUNT and differing > DISAGREEMENT_SHARE * regraded:
        yield warning(
            f"{differing:.0f} of {regraded:.0f} responses got another reward when they were graded again",
            "another release on an actor, or a reward that is not the same each time (grading.reward_repeats)",
        )
    if status.get("prompts_quarantined"):
        rows = status.get("quarantined") or [{"prompt_id": "?", "reason": "?"}]
        yield warning(
            f"{status['prompts_quarantined']:.0f} prompts are quarantined; {rows[0]['prompt_id']} {rows[0]['reason']}",
            "`dcpo release RUN` lists them, and lets them be leased again",
        )
    if status.get("canary_refusals"):
        yield warning(
            f"engines were found {status['canary_refusals']:.0f} times not to hold the weights that they had loaded",
            "they were started anew; where it is one machine again and again, take it out",
        )


def training(steps: Sequence[Mapping[str, float]]) -> Iterator[Finding]:
    """What the newest steps show."""
    if len(steps) < NEWEST_STEPS:
        return
    skipped = sum(step.get("step_skipped", 0.0) > 0 for step in steps)
    if skipped:
        yield warning(
            f"{skipped} of the newest {len(steps)} steps were skipped, their gradient was not finite",
            "a lower training.learning_rate, a longer warm-up; `dcpo stats` and `dcpo show` for broken texts",
        )
    if all(step.get("rur", 1.0) == 0 for step in steps):
        reward = fmean(step.get("reward", 0.0) for step in steps)
        yield error(
            f"no response of the newest {len(steps)} steps has an advantage, the mean reward is {reward:.3g}",
            "`dcpo show RUN`: is the answer found (grading.extraction, data.system_prompt)? Else the problems are too "
            "hard or too easy for this model",
        )
    cut = fmean(step.get("truncated", 0.0) for step in steps)
    if cut > CUT_SHARE:
        yield warning(
            f"{cut:.0%} of the responses of the newest {len(steps)} steps were cut at their longest",
            "a larger sampling.max_response_tokens, or does the model not know its end token? `dcpo show RUN`",
        )


def _said(where: RunFolder) -> str:
    """What the rank that failed first said, where one did."""
    try:
        return f"; a rank said: {json.loads(where.trainer_error.read_text())['message']}"
    except (OSError, ValueError, KeyError):
        return ""
