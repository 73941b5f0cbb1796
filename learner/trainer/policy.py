"""Log-probabilities of response tokens under the policy, in float32 and only where they are needed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcpo_async.algorithm import masked_weights, truncated_weights
from dcpo_async.config import AlgorithmSettings

Correction = Callable[[Tensor, Tensor], Tensor]

# Bounds the float32 copies of logits: 2048 rows of a vocabulary of 152 000 are 1.2 GB.
_CHUNK_TOKENS = 2048


class PolicyModel(nn.Module):
    """A causal language model that returns log-probs of given tokens instead of logits.

    The log-probs are those of the distribution that actors sample from: softmax(logits / temperature).
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self._wanted: tuple[Tensor, Tensor] | None = None
        # In front of the head, whatever the model does with its logits afterwards: most rows of the
        # largest tensor of all (tokens × vocabulary) are prompt or padding.
        model.get_output_embeddings().register_forward_pre_hook(self._keep_wanted)

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs, with gradient, and entropies in nats, without; both float32 [tokens].

        Args:
            input_ids: int64 [sequences, length], padded on the right: causal attention never sees padding.
            rows, columns: int64 [tokens], where the logits of each token stand: one column before the token.
            token_ids: int64 [tokens].
        """
        self._wanted = rows, columns
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        return token_logprobs(logits, token_ids, self.temperature)

    def _keep_wanted(self, _head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self._wanted is not None, "the wrapped model runs only through forward"
        return (args[0][self._wanted], *args[1:])


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log softmax(logits / temperature) at the tokens, and the entropy of each distribution.

    Args:
        logits: [tokens, vocabulary], any float type; the only argument that receives a gradient.
        token_ids: int64 [tokens].
        temperature: above 0.

    Returns:
        float32 [tokens] log-probs, and float32 [tokens] entropies in nats, which carry no gradient.

    Example: logits (0, log 3) at temperature 1 give token 1 the log-prob log 0.75 = −0.2877 and the entropy 0.5623.
    """
    logprobs, entropy = _TokenLogprobs.apply(logits, token_ids, temperature)  # type: ignore[no-untyped-call]
    return logprobs, entropy


def correction(settings: AlgorithmSettings) -> Correction | None:
    """What multiplies each token's loss, given its old and its behavior log-prob; None where nothing does."""
    if settings.old == "behavior":
        return None
    lowest, highest = settings.importance_mask
    return {
        "none": None,
        "truncated": partial(truncated_weights, cap=settings.importance_cap),
        "masked": partial(masked_weights, lowest=lowest, highest=highest),
    }[settings.correction]


class _TokenLogprobs(torch.autograd.Function):
    """gather − logsumexp by chunks; the backward pass recomputes each chunk's softmax instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(token_ids), dtype=torch.float32, device=logits.device)
        log_normalizer, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for chunk in _chunks(len(token_ids)):
            scaled = logits[chunk].float() / temperature
            normalizer = scaled.logsumexp(1)
            log_normalizer[chunk] = normalizer
            logprobs[chunk] = scaled.gather(1, token_ids[chunk, None])[:, 0] - normalizer
            probabilities = (scaled - normalizer[:, None]).exp_()
            entropy[chunk] = normalizer - (probabilities.mul_(scaled)).sum(1)
        ctx.save_for_backward(logits, token_ids, log_normalizer)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, logprob_gradients: Tensor, _entropy_gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, token_ids, log_normalizer = ctx.saved_tensors
        gradients = torch.empty_like(logits)
        for chunk in _chunks(len(token_ids)):
            outer = logprob_gradients[chunk, None] / ctx.temperature
            softmax = (logits[chunk].float() / ctx.temperature - log_normalizer[chunk, None]).exp_()
            gradients[chunk] = softmax.mul_(-outer).scatter_add_(1, token_ids[chunk, None], outer)
        return gradients, None, None


def _chunks(num_tokens: int) -> list[slice]:
    return [slice(start, start + _CHUNK_TOKENS) for start in range(0, num_tokens, _CHUNK_TOKENS)]
