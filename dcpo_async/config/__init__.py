"""Every setting of a run, once."""

from dcpo_async.config.run import RunConfig
from dcpo_async.config.sections import (
    ActorSettings,
    AlgorithmSettings,
    CheckpointSettings,
    DataSettings,
    GradingSettings,
    LagSettings,
    ModelSettings,
    NetworkSettings,
    SamplingSettings,
    Section,
    SourceSettings,
    TrainingSettings,
    WeightsSettings,
    merged,
)

__all__ = [
    "ActorSettings",
    "AlgorithmSettings",
    "CheckpointSettings",
    "DataSettings",
    "GradingSettings",
    "LagSettings",
    "ModelSettings",
    "NetworkSettings",
    "RunConfig",
    "SamplingSettings",
    "Section",
    "SourceSettings",
    "TrainingSettings",
    "WeightsSettings",
    "merged",
]
