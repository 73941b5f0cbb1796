"""What vLLM tells of its work: its scheduler after each step, its requests when they are looked at, and responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.outputs import CompletionOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actor.engine.interface import EngineLoad
from dcpo_async.errors import EngineError
from dcpo_async.records import FinishReason, LeaseName, Response, VersionSegment

FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class LoadReader(PrometheusStatLogger):  # type: ignore[misc]
    """Keeps the last step's numbers.

    It stands in for vLLM's Prometheus logger, which vLLM adds wherever none is given and which sorts the latency of
    every token into a histogram; of that one it takes over nothing.

    Attributes:
        load: as of the last step.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: Sequence[int] | None = None) -> None:
        self.load = EngineLoad()

    @classmethod
    def of(cls, engine: AsyncLLM) -> "LoadReader":
        """The reader that an engine has made from this class."""
        found: LoadReader = next(each for each in engine.logger_manager.stat_loggers if isinstance(each, cls))
        return found

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take what a step of the engine tells."""
        load = self.load
        steps = load.steps + 1
        if scheduler_stats is None:
            scheduler_stats = SchedulerStats(num_running_reqs=load.num_running, kv_cache_usage=load.kv_cache_share)
        ended, preempted = 0, 0
        if iteration_stats is not None:
            ended, preempted = len(iteration_stats.finished_requests), iteration_stats.num_preempted_reqs
        # Those that ended in this step had a place in it; where all end at once, nobody else has one.
        num_running = scheduler_stats.num_running_reqs + ended
        self.load = EngineLoad(num_running, scheduler_stats.kv_cache_usage, load.preemptions + preempted, steps)

    @staticmethod
    def running_tokens(engine: AsyncLLM) -> dict[LeaseName, int]:
        """Tokens so far of the responses that have not ended, by the lease that each request is named after.

        Looked up where vLLM collects them: to have them told would take a message for each token.
        """
        found: dict[LeaseName, int] = {}
        for request in engine.output_processor.request_states.values():
            position, attempt, _ = request.external_req_id.split(".")
            name = LeaseName(int(position), int(attempt))
            found[name] = found.get(name, 0) + request.detokenizer.num_output_tokens()
        return found

    def log_engine_initialized(self) -> None:
        """Nothing to tell."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing to tell."""


class MetricsReader(LoadReader):
    """Keeps vLLM's own metrics too, in this process's registry, where `write_vllm_metrics` finds them."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: Sequence[int] | None = None) -> None:
        PrometheusStatLogger.__init__(self, vllm_config, engine_indexes)
        super().__init__(vllm_config, engine_indexes)

    def record(self, *told: Any, **told_by_name: Any) -> None:
        """Take what a step of the engine tells, and let vLLM count it."""
        PrometheusStatLogger.record(self, *told, **told_by_name)
        super().record(*told, **told_by_name)


def response_of(output: CompletionOutput, text: str) -> Response:
    """A response as vLLM hands it over, with its text; raises EngineError where it did not end as one does."""
    reason = FINISH_REASONS.get(output.finish_reason)
    if reason is None or output.weight_versions is None:
        raise EngineError(
            f"vLLM ended a response by {output.finish_reason!r} with the version stamps {output.weight_versions}"
        )
    return Response(
        token_ids=np.asarray(output.token_ids, dtype=np.int32),
        behavior_logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),
        segments=tuple(VersionSegment(int(span.version), span.end - span.start) for span in output.weight_versions),
        finish_reason=reason,
        text=text,
    )
