"""The policy as the trainer runs it: from a micro-batch to log-probs, entropies and the loss of its response tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from dcpo_async.algorithm import masked_weights, truncated_weights
from dcpo_async.config import AlgorithmSettings
from dcpo_async.errors import ConfigError
from learner.policy.head import LogitTransform, TokenLoss, TokenScores, head_scores, loss_and_slopes
from learner.policy.packing import MicroBatch

Correction = Callable[[Tensor, Tensor], Tensor]


class PolicyModel(nn.Module):
    """A causal language model that returns the scores of response tokens instead of logits.

    The log-probs are those of the distribution that actors sample from: softmax(logits / temperature).

    Attributes:
        is_packed: whether a micro-batch may have several sequences.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.is_packed = False
        self.transform = LogitTransform()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ConfigError(f"the head of this model is a {type(head).__name__}; only a linear one can be trained")
        # As a call of the head itself, so that ZeRO-3 has its weight together while it is needed.
        head.forward = partial(_head_forward, head)  # type: ignore[method-assign]

    def forward(self, batch: MicroBatch, loss: TokenLoss | None = None, *, is_whole: bool = False) -> TokenScores:
        """Score a micro-batch's response tokens, and take the gradient of their loss.

        Args:
            batch: one sequence, or several where the policy `is_packed`.
            loss: of consecutive tokens, given their log-probs; None for scores alone.
            is_whole: the loss of a token depends on tokens of other chunks, so that it is called once, for all.
        """
        packing: dict[str, Any] = {}
        if self.is_packed:
            longest = int(batch.longest)
            packing = {"cu_seq_lens_q": batch.bounds, "cu_seq_lens_k": batch.bounds}
            packing |= {"max_length_q": longest, "max_length_k": longest}
        body = self.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **packing
        )
        hidden = body.last_hidden_state[0, batch.states]
        score = partial(self._score, token_ids=batch.token_ids)
        if loss is None or not is_whole:
            return score(hidden, loss=loss)
        value, slopes = loss_and_slopes(loss, score(hidden.detach(), loss=None).logprobs, slice(None))
        scores = score(hidden, loss=lambda logprobs, tokens: (logprobs * slopes[tokens]).sum())
        return scores._replace(loss=scores.loss + (value - scores.loss).detach())

    def _score(self, hidden: Tensor, token_ids: Tensor, loss: TokenLoss | None) -> TokenScores:
        head = self.model.get_output_embeddings()
        return TokenScores(*head(hidden, token_ids, self.temperature, self.transform, loss))


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


def _head_forward(head: nn.Linear, hidden: Tensor, *scoring: Any) -> Any:
    """Logits, as the model's own forward pass wants them, or the scores of tokens."""
    if not scoring:
        return nn.functional.linear(hidden, head.weight, head.bias)
    return tuple(head_scores(head, hidden, *scoring))
