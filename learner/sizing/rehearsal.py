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

from dcpo_async.config import AdapterSettings
from learner.policy.attention import keeps_sequences_apart
from learner.policy.head import META_DEVICE
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch
from learner.weights.adapter import add_adapter

SMALL_BYTES = 32 << 20
"""glibc keeps smaller blocks for later when they are freed, larger ones go back to the machine."""
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


def policy_without_data(config: Any, dtype: torch.dtype, adapter: AdapterSettings | None = None) -> PolicyModel:
    """The policy that trains, on the meta device; config is transformers' own. Raises as `add_adapter` does."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_ATTENTION)
        if adapter is not None:
            add_adapter(model, adapter, seed=0)
    policy = PolicyModel(model, temperature=1.0).train()
    policy.is_packed = keeps_sequences_apart(model)
    return policy


def rehearse(policy: PolicyModel, *, device: str, tokens: int, rows: int, checkpointing: bool) -> Rehearsal:
    """Run one micro-batch forward and backward and count.

    Args:
        policy: of `policy_without_data`.
        device: `cuda` or `cpu`, where it will run.
        tokens: prompt and response tokens of its row.
        rows: response tokens, for which there are logits.
        checkpointing: whether activations are computed again in the backward pass.
    """
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        policy.model.gradient_checkpointing_disable()
    for parameter in (parameter for parameter in policy.parameters() if parameter.requires_grad):
        # From the second micro-batch on: a new gradient is made, and added to the one that is there.
        parameter.grad = torch.empty_like(parameter)
    held = [*policy.parameters(), *policy.buffers(), *(parameter.grad for parameter in policy.parameters())]
    stands_for = META_DEVICE.set(device)
    try:
        with counting(tensor for tensor in held if tensor is not None) as live:
            policy(_micro_batch(tokens, rows), lambda logprobs, _: logprobs.sum()).loss.backward()
    finally:
        META_DEVICE.reset(stands_for)
    return Rehearsal(live.peak, live.small_peak)


def _micro_batch(tokens: int, rows: int) -> MicroBatch:
    """One row without data; its sequences make no difference to what it takes."""
    row, of_rows = torch.zeros(1, tokens, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    values, bounds = of_rows.float(), torch.zeros(2, dtype=torch.int32)
    batch = MicroBatch(
        input_ids=row,
        position_ids=row,
        bounds=bounds,
        longest=torch.tensor(tokens),
        states=of_rows,
        sequences=of_rows,
        token_ids=of_rows,
        behavior_logprobs=values,
        old_logprobs=values,
        advantages=values,
        token_weights=values,
        token_counts=values,
        token_lags=of_rows,
    )
    return batch.on(torch.device("meta"))


@contextmanager
def counting(held: Iterable[Tensor]) -> Iterator["_Live"]:
    """Count what lives in the context, beside what is held before it; its `peak` is that of all, `small_peak` that
    of small blocks."""
    live = _Live(held)
    with live:
        yield live


class _Live(TorchDispatchMode):
    """Counts the bytes of storages from the operation that makes them until the last tensor lets go of them."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._bytes: dict[int, int] = {}
        self._now = self._small_now = self.peak = self.small_peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            # The experts' products, which have no float32 on the meta device.
            out = func(*(_in_bfloat16(item) for item in args), **(kwargs or {})).to(args[0].dtype)
        else:
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


def _in_bfloat16(item: Any) -> Any:
    return item.bfloat16() if isinstance(item, Tensor) and item.is_floating_point() else item


class _FlashAttention(torch.autograd.Function):
    """What torch's fused attention keeps for its backward pass; on the meta device torch would take another kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_capped: bool) -> Tensor:
        sequences, heads, length, _ = query.shape
        out = query.new_empty(sequences, length, heads, value.shape[3])
        kept = [query, key, value, out]
        if is_capped:
            # Gemma 2 caps the products, which no fused kernel does (learner/weights/loading.py): they are kept as they
            # come out of tanh, as float32 shares, and as shares in the model's type.
            squares = (sequences, heads, length, length)
            kept += [query.new_empty(squares), query.new_empty(squares, dtype=torch.float32), query.new_empty(squares)]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    is_capped = options.get("softcap") is not None
    out = _FlashAttention.apply(query, key, value, is_capped)  # type: ignore[no-untyped-call]
    # On a CPU each sequence has an output of its own (learner/policy/attention.py), which are put side by side.
    return out.clone() if META_DEVICE.get() == "cpu" else out, None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
