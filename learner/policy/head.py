"""The output head: log-probs, entropies and the gradient of the loss, a chunk of tokens at a time.

The logits of 16,384 tokens and a vocabulary of 152,064 are 10 GB in float32. Here those of one chunk live at a time,
and the gradient is taken while they do: the loss of a token needs nothing of the tokens of other chunks.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TokenLoss = Callable[[Tensor, slice], Tensor]
"""From log-probs [tokens] of consecutive tokens, and which of all tokens they are, to their share of the loss."""

# Logits of a chunk: 2,048 tokens of a vocabulary of 152,064 on a GPU. Fewer would read the head's weight more often.
_CHUNK_BYTES = {"cuda": 1_250_000_000, "cpu": 25_000_000}
# Elementwise passes go over a part that stays in a CPU's cache; a GPU's kernels want more at a time.
_TILE_BYTES = {"cuda": 160_000_000, "cpu": 3_000_000}

META_DEVICE: ContextVar[str] = ContextVar("META_DEVICE", default="cuda")
"""What tensors without data stand for; learner/sizing rehearses with them."""


class TokenScores(NamedTuple):
    """What the head says of each token.

    Attributes:
        loss: scalar, of all tokens, with the gradient; 0 without one where no loss was asked for.
        logprobs: float32 [tokens], of the distribution that actors sample from; without gradient.
        entropies: nats, float32 [tokens]; without gradient.
    """

    loss: Tensor
    logprobs: Tensor
    entropies: Tensor


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model makes of its head's output x: scale · x, or cap · tanh(scale · x / cap) where it has a cap."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor | float:
        """Transform logits in place, and return the derivative, one number or [same shape]."""
        if self.scale != 1:
            logits *= self.scale
        if self.cap is None:
            return self.scale
        squashed = logits.div_(self.cap).tanh_()
        slope = (1 - squashed.square()).mul_(self.scale)
        logits *= self.cap
        return slope


def head_scores(
    head: nn.Linear,
    hidden: Tensor,
    token_ids: Tensor,
    temperature: float,
    transform: LogitTransform,
    loss: TokenLoss | None,
) -> TokenScores:
    """Score tokens by softmax(transform(head(hidden)) / temperature), and take the gradient of their loss.

    Logits are float32 whatever the type of the weights, and so is the sum of the head's gradient over chunks.

    Args:
        head: linear, with or without bias.
        hidden: [tokens, size], the states that the tokens are predicted from.
        token_ids: int64 [tokens].
        temperature: above 0.
        loss: called for each chunk, in order; None for scores alone.

    Example: a head whose logits are (0, log 3) gives token 1 the log-prob log 0.75 = −0.2877 and the entropy 0.5623.
    """
    arguments = (hidden, head.weight, head.bias, token_ids, temperature, transform, loss)
    return TokenScores(*_HeadScores.apply(*arguments))  # type: ignore[no-untyped-call]


def loss_and_slopes(loss: TokenLoss, logprobs: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return the loss of a chunk's tokens, without gradient, and its derivative by each log-prob, [tokens]."""
    with torch.enable_grad():
        leaf = logprobs.clone().requires_grad_()
        share = loss(leaf, chunk)
        (slopes,) = torch.autograd.grad(share, leaf)
    return share.detach(), slopes


