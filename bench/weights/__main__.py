"""Publication and pull of a version by stage, beside plain copies and streams: `python -m bench.weights MODEL`.

Seconds of the clock and of the processors on both sides, medians over the repetitions, all stages in turns;
`--random-gb 1` takes random bfloat16 tensors in place of a model. Pulls are from a server process over loopback, with
and without CURVE, into the folder that is given with `--cache` (shared memory by default), and are compared with a raw
ZeroMQ stream of the same round. The first pull fills new pages; the others write over those of a version that was let
go, as all of a run do from its third on.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from actor.weights.puller import WeightPuller
from bench.weights.raw_stream import Cost, measured, stream
from dcpo_async.demo.services import free_address
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.transport.key_files import load_peer_keys, write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import connecting, new_pair
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import verify, write_snapshot

RUN_ID = "bench"
GB = 1e9
RANDOM_TENSOR_BYTES = 32 << 20
CHANGED_SHARE = 0.005
RATIOS = {
    "first pull over loopback": "raw stream",
    "pull over loopback": "raw stream",
    "pull with CURVE": "raw stream with CURVE",
    "pull by a patch": "raw stream",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a round's stages read and write; the process of the weight server at each address."""

    scratch: Path
    cache: Path
    skeleton: Path
    address: str
    curve_address: str
    servers: dict[str, int] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.scratch / "store"

    @property
    def keys(self) -> Path:
        return self.scratch / "keys"


async def measure(bench: Bench, tensors: dict[str, Tensor], repetitions: int) -> dict[str, list[Cost]]:
    """What each stage takes, once for each repetition, all stages in turns."""
    costs = dict[str, list[Cost]]()
    bench.store.mkdir()
    write_server_keys(bench.keys, new_pair())
    write_peer_keys(bench.keys, "bench", "actor", new_pair())
    async with AsyncExitStack() as stack:
        for address, words in ((bench.address, ()), (bench.curve_address, ("--keys", str(bench.keys)))):
            bench.servers[address] = await stack.enter_async_context(serving(bench.store, address, *words))
        # The first round is not counted: it touches every page for the first time.
        for number in range(repetitions + 1):
            for stage, work in Round(bench, tensors, 2 * number + 1).stages().items():
                started, used = time.monotonic(), time.process_time()
                own = await work()
                if number > 0:
                    here = Cost(time.monotonic() - started, time.process_time() - used)
                    costs.setdefault(stage, []).append(own or here)
            for folder in (bench.store, bench.cache):
                shutil.rmtree(folder)
            bench.store.mkdir()
    return costs


@asynccontextmanager
async def serving(store: Path, address: str, *words: str) -> AsyncIterator[int]:
    """A weight server process; yields its id."""
    words = ("--listen", address, "--store", str(store), "--run-id", RUN_ID, *words)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "learner.weights.server", *words, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield server.pid
    finally:
        server.terminate()
        await server.wait()


@dataclass(frozen=True, slots=True)
class Round:
    """The stages of one round."""

    bench: Bench
    tensors: dict[str, Tensor]
    version: int

    def stages(self) -> dict[str, Callable[[], Awaitable[Cost | None]]]:
        """What is measured, by name, in its order; a stage that returns its cost has measured it itself."""
        folder = version_folder(self.bench.store, self.version)
        weights = folder / "model.safetensors"
        return {
            "memcpy": in_thread(lambda: [tensor.clone() for tensor in self.tensors.values()]),
            "save_file of safetensors": in_thread(
                lambda: save_file(self.tensors, self.bench.scratch / "plain.safetensors")
            ),
            "write a version": in_thread(lambda: self.write(self.version)),
            "verify it": in_thread(lambda: verify(folder)),
            "pull on this machine": lambda: self.pulled(self.version, in_place=True),
            "first pull over loopback": lambda: self.pulled(self.version),
            "raw stream with CURVE": lambda: asyncio.to_thread(stream, weights, self.bench.keys, STRETCH_BYTES),
            "pull with CURVE": lambda: self.pulled(self.version, curve=True),
            "raw stream": lambda: asyncio.to_thread(stream, weights, None, STRETCH_BYTES),
            "pull over loopback": lambda: self.pulled(self.version),
            "write with a patch": self.changed,
            "pull by a patch": lambda: self.pulled(self.version + 1, keep={self.version}),
        }

    def write(self, version: int) -> None:
        """Publish the tensors."""
        write_snapshot(
            self.bench.store, weights_version=version, run_id=RUN_ID, incarnation=1, step=version,
            tensors=self.tensors, skeleton_folder=self.bench.skeleton,
        )  # fmt: skip

    async def pulled(
        self, version: int, *, in_place: bool = False, curve: bool = False, keep: Collection[int] = (0,)
    ) -> Cost:
        """The cost of a fetch, after all versions in the cache but some were let go of."""
        keys = load_peer_keys(self.bench.keys / "peers" / "bench.keys") if curve else None
        address = self.bench.curve_address if curve else self.bench.address
        channel = connecting(keys, insecure=False)(address)
        puller = WeightPuller(channel, self.bench.cache, RUN_ID, 4 << 20, in_place=in_place)
        await asyncio.to_thread(puller.prune, keep)
        # Connected before the clock starts, as an actor is.
        await puller.newest()
        with measured(self.bench.servers[address]) as costs:
            await puller.fetch(version)
        puller.close()
        channel.close()
        return costs[0]

    async def changed(self) -> Cost:
        """The cost of a write, with its patch, after a step."""
        await asyncio.to_thread(change, self.tensors)
        started, used = time.monotonic(), time.process_time()
        await asyncio.to_thread(self.write, self.version + 1)
        return Cost(time.monotonic() - started, time.process_time() - used)


