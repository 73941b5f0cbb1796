"""Where the time and memory of a step go: seconds of its parts, peaks, and the share of the device's arithmetic."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 products with float32 sums, by what the device's name contains; NVIDIA's data sheets."""


class StepClock:
    """Times the parts of a step; on a GPU by events, so that nothing waits for it before the step is over."""

    def __init__(self, device: torch.device, model: Any) -> None:
        self._device = device
        self._flops_per_token = flops_per_token(model)
        self._peak_flops = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.monotonic()

    def start(self) -> None:
        """A step begins."""
        self._started = time.monotonic()
        self._seconds.clear()
        self._events.clear()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in the context as a part of the step, once more or for the first time."""
        if self._device.type != "cuda":
            started = time.monotonic()
            yield
            self._seconds[name] += time.monotonic() - started
            return
        begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begins.record()
        yield
        ends.record()
        self._events.append((name, begins, ends))

    def summary(self, tokens: float, num_ranks: int) -> dict[str, float]:
        """Metrics of the step that ends now; on a GPU all of it must be done, or this waits for it.

        Args:
            tokens: that the step's gradient was computed for, on all ranks.
            num_ranks: that worked on it.

        Returns:
            step_seconds, and NAME_seconds of each part on this rank.  tokens_per_second: of all ranks.
            model_tflops: arithmetic of the model in a second, all ranks, in 1e12; without what checkpointing repeats.
            mfu: the same / what the devices could do at most; not where that is not known.
        """
        if self._events:
            self._events[-1][2].synchronize()
        for name, begins, ends in self._events:
            self._seconds[name] += begins.elapsed_time(ends) / 1000
        self._events.clear()
        seconds = time.monotonic() - self._started
        flops = self._flops_per_token * tokens / seconds
        found = {
            "step_seconds": seconds,
            **{f"{name}_seconds": part for name, part in self._seconds.items()},
            "tokens_per_second": tokens / seconds,
            "model_tflops": flops / 1e12,
        }
        return found | ({"mfu": flops / (self._peak_flops * num_ranks)} if self._peak_flops else {})

    def peaks(self) -> dict[str, int]:
        """Bytes at their peak on this rank: of the GPU in this step, of the process since it began."""
        host = {"peak_host_bytes": peak_resident(Path("/proc/self/status").read_text())}
        if self._device.type != "cuda":
            return host
        return host | {"peak_gpu_bytes": torch.cuda.max_memory_allocated(self._device)}


def flops_per_token(model: Any) -> float:
    """Operations of a forward and a backward pass for a token: 6 for each weight that it meets, 4 where it is frozen.

    The embedding is looked up, not multiplied, unless it is the head too. Of experts those count that a token is sent
    to. Attention between tokens is left out: 3 % at 4,096 tokens of a 7B.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    config = model.config.get_text_config()
    experts = next(filter(None, (getattr(config, name, None) for name in _EXPERTS)), None)
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    share = chosen / experts if experts and chosen else 1.0
    products = sum(
        _products(parameter) * (share if ".experts." in name else 1.0) for name, parameter in model.named_parameters()
    )
    return products - (0 if embedding is head else _products(embedding))


def pair_cost(model: Any) -> float:
    """Work of attention for n tokens is pair_cost · n² times that of the weights for one: 6 · n² · size in each layer.

    0 where the configuration does not tell. A window or latent attention makes it less.
    """
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", 0), getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads)
    return float(6 * layers * heads * size / flops_per_token(model))


def peak_flops(device_name: str) -> float | None:
    """What a device can do at most in a second; None for one that is not in the table."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


def peak_resident(status: str) -> int:
    """Bytes of the largest resident set so far, from /proc/PID/status."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def _products(parameter: Any) -> int:
    # Under ZeRO-3 a parameter is empty, and knows how large it is when it is whole.
    elements = int(getattr(parameter, "ds_numel", parameter.numel()))
    return (6 if parameter.requires_grad else 4) * elements
