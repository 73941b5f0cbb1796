"""G3 and G6: bytes of a step by stage; seconds of copies, files and checkpoints."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.gpu_check.findings import Finding, Place, holds, sync
from bench.gpu_check.model import MICRO_BATCH_TOKENS, SHAPES, model_folder
from bench.gpu_check.training import RANK, written

GB = 1e9
STATIC_BYTES = 18
"""A parameter on one rank: bfloat16 2, gradient 4, master 4, Adam 8."""
BUCKETS_GB = 3.0
"""Of DeepSpeed's reductions: 5e8 elements of bfloat16, a copy, and slices in float32 (stage 2)."""
TOLERANCE = 0.1


def peaks(place: Place) -> Iterator[Finding]:
    """G3: the peak of a step against what its parts should take."""
    seen = place.run(RANK, str(written(place, 2, "memory")), "memory", "--device", place.device)
    for name, value in seen["peaks"].items():
        yield Finding(f"peak GB: {name}", f"{value:.2f}")
    if place.is_gpu:
        found, expected = max(seen["peaks"].values()), expected_gb(place, seen["parameters"])
        is_met = abs(found - expected) <= TOLERANCE * expected
        yield holds("peak GB of all", f"{found:.1f}", f"{expected:.1f} ± 10 %", is_met)


def expected_gb(place: Place, num_parameters: int) -> float:
    """Static bytes, layer inputs kept, one layer computed again, the head by chunks, and buckets, in GB."""
    shape, tokens = SHAPES[place.device], MICRO_BATCH_TOKENS[place.device]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kept = tokens * hidden * 2 * shape["num_hidden_layers"]
    # Within a layer: states in bfloat16 and float32 (norms), attention, and the three of the gated product.
    layer = tokens * (8 * hidden * 2 + 2 * hidden * 4 + 4 * inner * 2)
    head = 4 * hidden * shape["vocab_size"] + 2 * 1.25e9
    # The head's chunks are gone before the layers' backward pass begins.
    return (STATIC_BYTES * num_parameters + kept + max(layer, head)) / GB + BUCKETS_GB


def storage(place: Place) -> Iterator[Finding]:
    """G6: what publication and checkpoints are made of."""
    state = load_file(model_folder(place) / "model.safetensors") if not place.is_gpu else one_file(place)
    on_device = {name: tensor.to(place.device) for name, tensor in state.items()}
    size = sum(tensor.nbytes for tensor in state.values()) / GB
    buffer = torch.empty(max(tensor.nbytes for tensor in state.values()), dtype=torch.uint8)
    for kind in ("pageable", "pinned"):
        if kind == "pinned" and not place.is_gpu:
            yield Finding("copy to the host, pinned", "no GPU")
            continue
        host = buffer.pin_memory() if kind == "pinned" else buffer
        seconds = timed(partial(copy_all, on_device, host), torch.device(place.device))
        yield Finding(f"copy to the host, {kind}", f"{size / seconds:.2f} GB/s")
    path = place.folder / "copy.safetensors"
    seconds = timed(partial(save_file, state, path))
    yield Finding("save_file", f"{size / seconds:.2f} GB/s")
    yield Finding("fsync", f"{timed(partial(fsync, path)):.2f} s of {size:.2f} GB")
    seconds = timed(lambda: [xxhash.xxh3_128(tensor.view(torch.uint8).numpy()) for tensor in state.values()])
    yield Finding("xxh3_128 of all tensors", f"{size / seconds:.2f} GB/s")
    path.unlink()
    seen = place.run(RANK, str(written(place, 2, "storage")), "storage", "--device", place.device)
    checkpoint = seen["bytes"] / GB
    yield Finding("checkpoint", f"{checkpoint:.2f} GB, written in {seen['save']:.1f} s, loaded in {seen['load']:.1f} s")
    yield Finding("training stands still for it", f"{seen['stall']:.2f} s")


def one_file(place: Place) -> dict[str, Tensor]:
    """All tensors of the model's files."""
    state: dict[str, Tensor] = {}
    for path in sorted(model_folder(place).glob("*.safetensors")):
        state |= load_file(path)
    return state


def copy_all(tensors: dict[str, Tensor], host: Tensor) -> None:
    """Copy tensors into the same host memory, one after another."""
    for tensor in tensors.values():
        flat = tensor.reshape(-1).view(torch.uint8)
        host[: len(flat)].copy_(flat, non_blocking=True)


def fsync(path: Path) -> None:
    """Wait until a file is on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds, once what was asked of the device is done."""
    if device is not None:
        sync(device)
    began = time.perf_counter()
    work()
    if device is not None:
        sync(device)
    return time.perf_counter() - began
