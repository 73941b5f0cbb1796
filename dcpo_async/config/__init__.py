"""Every setting of a run, once."""

from dcpo_async.config.adapter import AdapterSettings
from dcpo_async.config.data import GYM, GYM_REWARD, DataSettings, SourceSettings
from dcpo_async.config.evaluation import EvaluationSettings
from dcpo_async.config.run import RunConfig
from dcpo_async.config.sections import (
    ActorSettings,
    AlgorithmSettings,
    CheckpointSettings,
    GradingSettings,
    LagSettings,
    ModelSettings,
    NetworkSettings,
    SamplingSettings,
    Section,
    TrackingSettings,
    TrainingSettings,
    WeightsSettings,
    merged,
)

__all__ = [
    "GYM",
    "GYM_REWARD",
    "ActorSettings",
    "AdapterSettings",
    "AlgorithmSettings",
    "CheckpointSettings",
    "DataSettings",
    "EvaluationSettings",
    "GradingSettings",
    "LagSettings",
    "ModelSettings",
    "NetworkSettings",
    "RunConfig",
    "SamplingSettings",
    "Section",
    "SourceSettings",
    "TrackingSettings",
    "TrainingSettings",
    "WeightsSettings",
    "merged",
]
