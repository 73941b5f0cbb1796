from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from dcpo_async.errors import ConfigError
from learner.policy import attention, fitting
from learner.policy.head import LogitTransform
from learner.policy.model import PolicyModel
from learner.policy.packing import pack_sequences
from learner.weights.loading import loaded_model
from tests.tiny_families import FAMILIES, make_family

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}


def fitted(model: Any) -> PolicyModel:
    torch.manual_seed(0)
    policy = PolicyModel(model.eval(), 1.0)
    fitting.fit_to_model(policy, CPU)
    return policy


@torch.no_grad()
def worst_difference(policy: PolicyModel, lengths: tuple[int, ...]) -> float:
    """Largest difference in nats between sequences as the policy takes them and each alone in the model's own pass."""
    worst = 0.0
    sequences = [torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    batches = [sequences] if policy.is_packed else [[sequence] for sequence in sequences]
    found = torch.cat([policy(pack_sequences([s.tolist() for s in batch])).logprobs for batch in batches])
    policy.model.set_attn_implementation("eager")
    for sequence, scores in zip(sequences, found.split([length - 1 for length in lengths]), strict=True):
        logits = policy.model(input_ids=sequence[None], use_cache=False).logits[0, :-1].log_softmax(1)
        worst = max(worst, (logits.gather(1, sequence[1:, None])[:, 0] - scores).abs().max().item())
    return worst


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_scores_sequences_side_by_side_as_each_alone(tmp_path: Path, family: str) -> None:
    make_family(tmp_path, family)
    policy = fitted(loaded_model(tmp_path, torch.float32))
    assert policy.is_packed == (family != "gemma2")
    assert worst_difference(policy, (31, 5, 18)) < 1e-5


def test_a_window_is_kept_within_each_sequence() -> None:
    policy = fitted(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)))
    assert policy.is_packed
    assert worst_difference(policy, (31, 5, 18)) < 1e-5


def test_layers_that_hide_their_window_take_one_sequence_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "window_of", lambda model: 4096)
    policy = fitted(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)))
    assert not policy.is_packed
    assert policy.model.config._attn_implementation == "sdpa"


def test_a_recurrent_state_goes_through_one_sequence_at_a_time() -> None:
    config = FalconH1Config(**SHAPE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)
    policy = fitted(FalconH1ForCausalLM(config))
    assert not policy.is_packed


def test_attention_that_looks_into_its_neighbour_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention.packed_attention

    def across(*arguments: Any, cu_seq_lens_q: Tensor, **options: Any) -> tuple[Tensor, None]:
        return own(*arguments, cu_seq_lens_q=cu_seq_lens_q[[0, -1]], **options)

    monkeypatch.setattr(attention, "packed_attention", across)
    assert not fitted(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None))).is_packed


@pytest.mark.parametrize(
    ("model", "transform"),
    [
        (CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25, pad_token_id=0)), LogitTransform(0.25)),
        (Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=2.0)), LogitTransform(1.0, 2.0)),
    ],
)
def test_what_a_model_makes_of_its_logits_is_made_here_too(model: Any, transform: LogitTransform) -> None:
    policy = fitted(model)
    assert policy.transform == transform
    assert worst_difference(policy, (9, 4)) < 3e-5


def test_a_scale_that_a_model_does_not_use_is_refused() -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None))
    model.config.logit_scale = 0.5
    with pytest.raises(ConfigError, match="MistralForCausalLM makes something of its head's output"):
        fitted(model)


def test_attention_that_is_no_number_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention.packed_attention

    def broken(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
        return own(*arguments, **options)[0] * torch.nan, None

    monkeypatch.setattr(attention, "packed_attention", broken)
    assert not fitted(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None))).is_packed


def test_a_model_that_makes_something_else_of_its_logits_is_refused() -> None:
    model = CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25, pad_token_id=0))
    model.config.logit_scale = 1.0
    with pytest.raises(ConfigError, match="CohereForCausalLM makes something of its head's output"):
        fitted(model)
