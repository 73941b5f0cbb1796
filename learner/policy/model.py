"""The policy as the trainer runs it: from a micro-batch to log-probs, entropies and the loss of its response tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcpo_async.algorithm import masked_weights, truncated_weights
from dcpo_async.config import AlgorithmSettings
from dcpo_async.errors import ConfigError
from learner.policy.head import LogitTransform, TokenLoss, TokenScores, head_scores, loss_and_slopes
from learner.policy.packing import MicroBatch
from learner.policy.sequence_parallel import RowPart, SequenceGroup, row_of, within

Correction = Callable[[Tensor, Tensor], Tensor]


class PolicyModel(nn.Module):
    """A causal language model that returns the scores of response tokens instead of logits.

    The log-probs are those of the distribution that actors sample from: softmax(logits / temperature).

    Attributes:
        is_packed: whether a micro-batch may have several sequences.
        sequence_group: ranks that share the tokens of each micro-batch; None where this rank has them all.
    """

    def __init__(self, model: Any, temperature: float, sequence_group: SequenceGroup | None = None) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.sequence_group = sequence_group
        self.is_packed = False
        self.transform = LogitTransform()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ConfigError(f"the head of this model is a {type(head).__name__}; only a linear one can be trained")
        # As a call of the head itself, so that ZeRO-3 has its weight together while it is needed.
        head.forward = partial(_head_forward, head)  # type: ignore[method-assign]

    def forward(self, batch: MicroBatch, loss: TokenLoss | None = None, *, is_whole: bool = False) -> TokenScores:
        """Score a micro-batch's response tokens, and take the gradient of their loss.

        Ranks that share a micro-batch all have it whole, and all learn the scores of all its tokens; the gradient of
        each is that of its own tokens' loss, so that they add up.

        Args:
            batch: one sequence, or several where the policy `is_packed`.
            loss: of consecutive tokens, given their log-probs; None for scores alone.
            is_whole: the loss of a token depends on tokens of other chunks, so that it is called once, for all.
        """
        row = row_of(batch) if self.sequence_group is None else self.sequence_group.part_of(batch)
        hidden, own = self._states(row), row.tokens
        score = partial(self._score, batch, own)
        if loss is None:
            return score(hidden, None)
        if not is_whole:
            return score(hidden, lambda logprobs, tokens: loss(logprobs, within(own, tokens)))
        value, slopes = loss_and_slopes(loss, score(hidden.detach(), None).logprobs, slice(None))
        scores = score(hidden, lambda logprobs, tokens: (logprobs * slopes[within(own, tokens)]).sum())
        return scores._replace(loss=scores.loss + (value - scores.loss).detach())

    def _states(self, row: RowPart) -> Tensor:
        """The states that response tokens are predicted from, [tokens, size]."""
        packing: dict[str, Any] = {}
        if self.is_packed:
            packing = {"cu_seq_lens_q": row.bounds, "cu_seq_lens_k": row.bounds}
            packing |= {"max_length_q": row.longest, "max_length_k": row.longest}
        if self.sequence_group is not None:
            packing["sequence_group"] = self.sequence_group
        body = self.model.base_model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, **packing)
        states: Tensor = body.last_hidden_state[0, row.states]
        return states

    def _score(self, batch: MicroBatch, own: slice, hidden: Tensor, loss: TokenLoss | None) -> TokenScores:
        """Scores of all of a batch's tokens, from the states of this rank's own."""
        head = self.model.get_output_embeddings()
        scores = TokenScores(*head(hidden, batch.token_ids[own], self.temperature, self.transform, loss))
        if self.sequence_group is None:
            return scores
        both = torch.stack([scores.logprobs, scores.entropies])
        logprobs, entropies = self.sequence_group.gathered(both, own, len(batch.token_ids))
        return TokenScores(scores.loss, logprobs, entropies)


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
