"""Attention over the sequences of one row, each for itself: no padding, and no mask of the whole row."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learner.policy.sequence_parallel import SequenceGroup

NAME = "dcpo_packed"
"""Under which transformers knows it."""

_KINDS = {"full_attention", "sliding_attention"}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    sequence_group: SequenceGroup | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention in the form that transformers calls it.

    On GPUs one kernel takes all sequences; elsewhere, and in float32, each goes through torch's own attention alone.

    Args:
        query: [1, heads, length, size]; key, value: the same with as many heads or a divisor of them.
        attention_mask: None; transformers makes no mask for an implementation that it has none for.
        cu_seq_lens_q: int32 [sequences + 1], where each sequence begins, and the end.
        max_length_q: tokens of the longest.
        scaling: of the products; None for 1/√size.
        sliding_window: how many tokens back a token sees, itself among them; None for all.
        sequence_group: ranks that share the row, each of which has a part of it; None where this is all of it.

    Returns:
        [1, length, heads, size], and no attention weights.
    """
    assert attention_mask is None
    if sequence_group is not None:
        num_heads = query.shape[1]
        query, key, value = (sequence_group.by_heads(tensor, num_heads) for tensor in (query, key, value))
    out = _attended(query, key, value, cu_seq_lens_q, max_length_q, scaling, dropout, sliding_window)
    return out if sequence_group is None else sequence_group.by_tokens(out), None


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """Attention over whole sequences, [1, length, heads, size]."""
    if query.is_cuda and query.dtype != torch.float32 and dropout == 0:
        out = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=True,
        )
        assert isinstance(out, Tensor)
        return out[None]
    lengths = bounds.diff().tolist()
    parts = [
        scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=_window_mask(length, sliding_window, query.device),
            dropout_p=dropout,
            is_causal=sliding_window is None or length <= sliding_window,
            scale=scaling,
            enable_gqa=True,
        )
        # Split, not sliced: the gradient of each slice would be as large as the row.
        for length, queries, keys, values in zip(
            lengths, *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def keeps_sequences_apart(model: Any) -> bool:
    """Whether all layers of a model are of the attention above: a recurrent state would go from sequence to sequence.

    Capped scores (Gemma 2) are not.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_plain = getattr(config, "attn_logit_softcapping", None) is None
    return bool(model._can_set_attn_implementation()) and kinds <= _KINDS and is_plain


def window_of(model: Any) -> int | None:
    """How far back tokens see in some layer of a model; None where all see all before them."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    has_window = kinds is None or "sliding_attention" in kinds
    window: int | None = getattr(config, "sliding_window", None) if has_window else None
    return window


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Bool [length, length], True where a token sees another; None where it sees all before it."""
    if window is None or length <= window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


AttentionInterface.register(NAME, packed_attention)
