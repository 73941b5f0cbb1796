"""From the end of a step to the first token under its weights, by stage: `python -m bench.first_token MODEL`.

The real parts one after another, as a run has them: a rank's copy into shared memory, the publisher process, the weight
server, a puller, vLLM with responses in flight. Every stage ends where the next begins. The optimizer step between two
versions is a made one: elements move up or down by a little.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from actor.engine.vllm import VllmEngine
from actor.weights.puller import WeightPuller
from dcpo_async.config import RunConfig
from dcpo_async.demo.services import free_address
from dcpo_async.processes import kill_group, module_argv, spawn
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.trainer_messages import Published, PublishedAck, VersionGrant, VersionWant
from dcpo_async.records import Lease, Sampling
from dcpo_async.transport.zmq_channel import RouterChannel, connecting
from dcpo_async.weights.canary import Canary, canary_bound
from learner.trainer.canary import canary_tokens
from learner.weights.buffers import SharedBuffers
from learner.weights.checkpoint_format import checkpoint_views, tied_checkpoint_names
from learner.weights.layout import Layout, Schema, own_parts
from learner.weights.loading import loaded_model

RUN_ID = "bench"
PROMPT = np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.int32)
IN_FLIGHT = 4


class Rank:
    """One rank's model, and what it does between two steps; and the coordinator, as far as a publisher needs it."""

    def __init__(self, model: Path, dtype: torch.dtype, run: Path, buffers: list[Path]) -> None:
        self.model = loaded_model(model, dtype).eval()
        self.shared = SharedBuffers(buffers)
        self.schema = Schema(
            layout=Layout.of(self.model, dtype),
            views=checkpoint_views(self.model),
            tied=tied_checkpoint_names(self.model),
        )
        for buffer in self.shared.buffers:
            buffer.prepare(self.schema)
            buffer.populate()
        self.channel = RouterChannel(f"ipc://{run}/ranks", 1 << 20)
        self.dtype, self.step, self.published = dtype, 0, asyncio.Event()
        self.tokens = canary_tokens(self.model.get_input_embeddings().num_embeddings, 64, seed=0)

    @torch.no_grad()
    def update(self) -> None:
        """Move the weights: every element in float32, one in 200 by a unit in the last place in bfloat16."""
        self.step += 1
        generator = torch.Generator().manual_seed(self.step)
        for parameter in self.model.parameters():
            if self.dtype == torch.float32:
                parameter.mul_(1 + 1e-6)
                continue
            bits = parameter.view(torch.int16).view(-1)
            chosen = torch.randint(0, bits.numel(), (max(1, bits.numel() // 200),), generator=generator)
            bits[chosen] ^= 1

    @torch.no_grad()
    def canary(self) -> Canary:
        ids = torch.tensor(self.tokens)
        logprobs = self.model(ids[None]).logits[0, :-1].float().log_softmax(-1)
        found: Tensor = logprobs.gather(-1, ids[1:, None])[:, 0].clamp(max=0)
        bound = canary_bound(None, str(self.dtype).removeprefix("torch."))
        return Canary(token_ids=self.tokens, logprobs=tuple(found.tolist()), bound=bound)

    def offer(self, canary: Canary) -> None:
        number = self.shared.claim()
        tensors = self.schema.layout.tensors(self.shared.buffers[number].state)
        for part in own_parts(self.model, 0, 1):
            tensors[part.name].reshape(-1)[part.start : part.start + len(part.values)].copy_(part.values)
        self.shared.offer(number, self.step, canary)
        self.shared.buffers[number].unlock()

    async def serve(self) -> None:
        granted = 0
        while True:
            for received in await self.channel.receive(60):
                assert isinstance(received.envelope, Envelope)
                message = received.envelope.message
                if isinstance(message, VersionWant):
                    granted += 1
                    grant = VersionGrant(weights_version=granted, step=message.step)
                    await self.channel.send(received.peer, Envelope(grant, {}, RUN_ID, 1))
                elif isinstance(message, Published):
                    self.published.set()
                    ack = PublishedAck(weights_version=message.weights_version, step=message.step)
                    await self.channel.send(received.peer, Envelope(ack, {}, RUN_ID, 1))


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each stage, once for each repetition."""
    dtype = getattr(torch, options.dtype)
    run = folder / "run"
    run.mkdir()
    ignored = shutil.ignore_patterns("*.safetensors", ".*")
    shutil.copytree(options.model, run / "skeleton", ignore=ignored)
    (run / "config.json").write_text(RunConfig(folder=run).model_dump_json())
    descriptors = [os.memfd_create("buffer") for _ in range(2)]
    buffers = [Path(f"/proc/{os.getpid()}/fd/{descriptor}") for descriptor in descriptors]
    rank = await asyncio.to_thread(Rank, options.model, dtype, run, buffers)
    engine = VllmEngine(
        dtype=options.dtype, device="cpu", max_model_tokens=2048, max_responses=2 * IN_FLIGHT, kv_cache_gib=0.5
    )
    serving = asyncio.create_task(rank.serve())
    seconds: dict[str, list[float]] = {}
    async with processes(run, buffers) as address:
        channel = connecting(None, insecure=False)(address)
        with tempfile.TemporaryDirectory(prefix="dcpo-bench-", dir="/dev/shm") as cache:
            puller = WeightPuller(channel, Path(cache) / "cache", RUN_ID, 4 << 20, in_place=not options.pull)
            for number in range(options.repetitions + 2):
                rank.update()
                flying = [asyncio.create_task(engine.generate(*request(number, i, 2000))) for i in range(IN_FLIGHT)]
                if number < 1:
                    for task in flying:
                        task.cancel()
                    await asyncio.gather(*flying, return_exceptions=True)
                else:
                    await asyncio.sleep(1.0)
                stages = await one_version(rank, engine, puller, number)
                if number > 1:
                    for name, value in stages.items():
                        seconds.setdefault(name, []).append(value)
                for task in flying:
                    task.cancel()
                await asyncio.gather(*flying, return_exceptions=True)
            await engine.close()
            puller.close()
            channel.close()
    serving.cancel()
    rank.channel.close()
    return seconds


async def one_version(rank: Rank, engine: VllmEngine, puller: WeightPuller, number: int) -> dict[str, float]:
    """Publish, fetch, adopt, sample one token; seconds of each stage."""
    rank.published.clear()
    marks = [("", time.monotonic())]

    def mark(name: str) -> None:
        marks.append((name, time.monotonic()))

    canary = await asyncio.to_thread(rank.canary)
    mark("canary by the trainer")
    await asyncio.to_thread(rank.offer, canary)
    mark("copy into shared memory")
    await rank.published.wait()
    mark("publish")
    folder, manifest = await puller.fetch()
    mark("fetch")
    parts: dict[str, float] = {}
    if engine.weights_version == 0:
        await engine.start(folder, manifest.weights_version, manifest.canary)
    else:
        timing = await engine.adopt(folder, manifest.weights_version, manifest.canary)
        parts = {f"  of it {name}": value for name, value in timing.stage_seconds.items()}
        parts["  of it paused"] = timing.pause_seconds
    mark("adopt")
    await engine.generate(*request(number, 99, 1))
    mark("first token")
    puller.prune({manifest.weights_version})
    taken = {name: end - marks[i][1] for i, (name, end) in enumerate(marks[1:])}
    return {**taken, **parts, "in all": marks[-1][1] - marks[0][1]}


def request(number: int, index: int, max_tokens: int) -> tuple[Lease, Sampling]:
    """A group of one response to a prompt of its own."""
    prompt = np.concatenate([PROMPT, np.array([10 + index, 10 + number], dtype=np.int32)])
    lease = Lease(1000 * number + index, 1, f"p{number}.{index}", 1, 1, prompt, "1")
    return lease, Sampling(group_size=1, temperature=1.0, max_response_tokens=max_tokens, seed=number)


@asynccontextmanager
async def processes(run: Path, buffers: list[Path]) -> AsyncIterator[str]:
    """A publisher and a weight server as a learner starts them; the address of the latter."""
    address = free_address()
    words = ["--config", str(run / "config.json"), "--coordinator", f"ipc://{run}/ranks", "--run-id", RUN_ID]
    words += ["--incarnation", "1", "--buffers", *map(str, buffers)]
    server = [sys.executable, "-m", "learner.weights.server", "--listen", address, "--store", str(run / "weights")]
    started = [
        await spawn(module_argv("learner.publisher", *words), run / "publisher.log", {"OMP_NUM_THREADS": "1"}),
        await spawn([*server, "--run-id", RUN_ID], run / "server.log"),
    ]
    try:
        yield address
    finally:
        for process in started:
            kill_group(process)
            await process.wait()


def main() -> None:
    """Measure and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="bench.first_token", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--pull", action="store_true", help="as from another machine, not in place")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as folder:
        seconds = asyncio.run(measure(options, Path(folder)))
    total = median(seconds["in all"])
    for name, values in seconds.items():
        print(
            f"{name:24} {median(values):7.3f} s [{min(values):.3f}, {max(values):.3f}]  {median(values) / total:6.1%}"
        )


if __name__ == "__main__":
    main()