def in_thread(work: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    """Work beside the loop."""

    async def run() -> None:
        await asyncio.to_thread(work)

    return run


def change(tensors: dict[str, Tensor]) -> None:
    """Move a share of the elements by one unit in the last place, as a step of training does."""
    for tensor in tensors.values():
        bits = tensor.view(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)
        bits[torch.randint(len(bits), (int(CHANGED_SHARE * len(bits)),))] ^= 1


def random_tensors(num_bytes: int) -> dict[str, Tensor]:
    """Random bfloat16 tensors of about so many bytes in all."""
    elements = RANDOM_TENSOR_BYTES // 2
    return {f"t{number}": torch.randn(elements).bfloat16() for number in range(max(1, num_bytes // (2 * elements)))}


def loaded_tensors(model: Path, dtype: str) -> dict[str, Tensor]:
    """A model's parameters."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return {name: parameter.detach() for name, parameter in loaded.named_parameters()}


def main() -> None:
    """Measure and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="bench.weights", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--random-gb", type=float, default=1.0, help="where no model is given")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dcpo-bench-") as scratch,
        tempfile.TemporaryDirectory(prefix="dcpo-bench-", dir=options.cache) as cache,
    ):
        skeleton = options.model or Path(scratch) / "skeleton"
        if options.model:
            tensors = loaded_tensors(options.model, options.dtype)
        else:
            skeleton.mkdir()
            (skeleton / "config.json").write_text("{}")
            tensors = random_tensors(int(options.random_gb * GB))
        print(f"{len(tensors)} tensors, {sum(tensor.nbytes for tensor in tensors.values()) / GB:.3f} GB")
        bench = Bench(Path(scratch), Path(cache) / "run", skeleton, free_address(), free_address())
        costs = asyncio.run(measure(bench, tensors, options.repetitions))
    report(costs, sum(tensor.nbytes for tensor in tensors.values()))


def report(costs: dict[str, list[Cost]], num_bytes: int) -> None:
    """Print medians and ranges, and each pull beside the raw stream of the same round."""
    for stage, found in costs.items():
        values = [cost.seconds for cost in found]
        spread = f"[{min(values):.3f}, {max(values):.3f}]"
        used = median(cost.processor_seconds for cost in found) / (num_bytes / GB)
        speed = num_bytes / GB / median(values)
        print(f"{stage:26} {median(values):7.3f} s {spread:16} {speed:6.2f} GB/s, processors {used:5.2f} s/GB")
    for stage, raw in RATIOS.items():
        for what in ("seconds", "processor_seconds"):
            pairs = zip(costs[stage], costs[raw], strict=True)
            shares = [getattr(of_raw, what) / getattr(of_pull, what) for of_pull, of_raw in pairs]
            spread = f"{median(shares):.2f} [{min(shares):.2f}, {max(shares):.2f}]"
            print(f"{stage} / {raw}, by {what.replace('_', ' ')}: {spread}")


if __name__ == "__main__":
    main()
