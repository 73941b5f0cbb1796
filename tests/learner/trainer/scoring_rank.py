"""A rank that scores a canary before and after an update; a test starts it: `CONFIG RESULT_FOLDER`."""

import json
import sys
from pathlib import Path

import torch

from dcpo_async.config import RunConfig
from dcpo_async.weights.tensor_file import write_tensors
from learner.policy.packing import pack
from learner.trainer.canary import canary_logprobs, canary_tokens
from learner.trainer.engine import TrainEngine
from learner.trainer.publication import Publication
from tests.learner.trainer.test_trainer import fixed_samples


def main() -> None:
    """Score, update, score; between them whatever scoring could disturb is compared."""
    config, folder = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    engine, batch = TrainEngine(config), pack(fixed_samples(0)[:4])
    publication = Publication(engine, [folder / f"buffer-{number}" for number in range(2)], deadline_seconds=60)
    token_ids = canary_tokens(64, config.weights.canary_tokens, config.seed)

    def train(step: int) -> None:
        torch.manual_seed(step)
        scores = engine.policy(batch, lambda logprobs, _tokens: -logprobs.mean())
        engine.backward(scores.loss, is_last=True)
        engine.set_learning_rate(step)
        assert engine.update(step) is not None

    for step in range(2):
        before = torch.get_rng_state()
        found = canary_logprobs(engine, token_ids)
        assert torch.equal(before, torch.get_rng_state())
        assert engine.model.training
        with publication.whole() as weights:
            if engine.rank == 0:
                write_tensors(folder / f"{step}.safetensors", weights)
        (folder / f"{step}-{engine.rank}.json").write_text(json.dumps(found))
        train(step)
    engine.close()


if __name__ == "__main__":
    main()
