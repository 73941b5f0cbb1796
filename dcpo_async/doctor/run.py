"""Why nothing happens in a run, or not enough: from its status, its newest metrics and its logs."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dcpo_async import __version__
from dcpo_async.doctor.disk import disk, grown
from dcpo_async.doctor.findings import Finding, error, said, warning
from dcpo_async.doctor.network import reachable
from dcpo_async.doctor.source import fetched_status, folder_named, look, parts
from dcpo_async.metrics.health import (
    LATE_SECONDS,
    NO_STEP_SECONDS,
    Health,
    duration,
    in_force,
    is_running,
    told_changes,
)
from dcpo_async.metrics.live_table import read_status
from dcpo_async.processes import last_lines
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.gate import BROKE_OFF
from dcpo_async.transport.security import tcp_parts

NEWEST_STEPS = 20
STUCK_TIMES = 10.0
"""What a step usually takes, and more often: then it hangs."""
SILENT_SHARE = 0.6
"""Of network.silence_seconds: an actor that has not been heard of for longer is about to be given up."""
MAX_CLOCK_SECONDS, LEDGER_SECONDS = 5.0, 600.0
REFUSED_SECONDS, LOOKS = 300.0, 3
"""Whoever was refused for the last time before that has given up, or has got in."""
USED_SHARE = 0.1
"""Of responses with an advantage: with fewer, nearly all that is generated teaches nothing."""
INVALID_SHARE, FAILED_REWARD_SHARE, DISAGREEMENT_SHARE, CUT_SHARE = 0.01, 0.01, 0.001, 0.5
MIN_COUNT = 100
"""Shares of fewer say little."""


def run(where: str | Path) -> Iterator[Finding]:
    """All that is wrong with a run.

    Args:
        where: its folder, or HOST:PORT of its learner.

    Raises:
        ConfigError: nobody answers there.
    """
    seen = look(where)
    status, health, folder = seen.status, seen.health, seen.folder
    if not status:
        yield error(f"{where}: no learner has written a status there", "start `dcpo-learner`, or name its run folder")
        return
    config = in_force(_config(folder), status)
    yield from clock(seen.clock_seconds)
    yield from life(status, health, folder)
    yield from parts(status)
    if health.is_live and status.get("disk_lacks_bytes"):
        # Nobody is listened to meanwhile, so that all seem silent.
        yield from disk(status, config)
    elif health.is_live:
        now = status["written_at"]
        yield from waits(status, config, now)
        yield from actors(status, config)
        yield from refusals(status)
        yield from evaluation(status)
        yield from weight_server(status, config)
        yield from disk(status, config, grown(folder) if folder else None)
    yield from counts(status)
    yield from training(seen.metrics[-NEWEST_STEPS:])
    if folder is not None and RunFolder(folder).ledger.exists():
        yield from ledger(folder)


def described_run(where: str | Path) -> str:
    """A run in a line, and one for each setting that was set meanwhile; raises ConfigError where none answers."""
    folder = folder_named(where)
    status = fetched_status(str(where)) if folder is None else read_status(folder)
    return "\n".join([f"run {where}", *(f"set while it went on: {change}" for change in told_changes(status))])


def clock(ahead_seconds: float) -> Iterator[Finding]:
    """Whether the learner's clock and this machine's agree."""
    if abs(ahead_seconds) > MAX_CLOCK_SECONDS:
        yield warning(
            f"the learner's clock is {ahead_seconds:+.0f} s from this machine's",
            "let both keep time (chrony, ntp): states, logs and alerts go by it",
        )


def ledger(folder: Path, seconds: float = LEDGER_SECONDS) -> Iterator[Finding]:
    """Whether the ledger is whole: a copy of its rows is read, each against its digest, by a process of its own."""
    argv = [sys.executable, "-m", "learner.reports.soundness", str(folder)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        yield warning(f"the ledger could not be read within {seconds:g} s", "is its disk slow, or gone?")
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["its reader ended without a word"]
        yield said("error", lines[-1], "restore the ledger of a backup")


def life(status: Mapping[str, Any], health: Health, folder: Path | None) -> Iterator[Finding]:
    """Whether a learner is at work, and what made parts of it start again."""
    if health.state == "dead":
        yield error(
            f"the learner is dead: {health.why}{_said(folder)}",
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
            "install one release on all machines, the learner's first: it goes on with actors of the release before",
        )
    if status.get("trainer_restarts"):
        end = last_lines(RunFolder(folder).log("trainer"), 1) if folder else ""
        yield warning(
            f"the trainer was started again {status['trainer_restarts']} times since this start{_said(folder)}",
            "read logs/trainer.log in the run folder" + (f", which ends with: {end}" if end else ""),
        )


def waits(status: Mapping[str, Any], config: Mapping[str, Any], now: float) -> Iterator[Finding]:
    """Who is waited for.

    Args:
        now: seconds since 1970, by the learner's clock.
    """
    if not status.get("actors_connected"):
        yield error(
            "no actor is connected",
            "start `dcpo-actor --learner ADDRESS`; there, `dcpo doctor --learner ADDRESS` tries the way",
        )
        return
    waiting = status.get("waiting_for")
    if waiting is None:
        yield from _untrained(status, config, now)
        return
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


def _untrained(status: Mapping[str, Any], config: Mapping[str, Any], now: float) -> Iterator[Finding]:
    """A batch that lies ready, and nobody who trains it: then no lease goes out any more either."""
    groups, batch = status.get("groups_waiting", 0.0), config.get("training", {}).get("groups_per_step", 1)
    since, usual = status.get("last_step_at") or status.get("started_at", now), status.get("seconds_per_step") or 0.0
    if groups >= batch and now - since > max(LATE_SECONDS, STUCK_TIMES * usual) and not _is_measuring(status):
        yield error(
            f"{groups:.0f} groups wait to be trained and nothing trains them, for {duration(now - since)}: "
            f"lag.max_lag {config.get('lag', {}).get('max_lag', 4)} lets no further lease out until a step ends",
            "logs/trainer.log says what it does: is it started again and again, does it compile, does a rank hang?",
        )


def _is_measuring(status: Mapping[str, Any]) -> bool:
    return bool(status.get("is_finished") or (status.get("evaluation") or {}).get("running"))


def refusals(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Peers that were turned away of late."""
    for row in status.get("refused", ()):
        # One look at a port, as by a doctor, is no peer.
        is_peer = BROKE_OFF not in row["what"] or row["times"] > LOOKS
        if row["seconds_ago"] <= REFUSED_SECONDS and is_peer:
            yield warning(
                f"refused {row['times']} times, the last {duration(row['seconds_ago'])} ago: {row['what']}",
                "there, `dcpo doctor --learner ADDRESS --keys FILE` says what it lacks: a key of its role, a release",
            )