class _HeadScores(torch.autograd.Function):
    """Takes the gradient in the forward pass, while it has the logits, and hands it over in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        temperature: float,
        transform: LogitTransform,
        loss: TokenLoss | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(weight, bias)
        logprobs = torch.empty(len(token_ids), dtype=head.dtype, device=hidden.device)
        entropies, total = torch.empty_like(logprobs), logprobs.new_zeros(())
        gradients = None if loss is None else _Gradients(head, hidden, is_frozen=not ctx.needs_input_grad[1])
        for chunk in head.slices(len(token_ids), _CHUNK_BYTES):
            logits = head.logits(hidden[chunk])
            transform_slope = transform.apply_(logits)
            if temperature != 1:
                logits /= temperature
            chosen, sums = token_ids[chunk, None], torch.empty_like(logprobs[chunk])
            tiles = head.slices(len(chosen), _TILE_BYTES)
            for tile in tiles:
                scores = _exponentiate(logits[tile], chosen[tile])
                logprobs[chunk][tile], entropies[chunk][tile], sums[tile] = scores
            if loss is None or gradients is None:
                continue
            share, slopes = loss_and_slopes(loss, logprobs[chunk], chunk)
            total += share
            slopes = slopes / temperature
            for tile in tiles:
                # d logprob / d logits = one-hot − softmax.
                logits[tile] *= (-slopes[tile] / sums[tile])[:, None]
                logits[tile].scatter_add_(1, chosen[tile], slopes[tile, None])
            if isinstance(transform_slope, Tensor) or transform_slope != 1:
                logits *= transform_slope
            gradients.add(chunk, logits)
        ctx.mark_non_differentiable(logprobs, entropies)
        ctx.gradients = gradients and gradients.finished()
        return total, logprobs, entropies

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if gradient is None else gradient.mul_(loss_gradient) for gradient in gradients)
        return (*scaled, None, None, None, None)


def _exponentiate(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace logits [tokens, vocabulary] by their exponentials; return log-probs, entropies and sums, all [tokens].

    Args:
        chosen: int64 [tokens, 1], the token of each row.
    """
    logits -= logits.amax(1, keepdim=True)
    exponentials = logits.exp()
    sums = exponentials.sum(1)
    logprobs = logits.gather(1, chosen)[:, 0] - sums.log()
    # A token that can never be sampled adds 0, not 0 · −inf.
    products = torch.linalg.vecdot(exponentials, logits.clamp_(min=torch.finfo(logits.dtype).min))
    logits.copy_(exponentials)
    return logprobs, sums.log() - products / sums, sums


class _Head:
    """Weight and bias, whose products are float32 even where they are bfloat16.

    A GPU takes factors of bfloat16 and adds them up in float32; a CPU has no such product, and has the weight copied.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        kind = weight.device.type
        self._kind = META_DEVICE.get() if kind == "meta" else kind
        is_mixed = self._kind == "cuda" and weight.dtype != self.dtype
        self._factor = weight if is_mixed else weight.to(self.dtype)
        self._out: dict[str, Any] = {"out_dtype": self.dtype} if is_mixed else {}

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self._product(hidden, self._factor.T)
        return logits if self.bias is None else logits.add_(self.bias)

    def hidden_gradient(self, logit_gradients: Tensor) -> Tensor:
        return self._product(logit_gradients, self._factor)

    def add_weight_gradient(self, total: Tensor, logit_gradients: Tensor, hidden: Tensor) -> None:
        if self._out:
            total += self._product(logit_gradients.T, hidden)
        else:
            total.addmm_(logit_gradients.T, hidden.to(self.dtype))

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left.to(self._factor.dtype), right.to(self._factor.dtype), **self._out)

    def slices(self, num_tokens: int, max_bytes: dict[str, int]) -> list[slice]:
        """Consecutive tokens whose logits are at most so many bytes."""
        row_bytes = len(self.weight) * self.dtype.itemsize
        step = max(1, max_bytes[self._kind] // row_bytes)
        return [slice(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step)]


class _Gradients:
    """Of the states and of the head, unless that is frozen, summed over chunks in the type of the products."""

    def __init__(self, head: _Head, hidden: Tensor, *, is_frozen: bool) -> None:
        self._head, self._states = head, hidden
        self._hidden = torch.empty_like(hidden)
        self._weight, self._bias = (
            None if is_frozen or of is None else torch.zeros_like(of, dtype=head.dtype)
            for of in (head.weight, head.bias)
        )

    def add(self, chunk: slice, logit_gradients: Tensor) -> None:
        self._hidden[chunk] = self._head.hidden_gradient(logit_gradients)
        if self._weight is not None:
            self._head.add_weight_gradient(self._weight, logit_gradients, self._states[chunk])
        if self._bias is not None:
            self._bias += logit_gradients.sum(0)

    def finished(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """In the types of what they belong to."""
        dtype = self._head.weight.dtype
        weight, bias = (None if of is None else of.to(dtype) for of in (self._weight, self._bias))
        return self._hidden, weight, bias
