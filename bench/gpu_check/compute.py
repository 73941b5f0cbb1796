"""G4 and G5: seconds of a forward and backward pass, and sequences side by side against each alone."""

import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.profiler import ProfilerActivity, profile

from bench.gpu_check.findings import Finding, Place, SkippedError, at_most, holds, sync
from bench.gpu_check.model import MICRO_BATCH_TOKENS, made_samples, model_folder
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch, pack
from learner.weights.loading import loaded_model

PASSES = 5
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Of dense bfloat16, by what a card's name contains; SXM modules."""
NUM_LAYERS_7B = 28


def made_policy(place: Place, *, checkpointing: bool) -> PolicyModel:
    """The model on the device, in bfloat16 on a GPU."""
    model = loaded_model(model_folder(place), torch.bfloat16 if place.is_gpu else torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(model.to(place.device), 1.0).train()
    fit_to_model(policy, torch.device(place.device))
    return policy


def one_pass(policy: PolicyModel, batch: MicroBatch) -> Tensor:
    """Forward and backward; log-probs."""
    scores = policy(batch, lambda logprobs, tokens: (logprobs * batch.token_weights[tokens]).sum())
    scores.loss.backward()
    logprobs: Tensor = scores.logprobs
    return logprobs


def speed(place: Place) -> Iterator[Finding]:
    """G4: seconds of a micro-batch with and without checkpointing, plain and compiled, and the kernel of attention."""
    tokens = MICRO_BATCH_TOKENS[place.device]
    for checkpointing, num_tokens in ((True, tokens), (False, tokens // 4)):
        batch = pack(made_samples(place, 0, num_tokens)).on(torch.device(place.device))
        for kind in ("plain", "compiled"):
            policy = made_policy(place, checkpointing=checkpointing)
            layers: Any = policy.model.base_model.layers
            if kind == "compiled":
                for layer in layers:
                    layer.compile(dynamic=True, backend="inductor" if place.is_gpu else "aot_eager")
            began = time.perf_counter()
            one_pass(policy, batch)
            sync(torch.device(place.device))
            first = time.perf_counter() - began
            seconds = median(pass_seconds(policy, batch) for _ in range(PASSES))
            name = f"{num_tokens} tokens, checkpointing {'on' if checkpointing else 'off'}, {kind}"
            yield Finding(name, told(place, policy, len(layers), num_tokens, seconds, first))
            if kind == "plain":
                yield attention_kernel(place, policy, batch, name)
            del policy, layers
    if find_spec("liger_kernel") is None:
        yield Finding("Liger kernels", "not installed here")


def pass_seconds(policy: PolicyModel, batch: MicroBatch) -> float:
    """Seconds of one pass; gradients are set aside before it."""
    policy.zero_grad(set_to_none=True)
    sync(batch.input_ids.device)
    began = time.perf_counter()
    one_pass(policy, batch)
    sync(batch.input_ids.device)
    return time.perf_counter() - began


def told(place: Place, policy: PolicyModel, layers: int, num_tokens: int, seconds: float, first: float) -> str:
    """Seconds, tokens/s, and on a known card the share of its peak by 6 FLOP a parameter and token."""
    counts = {name: p.numel() for name, p in policy.model.named_parameters()}
    in_layers = sum(count for name, count in counts.items() if ".layers." in name)
    head = policy.model.get_output_embeddings().weight.numel()
    words = f"{seconds:.4f} s (the first {first:.1f} s), {num_tokens / seconds:.0f} tokens/s"
    peak = next((peak for card, peak in PEAK_TFLOPS.items() if card in place.name), None)
    if peak is None:
        return words
    share = 6 * (in_layers + head) * num_tokens / seconds / (peak * 1e12)
    of_28 = 6 * (in_layers / layers * NUM_LAYERS_7B + head) * num_tokens / (share * peak * 1e12)
    return f"{words}, {share:.1%} of {peak:.0f} TFLOP/s; 28 layers at that share {of_28:.2f} s"


def attention_kernel(place: Place, policy: PolicyModel, batch: MicroBatch, name: str) -> Finding:
    """Which kernels of attention ran."""
    if not place.is_gpu:
        return Finding(f"attention: {name}", "no GPU")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        one_pass(policy, batch)
    keys = {event.key for event in profiler.key_averages() if "attention" in event.key or "flash" in event.key.lower()}
    is_flash = any("flash" in key.lower() for key in keys)
    is_slow = any("_math" in key or "efficient" in key for key in keys)
    return holds(f"attention: {name}", ", ".join(sorted(keys))[:200], "flash alone", is_flash and not is_slow)


def packing(place: Place) -> Iterator[Finding]:
    """G5: log-probs and gradients of sequences in one row against those of each alone."""
    policy = made_policy(place, checkpointing=False)
    if not policy.is_packed:
        raise SkippedError("this torch or model keeps sequences apart only when each is alone; the log says why")
    samples = made_samples(place, 1, MICRO_BATCH_TOKENS[place.device])
    device = torch.device(place.device)
    side_by_side = partial(passes, policy, [pack(samples).on(device)])
    alone = partial(passes, policy, [pack([sample]).on(device) for sample in samples])
    (packed_logprobs, packed_gradient), (logprobs, gradient) = side_by_side(), alone()
    difference = float((packed_logprobs - logprobs).abs().max())
    yield at_most("log-probs, largest difference in nats", difference, 1e-2 if not place.is_gpu else 0.15)
    yield at_most("log-probs, mean difference in nats", float((packed_logprobs - logprobs).abs().mean()), 1e-2)
    likeness = float(cosine_similarity(packed_gradient, gradient, dim=0))
    yield holds("gradients, cosine", f"{likeness:.6f}", "> 0.999", likeness > 0.999)
    for name, work in (("side by side", side_by_side), ("each alone", alone)):
        began = time.perf_counter()
        work()
        sync(device)
        yield Finding(f"{len(samples)} sequences {name}", f"{time.perf_counter() - began:.4f} s")


def passes(policy: PolicyModel, batches: list[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Log-probs of all tokens, and the gradient of a layer's weight in the middle."""
    policy.zero_grad(set_to_none=True)
    logprobs = torch.cat([one_pass(policy, batch) for batch in batches])
    layers: Any = policy.model.base_model.layers
    return logprobs, layers[len(layers) // 2].mlp.down_proj.weight.grad.float().flatten()
