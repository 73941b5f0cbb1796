"""The engines of one machine as metrics for Prometheus, from the reports that their processes write."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from dcpo_async.durable import write_json, write_text
from dcpo_async.metrics.health import SILENT_SECONDS, Health
from dcpo_async.records import Activity

Row = tuple[str, str, str]
"""Name of a metric without `dcpo_engine_`, key of the report, and what it is."""

GAUGES: tuple[Row, ...] = (
    ("weights_version", "weights_version", "That the engine holds; 0 before its first."),
    ("leases", "leases", "That it works on."),
    ("leases_generating", "leases_generating", "Of those, that are in the engine; others wait for weights or a grade."),
    ("responses_in_flight", "responses_in_flight", "That have not ended."),
    ("response_capacity", "response_capacity", "Responses that it takes in at once."),
    ("responses_running", "responses_running", "With a place in the KV cache, in the newest step."),
    ("kv_cache_ratio", "kv_cache_share", "Share of the KV cache that they take."),
)
COUNTERS: tuple[Row, ...] = (
    ("generated_tokens", "tokens_generated", "Response tokens, since the process began."),
    ("steps", "steps", "That the engine took, since the process began."),
    ("preemptions", "preemptions", "Responses that lost their place in the KV cache, since the process began."),
    ("canary_refusals", "canary_refusals", "Versions that it was found not to hold, since the process began."),
)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write what an engine process tells of itself, for the launcher beside it."""
    write_json(path, report | {"written_at": time.time()})


def vllm_metrics_path(report: Path) -> Path:
    """Where vLLM's own metrics of the engine lie that a report is of."""
    return report.with_suffix(".vllm")


def write_vllm_metrics(path: Path) -> None:
    """Write what vLLM counts in this process, for the launcher beside it."""
    registry = CollectorRegistry()
    registry.register(_OfVllm())
    write_text(path, generate_latest(registry).decode())


class _OfVllm(Collector):
    """vLLM's part of what this process has registered."""

    def collect(self) -> Iterator[Metric]:
        return (family for family in REGISTRY.collect() if family.name.startswith("vllm:"))


class WatchedEngines(Collector):
    """The engines of a launcher.

    Args:
        reports: file of each engine; one that is not there is an engine that has told nothing yet.
        starts: how often each engine process was started.
    """

    def __init__(self, reports: Sequence[Path], starts: Callable[[], Sequence[int]]) -> None:
        self._reports, self._starts = reports, starts
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def is_starting(self) -> bool:
        """Whether no engine has told anything yet."""
        return not any(path.exists() for path in self._reports)

    def look(self) -> tuple[dict[str, Any], Health]:
        """What the engines tell, and what it amounts to: each has to be heard of."""
        reports = self._read()
        now = time.time()
        silent = [number for number, report in reports.items() if now - report["written_at"] > SILENT_SECONDS]
        silent += [number for number in range(len(self._reports)) if number not in reports]
        versions = [report["weights_version"] for report in reports.values()]
        status = {"engines": list(reports.values()), "weights_version": max(versions, default=0)}
        if len(silent) == len(self._reports):
            return status, Health("silent", "no engine was heard of", None)
        if silent:
            names = ", ".join(map(str, sorted(silent)))
            return status, Health("degraded", f"not heard of: engine {names}", None)
        return status, Health("training", "", None)

    def metrics(self) -> bytes:
        """The answer to a scrape."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        reports, now = self._read(), time.time()
        restarts = CounterMetricFamily(
            "dcpo_engine_restarts", "Starts of its process but the first.", labels=["engine"]
        )
        for number, starts in enumerate(self._starts()):
            restarts.add_metric([str(number)], max(0, starts - 1))
        yield restarts
        age = GaugeMetricFamily("dcpo_engine_report_age_seconds", "Since its process was heard of.", labels=["engine"])
        states = GaugeMetricFamily("dcpo_engine_state", "1 for what it does.", labels=["engine", "state"])
        for number, report in reports.items():
            age.add_metric([str(number)], max(0.0, now - report["written_at"]))
            for activity in get_args(Activity):
                states.add_metric([str(number), activity], float(report["activity"] == activity))
        yield from (age, states)
        for kind, rows in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, key, meaning in rows:
                family = kind(f"dcpo_engine_{name}", meaning, labels=["engine"])
                for number, report in reports.items():
                    family.add_metric([str(number)], float(report[key]))
                yield family
        yield from self._of_vllm()

    def _of_vllm(self) -> Iterable[Metric]:
        """vLLM's own metrics, by the number of the engine process; its index of an engine is 0 in each of them."""
        families: dict[str, Metric] = {}
        for number, report in enumerate(self._reports):
            if not (path := vllm_metrics_path(report)).exists():
                continue
            for told in text_string_to_metric_families(path.read_text()):
                family = families.setdefault(told.name, Metric(told.name, told.documentation, told.type))
                for sample in told.samples:
                    family.add_sample(sample.name, sample.labels | {"engine": str(number)}, sample.value)
        return families.values()

    def _read(self) -> dict[int, dict[str, Any]]:
        return {number: json.loads(path.read_text()) for number, path in enumerate(self._reports) if path.exists()}
