"""A whole run: its tables together, and what they may not be together."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dcpo_async.config.adapter import AdapterSettings
from dcpo_async.config.data import GYM, DataSettings
from dcpo_async.config.evaluation import EvaluationSettings
from dcpo_async.config.rewards import grading_for, reward_problems
from dcpo_async.config.sections import (
    ActorSettings,
    AlgorithmSettings,
    CheckpointSettings,
    GradingSettings,
    LagSettings,
    ModelSettings,
    NetworkSettings,
    SamplingSettings,
    TrackingSettings,
    TrainingSettings,
    WeightsSettings,
)
from dcpo_async.errors import ConfigError
from dcpo_async.limits import largest_group_bytes


class RunConfig(BaseSettings):
    """A whole run; the defaults are the paper's headline run."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, cli_kebab_case=False)

    folder: Path = Path("runs/dcpo-qwen2.5-math-7b")
    """Run folder: ledger, checkpoints, weights, metrics. A folder that holds a run is resumed."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of prompt order, sampling and training."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    sampling: SamplingSettings = SamplingSettings()
    grading: GradingSettings = GradingSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    training: TrainingSettings = TrainingSettings()
    adapter: AdapterSettings = AdapterSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    lag: LagSettings = LagSettings()
    weights: WeightsSettings = WeightsSettings()
    actor: ActorSettings = ActorSettings()
    network: NetworkSettings = NetworkSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()

    @property
    def admission_window(self) -> int:
        """Groups that may be leased and not yet trained: (⌊max_lag / U⌋ + 1)·U·B."""
        updates = self.algorithm.updates_per_batch
        return (self.lag.max_lag // updates + 1) * updates * self.training.groups_per_step

    @property
    def grading_by_source(self) -> dict[str, GradingSettings]:
        """What grades the problems of each source, by its name; empty where `grading` does for all of them."""
        found = {source.name or "": grading_for(source, self.grading) for source in self.data.sources}
        return {} if all(own == self.grading for own in found.values()) else found

    @property
    def has_own_reward(self) -> bool:
        """Whether a function of the user's grades any of the problems."""
        return any(grading.reward for grading in self.grading_by_source.values() or (self.grading,))

    def grading_of(self, source: str) -> GradingSettings:
        """What grades the problems of a source, which a prompt names."""
        return self.grading_by_source.get(source, self.grading)

    @property
    def largest_group_bytes(self) -> int:
        """Bytes that the largest group of a training visit or of an evaluation may take on the wire."""
        responses = max(self.sampling.group_size, self.evaluation.samples if self.evaluation.every_steps else 0)
        return largest_group_bytes(responses, self.sampling.max_response_tokens)

    def require_window(self, num_prompts: int) -> None:
        """Raise ConfigError where the prompts are fewer than may be leased at once."""
        if num_prompts < self.admission_window:
            raise ConfigError(
                f"data.source has {num_prompts} usable prompts, fewer than the admission window of "
                f"{self.admission_window} = (⌊max_lag / U⌋ + 1)·U·groups_per_step with U = "
                f"{self.algorithm.updates_per_batch}: a prompt would be open twice; lower lag.max_lag, "
                "algorithm.updates_per_batch or training.groups_per_step, or add problems"
            )

    def digest(self) -> str:
        """Hash of every setting that shapes the result; folder, addresses and what is measured do not."""
        whole = {"folder", "network", "checkpoint", "weights", "evaluation", "tracking"}
        parts = {"training": {"profile"}, "model": {"gradient_checkpointing"}}
        shape = self.model_dump_json(exclude={**dict.fromkeys(whole, True), **parts})
        return hashlib.sha256(shape.encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _refuse_what_cannot_run(self) -> Self:
        problem = next(self._problems(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        yield from self._algorithm_problems()
        yield from self._schedule_problems()
        yield from reward_problems(self.data, self.grading)
        yield from self._adapter_problems()
        yield from self._evaluation_problems()
        updates, lag, network = self.algorithm.updates_per_batch, self.lag, self.network
        first, _, last = (self.training.profile or "0").partition(":")
        if last and int(last) < int(first):
            yield f"training.profile {self.training.profile} ends before it begins; give STEP, or FIRST:LAST"
        for name, steps in (
            ("lag.publish_interval", lag.publish_interval),
            ("checkpoint.interval_steps", self.checkpoint.interval_steps or 0),
            ("training.max_steps", self.training.max_steps or 0),
        ):
            if steps % updates:
                yield (
                    f"{name} {steps} must be a multiple of algorithm.updates_per_batch {updates}: "
                    "a batch is trained as a whole"
                )
        if self.checkpoint.interval_steps is None and self.checkpoint.interval_minutes is None:
            yield (
                "checkpoint.interval_steps and checkpoint.interval_minutes are both none: "
                "after a crash the whole run would be repeated; set one"
            )
        if self.checkpoint.interval_steps is None and self.checkpoint.keep_every_steps is not None:
            yield (
                f"checkpoint.keep_every_steps {self.checkpoint.keep_every_steps} needs checkpoint.interval_steps: "
                "by the clock alone, a checkpoint falls on such a step by chance"
            )
        if lag.max_lag < lag.publish_interval - updates:
            yield (
                f"lag.max_lag {lag.max_lag} is less than lag.publish_interval - algorithm.updates_per_batch = "
                f"{lag.publish_interval - updates}: a batch could never be filled; raise max_lag or publish more often"
            )
        if network.listen.startswith("ipc:") or network.listen.endswith(":65535"):
            yield (
                f"network.listen {network.listen} must be tcp://HOST:PORT with a port below 65535: "
                "actors are on other machines, and the weight server takes the next port"
            )
        sampling = self.sampling
        needed = self.largest_group_bytes
        if network.max_message_bytes < needed:
            yield (
                f"network.max_message_bytes {network.max_message_bytes} is less than the {needed} bytes that "
                f"{sampling.group_size} responses of {sampling.max_response_tokens} tokens may take, or "
                "evaluation.samples of them: actors would send it for ever; raise it, or lower sampling.group_size, "
                "evaluation.samples or sampling.max_response_tokens"
            )
        if network.silence_seconds < 2 * network.heartbeat_seconds:
            yield (
                f"network.silence_seconds {network.silence_seconds} must be at least twice "
                f"network.heartbeat_seconds {network.heartbeat_seconds}"
            )

    def _algorithm_problems(self) -> Iterator[str]:
        algorithm, mask = self.algorithm, self.algorithm.importance_mask
        if algorithm.old == "proximal" and algorithm.updates_per_batch == 1:
            yield (
                "algorithm.old = proximal needs algorithm.updates_per_batch > 1: "
                "with 1 the ratio is 1 and nothing clips"
            )
        is_proximal = algorithm.old == "proximal"
        for name, is_read, needed in (
            (
                "correction",
                is_proximal,
                "old = proximal: anchored on the engine's log-probs, the ratio itself corrects",
            ),
            ("importance_cap", is_proximal and algorithm.correction == "truncated", "correction = truncated"),
            ("importance_mask", is_proximal and algorithm.correction == "masked", "correction = masked"),
        ):
            if not is_read and getattr(algorithm, name) != AlgorithmSettings.model_fields[name].default:
                yield f"algorithm.{name} = {getattr(algorithm, name)} would not be read, it needs algorithm.{needed}"
        if mask[0] > mask[1]:
            yield f"algorithm.importance_mask {list(mask)}: the first must not be above the second"
        if algorithm.advantage != "smooth" and algorithm.half_life_visits is not None:
            yield (
                "algorithm.half_life_visits needs algorithm.advantage = smooth: "
                "a group judged by its own rewards alone has no earlier visits to forget"
            )
        if algorithm.ratio == "sequence" and algorithm.clip == "dynamic":
            yield (
                "algorithm.ratio = sequence needs algorithm.clip = fixed: "
                "dynamic bounds are those of a token's own probability"
            )
        if algorithm.overlong_buffer_tokens > self.sampling.max_response_tokens:
            yield "algorithm.overlong_buffer_tokens must be at most sampling.max_response_tokens"
        if algorithm.loss_mean != "response" and algorithm.otm_scale == "sum":
            yield (
                "algorithm.otm_scale = sum speaks of responses; with algorithm.loss_mean = "
                f"{algorithm.loss_mean} set it to mean"
            )
        if algorithm.loss == "weighted" and algorithm.ratio == "sequence":
            yield "algorithm.loss = weighted needs algorithm.ratio = token: its weights are those of single tokens"

    def _adapter_problems(self) -> Iterator[str]:
        if self.adapter.rank is None:
            for name in ("alpha", "target_modules"):
                if getattr(self.adapter, name) != AdapterSettings.model_fields[name].default:
                    yield f"adapter.{name} would not be read, it needs adapter.rank"

    def _evaluation_problems(self) -> Iterator[str]:
        evaluation = self.evaluation
        generated = [word for word in (*evaluation.data, self.data.source) if word.startswith(GYM)]
        if evaluation.every_steps is not None and generated:
            yield (
                f"evaluation.every_steps: {generated[0]} has a scorer of its own, which no other problem set can be "
                "graded by; measure its versions with dcpo eval"
            )

    def _schedule_problems(self) -> Iterator[str]:
        training, defaults = self.training, TrainingSettings.model_fields
        end = training.schedule_steps or training.max_steps
        if training.schedule == "constant":
            for name in ("schedule_steps", "final_rate_share"):
                if getattr(training, name) != defaults[name].default:
                    yield f"training.{name} would not be read, it needs training.schedule = linear or cosine"
        elif end is None:
            yield (
                f"training.schedule {training.schedule} has to end: set training.schedule_steps, or training.max_steps"
            )
        elif end <= training.warmup_steps:
            yield (
                f"training.warmup_steps {training.warmup_steps}: the schedule has come to its end by step {end}; "
                "warm up for less, or set training.schedule_steps higher"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes counts: a stray environment variable never changes a run."""
        return (init_settings,)
