"""A run's status as metrics for Prometheus: names by its conventions, base units, labels whose values are bounded."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from dcpo_async import __version__
from dcpo_async.metrics.health import Health, State
from dcpo_async.protocol.messages import PROTOCOL_VERSION

MAX_ACTORS = 512
"""Actors that have series of their own: those that hold most, where there are more."""

Row = tuple[str, str, str]
"""Name of a metric without `dcpo_`, key of the status, and what it is."""

GAUGES: tuple[Row, ...] = (
    ("step", "step", "Optimizer steps taken."),
    ("max_steps", "max_steps", "The step at which the run ends."),
    ("last_step_timestamp_seconds", "last_step_at", "When the newest step ended."),
    ("started_timestamp_seconds", "started_at", "When the learner was started last."),
    ("status_timestamp_seconds", "written_at", "When the learner wrote its status last, which it does every second."),
    ("seconds_per_step", "seconds_per_step", "From step to step, over the newest."),
    ("eta_seconds", "eta_seconds", "Until the end of the run, at this pace."),
    ("unsaved_steps", "unsaved_steps", "Steps that no checkpoint contains."),
    ("weights_version", "weights_version", "Newest weights version that actors may have."),
    ("actors", "actors", "Actors connected."),
    ("actor_tokens_per_second", "actor_tokens_per_second", "Response tokens that all actors generate."),
    ("responses_in_flight", "responses_in_flight", "Responses that have not ended, of all actors."),
    ("response_capacity", "response_capacity", "Responses that engines take in at once."),
    ("groups_waiting", "groups_waiting", "Groups that are accepted and in no batch."),
    ("groups_leased", "groups_leased", "Groups that actors work on."),
    ("prompts_quarantined", "prompts_quarantined", "Prompts that are leased no more."),
    ("disk_free_bytes", "disk_free_bytes", "Free on the disk of the run folder."),
    ("canary_difference_nats", "canary_difference", "Largest difference of an engine from the trainer."),
    ("canary_bound_nats", "canary_bound", "The difference from which on an engine refuses a version."),
)
OF_STEP: tuple[Row, ...] = (
    ("reward_mean", "reward", "Mean reward of the newest step."),
    ("rur_ratio", "rur", "Responses of the newest step with a non-zero advantage."),
    ("tcr_ratio", "tcr", "Tokens of the newest step whose loss the clip bound changed."),
    ("entropy_nats", "entropy", "Of a token of the newest step."),
    ("kl_behavior_nats", "kl_behavior", "From the engine's to the trainer's distribution, newest step."),
    ("lag_steps", "lag_mean", "Optimizer steps between sampling and training, newest step."),
    ("grad_norm", "grad_norm", "Before clipping, newest step."),
    ("learning_rate", "learning_rate", "Of the newest step."),
    ("response_length_tokens", "response_length", "Mean length of a response, newest step."),
    ("truncated_ratio", "truncated", "Responses of the newest step that were cut."),
    ("step_skipped", "step_skipped", "1 where the newest step's gradient was not finite."),
    ("step_compute_seconds", "step_seconds", "Compute of the newest step."),
    ("step_wait_seconds", "wait_seconds", "That the newest step waited for groups."),
    ("learner_tokens_per_second", "tokens_per_second", "Trained per second of compute, newest step."),
    ("mfu_ratio", "mfu", "Share of the arithmetic that the GPUs could do, newest step."),
    ("publish_seconds", "publish_seconds", "Of the newest weights version, until actors heard of it."),
    ("checkpoint_seconds", "checkpoint_seconds", "Of the newest checkpoint, until it stood."),
    ("checkpoint_bytes", "checkpoint_bytes", "Files of the newest checkpoint."),
    ("peak_gpu_bytes", "peak_gpu_bytes", "Largest of all ranks, newest step."),
    ("peak_host_bytes", "peak_host_bytes", "Largest of all ranks, resident."),
)
COUNTERS: tuple[Row, ...] = (
    ("trainer_restarts", "trainer_restarts", "Starts of the trainer after a failure."),
    ("groups_counted", "groups_counted", "Groups whose rewards count, since the run began."),
    ("generated_responses", "generated_responses", "Responses that count, since the run began."),
    ("generated_tokens", "generated_tokens", "Response tokens, since the run began."),
    ("canary_refusals", "canary_refusals", "Versions that engines were found not to hold."),
    ("preemptions", "preemptions", "Responses that lost their place in a KV cache."),
)
OUTCOMES = ("accepted", "duplicate", "superseded", "invalid", "too_old", "discarded")
LEASES = ("again", "released", "stalled", "handed_over")
OF_ACTOR: tuple[Row, ...] = (
    ("actor_weights_version", "weights_version", "That the actor's engine holds."),
    ("actor_heartbeat_age_seconds", "heard_seconds_ago", "Since the actor was heard of."),
    ("actor_response_tokens_per_second", "tokens_per_second", "For each response in flight."),
    ("actor_leases", "leases", "That the actor holds."),
    ("actor_oldest_lease_age_seconds", "oldest_lease_seconds", "Since its oldest lease went out."),
    ("actor_responses_in_flight", "responses_in_flight", "That have not ended."),
    ("actor_response_capacity", "response_capacity", "That its engine takes in at once."),
    ("actor_groups_accepted", "groups_accepted", "Since it joined."),
)


def families(status: Mapping[str, Any], health: Health) -> Iterator[Metric]:
    """Every metric of a run.

    Args:
        status: as in status.json; {} before a learner has written any.
        health: what it amounts to. Those of actors are left out where no learner is at work.
    """
    run = str(status.get("run_id", ""))
    build = InfoMetricFamily("dcpo_build", "The release.")
    build.add_metric([], {"version": __version__, "protocol": str(PROTOCOL_VERSION)})
    yield build
    states = GaugeMetricFamily("dcpo_run_state", "1 for the state that the run is in.", labels=["run", "state"])
    for state in get_args(State):
        states.add_metric([run, state], float(health.state == state))
    yield states
    yield _gauge("up", "1 while a learner is at work on the run.", run, float(health.is_live))
    waits = status.get("waiting_for") or {"seconds": 0.0}
    yield _gauge("batch_wait_seconds", "That the next batch has waited for its groups.", run, waits["seconds"])
    for rows, values in ((GAUGES, status), (OF_STEP, status.get("last_step") or {})):
        for name, key, meaning in rows:
            if values.get(key) is not None:
                yield _gauge(name, meaning, run, float(values[key]))
    yield from _counters(status, run)
    if health.is_live:
        yield from _actors(status.get("actors_connected", []), run)


def _gauge(name: str, meaning: str, run: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"dcpo_{name}", meaning, labels=["run"])
    family.add_metric([run], value)
    return family


def _counters(status: Mapping[str, Any], run: str) -> Iterator[Metric]:
    """What only grows; but for what counts since the run began, it begins again with each start of the learner."""
    for name, key, meaning in COUNTERS:
        if status.get(key) is not None:
            yield _counter(name, meaning, run, {"": float(status[key])})
    totals = {
        key.removeprefix("total_"): float(value)
        for key, value in status.items()
        if key.startswith("total_") and isinstance(value, int | float)
    }
    outcomes = {name: totals.pop(f"groups_{name}", 0.0) for name in OUTCOMES}
    yield _counter("groups", "Groups that came in, by what became of them.", run, outcomes, "outcome")
    yield _counter("leases", "Leases that went out.", run, {"": totals.pop("leases", 0.0)})
    again = {name: totals.pop(f"leases_{name}", 0.0) for name in LEASES}
    yield _counter("leases_ended", "Leases that went out again, or came back unanswered.", run, again, "how")
    failed = {key.removeprefix("rewards_"): totals.pop(key) for key in list(totals) if key.startswith("rewards_")}
    yield _counter("rewards_failed", "Responses whose reward could not be worked out.", run, failed, "reason")
    for name, value in totals.items():
        yield _counter(name, "As in docs/operations.md, metrics.", run, {"": value})
    step = status.get("last_step") or {}
    failures = float(step.get("checkpoint_failures", 0.0))
    yield _counter("checkpoint_failures", "Checkpoints that could not be written.", run, {"": failures})


def _counter(name: str, meaning: str, run: str, values: Mapping[str, float], label: str = "") -> Metric:
    labels = ["run", label] if label else ["run"]
    family = CounterMetricFamily(f"dcpo_{name}", meaning, labels=labels)
    for word, value in values.items():
        family.add_metric([run, word] if label else [run], value)
    return family


def _actors(actors: list[Mapping[str, Any]], run: str) -> Iterator[Metric]:
    shown = sorted(actors, key=lambda actor: -actor.get("oldest_lease_seconds", 0.0))[:MAX_ACTORS]
    for name, key, meaning in OF_ACTOR:
        family = GaugeMetricFamily(f"dcpo_{name}", meaning, labels=["run", "actor", "host"])
        for actor in shown:
            if actor.get(key) is not None:
                family.add_metric([run, actor["session"], actor.get("host", "")], float(actor[key]))
        yield family
    yield _gauge(
        "actors_without_series", "Connected actors of which no series are shown.", run, len(actors) - len(shown)
    )
