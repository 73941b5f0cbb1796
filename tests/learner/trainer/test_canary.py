"""The trainer's log-probs of a canary are those of the plain model, however DeepSpeed holds its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.trainer.canary import canary_tokens
from tests.learner.ranks import run_ranks
from tests.learner.trainer.test_trainer import make_config


def test_the_tokens_are_a_function_of_their_arguments_and_within_the_vocabulary() -> None:
    assert canary_tokens(12, 64, seed=7)[:4] == (11, 7, 8, 10)
    assert canary_tokens(12, 64, seed=7) != canary_tokens(12, 64, seed=8)
    assert set(canary_tokens(12, 4096, seed=0)) == set(range(12))


def plain_logprobs(model: Path, weights: Path, token_ids: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """By transformers alone, [tokens - 1]."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    plain.load_state_dict(load_file(weights), strict=True)
    tokens = torch.tensor(token_ids)
    with torch.no_grad():
        logits = plain.eval()(tokens[None]).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].numpy()


@pytest.mark.system
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("zero_stage", "dtype"),
    [
        pytest.param(0, "float32", marks=pytest.mark.thorough),
        pytest.param(1, "float32", marks=pytest.mark.thorough),
        (2, "float32"),
        (3, "float32"),
        (2, "bfloat16"),
    ],
)
async def test_two_ranks_score_as_the_plain_model_does(tmp_path: Path, zero_stage: int, dtype: str) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": zero_stage}, sampling={"temperature": 0.7})
    model = config.model.model_copy(update={"dtype": dtype, "gradient_checkpointing": True})
    config = config.model_copy(update={"model": model})
    # What training adds of its own must not be in the log-probs.
    described = json.loads((Path(model.path) / "config.json").read_text())
    (Path(model.path) / "config.json").write_text(json.dumps({**described, "attention_dropout": 0.5}))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    for number in range(2):
        (tmp_path / f"buffer-{number}").touch()
    words = (tmp_path / "config.json", tmp_path)
    await run_ranks("tests.learner.trainer.scoring_rank", *words, folder=tmp_path)
    token_ids = canary_tokens(64, 64, config.seed)
    found = [np.array(json.loads((tmp_path / f"{step}-0.json").read_text())) for step in (0, 1)]
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for step in (0, 1):
        assert json.loads((tmp_path / f"{step}-1.json").read_text()) == found[step].tolist()
        expected = plain_logprobs(Path(model.path), tmp_path / f"{step}.safetensors", token_ids, getattr(torch, dtype))
        assert np.abs(found[step] - expected).max() <= tolerance
        assert len(found[step]) == 63
    assert np.abs(found[0] - found[1]).max() > 10 * 1e-5
