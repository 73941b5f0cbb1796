"""What has to be known of a model before it trains: what it makes of its logits, and if it keeps sequences apart.

Both are tried on the model at hand. One that is scored in another way than it scores itself would train on something
else, in silence.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from dcpo_async.errors import ConfigError
from learner.policy import attention
from learner.policy.head import LogitTransform, TokenScores
from learner.policy.model import PolicyModel
from learner.policy.packing import pack_sequences
from learner.policy.sequence_parallel import SequenceGroup

log = logging.getLogger(__name__)

# Largest difference of a log-prob, in nats, that is rounding: of bfloat16, whose logits are off by up to 0.1, and else.
_ROUNDING = {torch.bfloat16: 0.5}
_ROUNDING_OF_OTHERS = 1e-3
_LENGTHS = (4, 9, 6)


@torch.no_grad()
def fit_to_model(policy: PolicyModel, device: torch.device) -> None:
    """Set what a policy has to know of its model; all ranks call it.

    Raises:
        ConfigError: the model's logits are not its head's, scaled and capped as its config.json says, or ranks are to
            share the tokens of a row, and score them otherwise than one rank does.
    """
    was_training, group = policy.training, policy.sequence_group
    policy.eval()
    # What is compared below is computed by each rank alone.
    policy.sequence_group = None
    try:
        policy.transform = _transform(policy, device)
        difference = _pack_if_exact(policy, device)
        if group is not None:
            _share_if_exact(policy, group, difference, device)
        elif difference:
            log.info("%s trains on one sequence at a time: %s", type(policy.model).__name__, difference)
    finally:
        policy.train(was_training)


def logit_transform(config: Any) -> LogitTransform:
    """What a model with this configuration makes of its head's output, by the names that families have for it."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


def _transform(policy: PolicyModel, device: torch.device) -> LogitTransform:
    """The transform that config.json tells of, once the model's own logits agree."""
    model = policy.model
    transform, found = logit_transform(model.config.get_text_config()), []
    tokens = _sequences(model, device)[1][None]
    head = model.get_output_embeddings()
    # A copy: what the model makes of its logits in place would be in both, and so would what is made of them here.
    with head.register_forward_hook(lambda _head, _input, output: found.append(output.detach().float().clone())):
        logits = model(input_ids=tokens, use_cache=False).logits.float()
    transform.apply_(expected := found[0])
    if not torch.allclose(logits, expected, rtol=2e-2, atol=1e-3):
        raise ConfigError(
            f"{type(model).__name__} makes something of its head's output that is not known here (at most "
            f"{(logits - expected).abs().max():.2g} away from {transform}); its log-probs would be wrong"
        )
    return transform


def _pack_if_exact(policy: PolicyModel, device: torch.device) -> str:
    """Have micro-batches of several sequences where they score as each sequence does alone, else tell why not."""
    model, sequences = policy.model, _sequences(policy.model, device)
    alone = torch.cat([_logprobs(policy, [tokens]) for tokens in sequences])
    own = model.config._attn_implementation
    windows: set[int | None] = set()

    def attend(*arguments: Any, sliding_window: int | None = None, **options: Any) -> tuple[Tensor, None]:
        windows.add(sliding_window)
        return attention.packed_attention(*arguments, sliding_window=sliding_window, **options)

    reason = "its layers are not plain attention"
    if attention.keeps_sequences_apart(model):
        AttentionInterface.register(attention.NAME, attend)
        model.set_attn_implementation(attention.NAME)
        policy.is_packed = True
        try:
            difference = float((_logprobs(policy, sequences) - alone).abs().max())
            # Written so that NaN is a difference too.
            if not difference <= _rounding(model):
                reason = f"sequences side by side score {difference:.2g} nats away from each alone"
            elif (window := attention.window_of(model)) not in windows:
                # No sequence here is as long as a window is.
                reason = f"its layers do not tell attention of their window of {window} tokens"
            else:
                return ""
        except (RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            AttentionInterface.register(attention.NAME, attention.packed_attention)
        policy.is_packed = False
        model.set_attn_implementation(own)
    return reason


def _share_if_exact(policy: PolicyModel, group: SequenceGroup, reason: str, device: torch.device) -> None:
    """Have ranks share the tokens of a row, whose scores must stay what they are; raises ConfigError.

    Args:
        reason: why the policy takes one sequence at a time, where it does.
    """
    model, sequences = policy.model, _sequences(policy.model, device)
    if not reason:
        alone = _logprobs(policy, sequences)
        policy.sequence_group = group
        try:
            difference = float((_logprobs(policy, sequences) - alone).abs().max())
            if difference <= _rounding(model):
                return
            reason = f"its tokens score {difference:.2g} nats away from those of one rank"
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise ConfigError(
        f"training.sequence_parallel = {group.size}: the tokens of {type(model).__name__} cannot be shared among "
        f"ranks: {reason}; leave it at 1"
    )


def _rounding(model: Any) -> float:
    return _ROUNDING.get(model.dtype, _ROUNDING_OF_OTHERS)


def _sequences(model: Any, device: torch.device) -> list[Tensor]:
    """Three sequences of tokens, int64 [length] each, in which hardly a token comes twice."""
    tokens = torch.arange(sum(_LENGTHS), device=device) * 7 % model.get_input_embeddings().num_embeddings
    return list(tokens.split(_LENGTHS))


def _logprobs(policy: PolicyModel, sequences: Sequence[Tensor]) -> Tensor:
    """Log-probs of each token but the first of its sequence, one sequence after another."""
    scores: TokenScores = policy(pack_sequences([tokens.tolist() for tokens in sequences]).on(sequences[0].device))
    return scores.logprobs