def evaluation(status: Mapping[str, Any]) -> Iterator[Finding]:
    """A measurement of the run itself that does not get on."""
    running = (status.get("evaluation") or {}).get("running")
    if running and running.get("quiet_seconds", 0.0) > NO_STEP_SECONDS:
        quiet = duration(running["quiet_seconds"])
        yield warning(
            f"the evaluation of step {running['step']} has got no answer for {quiet}: {running['answered']} of "
            f"{running['problems']} problems answered, {running['actors']} actors stay",
            "do its actors hang (`dcpo status`)? One that is ended gives its problems to others; training goes on "
            "with the rest",
        )


def weight_server(status: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the weight server answers, asked from the learner's own machine."""
    parts_of = tcp_parts(config.get("network", {}).get("listen", ""))
    if parts_of is None or parts_of[1] == 0 or not is_running(status):
        return
    host = "127.0.0.1" if parts_of[0] == "0.0.0.0" else parts_of[0]
    for found in reachable(f"tcp://{f'[{host}]' if ':' in host else host}:{parts_of[1] + 1}", has_keys=None):
        yield error(
            f"the weight server does not serve: {found.what}",
            "actors get no newer weights; logs/weight_server.log; is it stopped? Killed, it is started again",
        )


def actors(status: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Finding]:
    """Actors that are about to be given up, behind, or not to be trusted."""
    silence = config.get("network", {}).get("silence_seconds", 15.0)
    bound = status.get("canary_bound")
    behind = {actor["session"]: _behind(actor, status, config) for actor in status["actors_connected"]}
    if len(behind) > 1 and all(behind.values()):
        yield error(
            f"all {len(behind)} actors are at old weights, the nearest {min(behind.values())} versions behind",
            "is the weight server up, its port open to them, /dev/shm full? logs/weight_server.log, the engines' logs",
        )
        behind = {}
    yield from _releases(status)
    for actor in status["actors_connected"]:
        name = f"{actor['session']} on {actor.get('host', 'an unknown host')}"
        heard = actor.get("heard_seconds_ago", 0.0)
        if heard > SILENT_SHARE * silence:
            yield warning(
                f"actor {name} was not heard of for {heard:.0f} s and is lost after {silence:g} s",
                "does its process run, is it stopped, does the network drop it? Its leases go to others",
            )
        if number := behind.get(actor["session"]):
            yield warning(
                f"actor {name} is {number} weights versions behind ({actor.get('activity')})",
                "its engine's log says what keeps it: a slow fetch, or a full /dev/shm",
            )
        nats = actor.get("canary_difference")
        if bound is not None and nats is not None and nats > bound / 2:
            yield warning(
                f"actor {name} computes other log-probs than the trainer, by {nats:.3g} nats",
                "bench/logprob_parity.py compares the two; take the machine out where it is alone with it",
            )


def _releases(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Actors of another release than the learner's, as there are while a fleet is upgraded."""
    connected, own = status["actors_connected"], status.get("release")
    releases = {actor["session"]: actor.get("release", own) for actor in connected}
    if others := {session: release for session, release in releases.items() if release != own}:
        named = ", ".join(f"{session} ({release or 'an earlier one'})" for session, release in [*others.items()][:3])
        yield warning(
            f"{len(others)} of {len(connected)} actors are of another release than the learner, {own}: {named}",
            "while both are at work, groups of one run are graded by two releases: install the learner's on them",
        )


def _behind(actor: Mapping[str, Any], status: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Versions that an actor is behind the newest, where these are more than a run's lag explains; else 0."""
    window = config.get("lag", {}).get("max_lag", 4) + config.get("lag", {}).get("publish_interval", 1)
    # What its newest heartbeat said may be as old as two of them: short steps publish many versions meanwhile.
    age = actor.get("heard_seconds_ago", 0.0) + 2 * config.get("network", {}).get("heartbeat_seconds", 3.0)
    meanwhile = age / usual if (usual := status.get("seconds_per_step")) else 0.0
    behind = int(status.get("weights_version", 0) - actor["weights_version"])
    return behind if actor["weights_version"] and behind > window + meanwhile else 0


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
    used = fmean(step.get("rur", 1.0) for step in steps)
    if 0 < used < USED_SHARE:
        yield warning(
            f"{1 - used:.0%} of the responses of the newest {len(steps)} steps have no advantage: their groups got one "
            "reward",
            "`dcpo stats RUN`: problems always right or never; data.selection = solved rests the former, a larger "
            "sampling.group_size finds rare successes of the latter",
        )
    cut = fmean(step.get("truncated", 0.0) for step in steps)
    if cut > CUT_SHARE:
        yield warning(
            f"{cut:.0%} of the responses of the newest {len(steps)} steps were cut at their longest",
            "a larger sampling.max_response_tokens, or does the model not know its end token? `dcpo show RUN`",
        )


def _config(folder: Path | None) -> dict[str, Any]:
    """The settings of the newest start; empty where they cannot be seen."""
    path = RunFolder(folder).config if folder else None
    return json.loads(path.read_text()) if path and path.exists() else {}


def _said(folder: Path | None) -> str:
    """What the rank that failed first said, where one did."""
    if folder is None:
        return ""
    try:
        return f"; a rank said: {json.loads(RunFolder(folder).trainer_error.read_text())['message']}"
    except (OSError, ValueError, KeyError):
        return ""
