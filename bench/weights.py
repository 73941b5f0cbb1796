"""Publication and pull of a version by stage, beside plain copies: `python -m bench.weights MODEL --dtype bfloat16`.

Seconds of the clock, medians over the repetitions, and GB of weights a second; a server process of its own serves over
loopback.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from actor.weights.puller import WeightPuller
from dcpo_async.demo.services import free_address
from dcpo_async.transport.zmq_channel import connecting
from dcpo_async.weights.store import verify, version_folder, write_snapshot

RUN_ID = "bench"
GB = 1e9


async def measure(model: Path, dtype: torch.dtype, repetitions: int, scratch: Path) -> dict[str, list[float]]:
    """Seconds of each stage, once for each repetition, all stages in turns."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    tensors = {name: parameter.detach() for name, parameter in loaded.named_parameters()}
    print(f"{len(tensors)} tensors, {sum(tensor.nbytes for tensor in tensors.values()) / GB:.3f} GB")
    store, seconds = scratch / "store", dict[str, list[float]]()
    store.mkdir()
    address = free_address()
    words = ["--listen", address, "--store", str(store), "--run-id", RUN_ID]
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "learner.weights.server", *words)
    try:
        # The first round is not counted: it touches every page for the first time.
        for version in range(1, repetitions + 2):
            for stage, work in stages(tensors, store, model, version, address, scratch).items():
                started = time.monotonic()
                await work()
                if version > 1:
                    seconds.setdefault(stage, []).append(time.monotonic() - started)
            for folder in (version_folder(store, version), scratch / "cache"):
                shutil.rmtree(folder)
    finally:
        server.terminate()
        await server.wait()
    return seconds


def stages(
    tensors: dict[str, Tensor], store: Path, skeleton: Path, version: int, address: str, scratch: Path
) -> dict[str, Callable[[], Awaitable[object]]]:
    """What is measured, by name, in its order."""

    def copied() -> object:
        return [tensor.clone() for tensor in tensors.values()]

    def saved() -> None:
        save_file(tensors, scratch / "plain.safetensors")

    def written() -> object:
        return write_snapshot(
            store, weights_version=version, run_id=RUN_ID, incarnation=1, step=version, tensors=tensors,
            skeleton_folder=skeleton,
        )  # fmt: skip

    async def pulled(*, in_place: bool) -> None:
        channel = connecting(None, insecure=False)(address, f"bench-{version}-{in_place}".encode())
        puller = WeightPuller(channel, scratch / "cache", RUN_ID, 4 << 20, in_place=in_place)
        await puller.fetch(version)
        puller.close()
        channel.close()

    def in_thread(work: Callable[[], object]) -> Callable[[], Awaitable[object]]:
        return lambda: asyncio.to_thread(work)

    return {
        "memcpy": in_thread(copied),
        "save_file of safetensors": in_thread(saved),
        "write a version": in_thread(written),
        "verify it": in_thread(lambda: verify(version_folder(store, version))),
        "pull on this machine": lambda: pulled(in_place=True),
        "pull over loopback": lambda: pulled(in_place=False),
    }


def main() -> None:
    """Measure and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="bench.weights", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as scratch:
        seconds = asyncio.run(measure(options.model, getattr(torch, options.dtype), options.repetitions, Path(scratch)))
    copying = median(seconds["memcpy"])
    for stage, values in seconds.items():
        spread = f"[{min(values):.3f}, {max(values):.3f}]"
        print(f"{stage:26} {median(values):7.3f} s {spread:16} {median(values) / copying:6.1f} x memcpy")


if __name__ == "__main__":
    main()
