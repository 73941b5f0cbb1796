"""A micro-batch on tensors without data: what one forward and backward pass takes of memory, for any model.

The policy that trains is run on the meta device, and the bytes of the tensors that live are counted. So whatever
changes in it, or in transformers, changes the count; there is no formula to keep up with them.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from learner.trainer.policy import PolicyModel

SMALL_BYTES = 64 << 20
"""glibc returns larger blocks to the machine as soon as they are free (M_MMAP_THRESHOLD's bound)."""
_ATTENTION = "rehearsal"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Bytes of what a micro-batch makes, beside weights and gradients.

    Attributes:
        peak: of all tensors that live at once.
        small_peak: the same of those below SMALL_BYTES.
    """

    peak: int
    small_peak: int


def policy_without_data(config: Any, dtype: torch.dtype) -> PolicyModel:
    """The policy that trains, on the meta device; config is transformers' own."""
    # Gemma 2 caps its attention's logits, which no fused kernel does: learner/weights/loading.py.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) is not None else _ATTENTION
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return PolicyModel(model, temperature=1.0).train()


def rehearse(policy: PolicyModel, *, sequences: int, length: int, rows: int, checkpointing: bool) -> Rehearsal:
    """Run one micro-batch forward and backward and count.

    Args:
        policy: of `policy_without_data`.
        sequences, length: of its input, padding included.
        rows: response tokens, for which there are logits.
        checkpointing: whether activations are computed again in the backward pass.
    """
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        policy.model.gradient_checkpointing_disable()
    for parameter in policy.parameters():
        # From the second micro-batch on: a new gradient is made, and added to the one that is there.
        parameter.grad = torch.empty_like(parameter)
    held = [*policy.parameters(), *policy.buffers(), *(parameter.grad for parameter in policy.parameters())]
    tokens = torch.zeros(sequences, length, dtype=torch.int64, device="meta")
    places = torch.zeros(rows, dtype=torch.int64, device="meta")
    with _counting(tensor for tensor in held if tensor is not None) as live:
        logprobs, _ = policy(tokens, places, places, places)
        logprobs.sum().backward()
    return Rehearsal(live.peak, live.small_peak)


@contextmanager
def _counting(held: Iterable[Tensor]) -> Iterator["_Live"]:
    live = _Live(held)
    with live:
        yield live


class _Live(TorchDispatchMode):
    """Counts the bytes of storages from the operation that makes them until the last tensor lets go of them."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._bytes: dict[int, int] = {}
        self._now = self._small_now = self.peak = self.small_peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, Tensor):
                self._add(item.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._held or key in self._bytes:
            return
        self._bytes[key] = num_bytes
        weakref.finalize(storage, self._remove, key).atexit = False
        self._count(num_bytes, num_bytes)
        self.peak, self.small_peak = max(self.peak, self._now), max(self.small_peak, self._small_now)

    def _remove(self, key: int) -> None:
        num_bytes = self._bytes.pop(key)
        self._count(num_bytes, -num_bytes)

    def _count(self, num_bytes: int, change: int) -> None:
        self._now += change
        if num_bytes < SMALL_BYTES:
            self._small_now += change


class _FlashAttention(torch.autograd.Function):
    """What torch's fused attention keeps for its backward pass; on the meta device torch would take another kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sequences, heads, length, _ = query.shape
        out = query.new_empty(sequences, length, heads, value.shape[3])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **_options: Any
) -> tuple[Tensor, None]:
    return _FlashAttention.apply(query, key, value), None  # type: ignore[no-untyped-call]


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
