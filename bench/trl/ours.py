"""One optimizer step of the learner on one rank: `python -m bench.trl.ours MODEL SAMPLES [SECTION.NAME=VALUE ...]`."""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bench.trl.measure import Measure
from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.records import TrainingSample
from learner.coordinator.shards import looked_at
from learner.ranks import rank_environments
from learner.sizing.automatic import decided
from learner.sizing.machine import this_machine
from learner.sizing.model import SizedModel
from learner.trainer.engine import TrainEngine
from learner.trainer.trainer import Trainer
from learner.weights.loading import loaded_model


def main() -> None:
    """A short step to warm up, then the timed one."""
    torch.set_num_threads(1)
    model, path = sys.argv[1], Path(sys.argv[2])
    settings: dict[str, dict[str, Any]] = {
        "model": {"path": model, "dtype": "float32"},
        # As long as the samples are.
        "data": {"max_prompt_tokens": 200},
        "sampling": {"max_response_tokens": 1024},
    }
    for setting in sys.argv[3:]:
        (section, _, name), value = setting.partition("=")[0].partition("."), setting.partition("=")[2]
        settings.setdefault(section, {})[name] = value
    # As a process that has loaded a model and nothing else, which is what both sides are compared with.
    loaded_model(model, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        (rank,) = rank_environments(1, Path(folder))
        os.environ |= rank
        config = RunConfig(folder=Path(folder), **settings)  # type: ignore[arg-type]
        sized = SizedModel(Path(model), value_bytes=4 if config.model.dtype == "float32" else 2)
        config, plan = decided(config, sized, this_machine(Devices((), 1), Path(folder)), 1, on_gpus=False)
        print(f"ZeRO {plan.zero_stage}, {plan.tokens} tokens, checkpointing {plan.checkpointing}", file=sys.stderr)
        measure = Measure()
        trainer = Trainer(config, TrainEngine(config), SimpleNamespace(tell=None), publication=None)  # type: ignore[arg-type]
        samples = [_sample(number, entry) for number, entry in enumerate(json.loads(path.read_text()))]
        trainer.train_step([_shortened(sample) for sample in samples[:4]])
        measure.start()
        trainer.train_step(looked_at(samples, config.training.measured_share))
        print(measure.report())


def _sample(number: int, entry: dict[str, Any]) -> TrainingSample:
    length = len(entry["response"])
    logprobs = np.full(length, -10.8, dtype=np.float32)
    return TrainingSample(
        position=entry["group"],
        index=number % 8,
        prompt_token_ids=np.array(entry["prompt"], dtype=np.int32),
        token_ids=np.array(entry["response"], dtype=np.int32),
        behavior_logprobs=logprobs,
        old_logprobs=logprobs,
        token_lags=np.zeros(length, dtype=np.int32),
        advantage=entry["advantage"],
        token_weight=1 / (64 * length),
    )


def _shortened(sample: TrainingSample) -> TrainingSample:
    entry = {"group": 0, "prompt": [10, 11], "response": sample.token_ids[:8].tolist(), "advantage": 1.0}
    return _sample(0, entry)


if __name__ == "__main__":
    main()
