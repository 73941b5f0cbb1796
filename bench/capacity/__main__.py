"""Responses per second by whole groups, by free places, and by what the cache holds: `python -m bench.capacity`.

vLLM on a CPU with a tiny model, and lengths whose tail is long: log-normal, each response's own. Leases are never
scarce. The three ways take turns on one engine:

- groups: a group keeps its places until its last response has ended;
- places: a group's worth of free places, whatever group they were of, is a lease;
- capacity: as `places`, and the places are what the engine has been seen to hold.

Rates are per second of processor time of the EngineCore process, which is busy throughout: on a core of its own that is
the wall clock, and on a machine that does other things too it still compares.
"""

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import psutil
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actor.capacity import Capacity
from actor.engine.vllm import VllmEngine
from dcpo_async.limits import OPEN_SHARE
from dcpo_async.protocol.in_work import InWork
from dcpo_async.records import Lease, LeaseName, Response, Sampling

GROUP_SIZE = 16
VOCAB_SIZE = 4096
"""A response of random weights ends by itself once in as many tokens: hardly ever."""
MAX_TOKENS = 512
LOOK_SECONDS = 0.02
WAYS = ("groups", "places", "capacity")


class LongTailedEngine(VllmEngine):
    """Ends each response after a length of its own, drawn by lease and number, so that all ways answer the same."""

    mean_tokens = 64.0
    sigma = 1.0
    tokens_ended = 0

    async def _response(self, lease: Lease, sampling: Sampling, number: int) -> Response:
        chance = np.random.default_rng([lease.position, number])
        drawn = chance.lognormal(np.log(self.mean_tokens) - self.sigma**2 / 2, self.sigma)
        tokens = int(np.clip(drawn, 1, MAX_TOKENS))
        response = await super()._response(lease, dataclasses.replace(sampling, max_response_tokens=tokens), number)
        self.tokens_ended += len(response.token_ids)
        return response


@dataclasses.dataclass
class Seen:
    """What one turn showed, between its warm-up and its end."""

    responses: int = 0
    tokens: int = 0
    core_seconds: float = 0.0
    preemptions: int = 0
    in_flight: list[int] = dataclasses.field(default_factory=list)
    running: list[int] = dataclasses.field(default_factory=list)
    groups_open: list[int] = dataclasses.field(default_factory=list)


class Turn:
    """One way of asking for leases, for some seconds."""

    def __init__(self, engine: LongTailedEngine, way: str, groups_in_flight: int) -> None:
        self._engine, self._way, self._groups_in_flight = engine, way, groups_in_flight
        self._in_work, self._position = InWork(), 0
        self._capacity = Capacity(GROUP_SIZE, groups_in_flight * GROUP_SIZE)
        self._places = groups_in_flight * GROUP_SIZE
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = Seen()

    async def run(self, warm_up_seconds: float, seconds: float) -> Seen:
        """Keep the engine fed; what the warm-up showed is left out."""
        await self._feed(warm_up_seconds)
        self._seen, preemptions, tokens = Seen(), self._engine.load.preemptions, self._engine.tokens_ended
        began = core_seconds()
        await self._feed(seconds)
        self._seen.core_seconds = core_seconds() - began
        self._seen.preemptions = self._engine.load.preemptions - preemptions
        self._seen.tokens = self._engine.tokens_ended - tokens
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return self._seen

    async def _feed(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(self._room()):
                self._position += 1
                name = LeaseName(self._position, 1)
                self._in_work.begin(name, GROUP_SIZE)
                task = asyncio.create_task(self._answer(name))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._seen.in_flight.append(self._in_work.num_responses)
            self._seen.running.append(self._engine.load.num_running)
            self._seen.groups_open.append(len(self._in_work))
            await asyncio.sleep(LOOK_SECONDS)

    def _room(self) -> int:
        if self._way == "groups":
            return self._groups_in_flight - len(self._in_work)
        return self._in_work.room(self._places, GROUP_SIZE, OPEN_SHARE * self._groups_in_flight)

    async def _answer(self, name: LeaseName) -> None:
        prompt = np.random.default_rng(name.position).integers(3, VOCAB_SIZE, 24, dtype=np.int32)
        lease = Lease(name.position, 1, f"p{name.position}", 1, 1, prompt, "")
        sampling = Sampling(GROUP_SIZE, 1.0, MAX_TOKENS, seed=0)
        await self._engine.generate(lease, sampling, lambda tokens: self._ended(name, tokens))
        self._in_work.end(name)

    def _ended(self, name: LeaseName, tokens: int) -> None:
        self._in_work.response_ended(name, tokens)
        self._seen.responses += 1
        target = self._capacity.response_ended(self._engine.load, self._in_work.num_responses)
        if self._way == "capacity":
            self._places = target


def core_seconds() -> float:
    """Processor time of the EngineCore process."""
    (core,) = (child for child in psutil.Process().children() if "EngineCore" in child.name())
    times = core.cpu_times()
    return float(times.user + times.system)


def make_model(folder: Path) -> None:
    """Write a model of random weights that costs next to nothing."""
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCAB_SIZE)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Seen]]:
    """What each way showed, once for each round."""
    LongTailedEngine.sigma, LongTailedEngine.mean_tokens = options.sigma, options.mean_tokens
    engine = LongTailedEngine(
        dtype="float32",
        device="cpu",
        max_model_tokens=MAX_TOKENS + 64,
        max_responses=options.groups_in_flight * GROUP_SIZE,
        kv_cache_gib=options.kv_cache_mib / 1024,
    )
    await engine.start(folder, 1, None)
    found: dict[str, list[Seen]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            turn = Turn(engine, way, options.groups_in_flight)
            found[way].append(await turn.run(options.warm_up_seconds, options.seconds))
    await engine.close()
    return found


def table(found: dict[str, list[Seen]]) -> str:
    """A row for each way: means over the rounds, and how far those of responses per second differ."""
    columns: dict[str, Callable[[Seen], float]] = {
        "tokens/s": lambda seen: seen.tokens / seen.core_seconds,
        "in flight": lambda seen: mean(seen.in_flight),
        "in the cache": lambda seen: mean(seen.running),
        "groups open": lambda seen: mean(seen.groups_open),
        "preemptions/100 responses": lambda seen: 100 * seen.preemptions / seen.responses,
    }
    lines = [f"| way | responses/s | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for way, rounds in found.items():
        rates = [seen.responses / seen.core_seconds for seen in rounds]
        spread = stdev(rates) if len(rates) > 1 else 0.0
        cells = [f"{mean(map(column, rounds)):.0f}" for column in columns.values()]
        lines.append(f"| {way} | {mean(rates):.1f} ± {spread:.1f} | {' | '.join(cells)} |")
    base = found["groups"]
    for way in WAYS[1:]:
        ratios = [
            one.responses / one.core_seconds / (other.responses / other.core_seconds)
            for one, other in zip(found[way], base, strict=True)
        ]
        lines.append(f"{way} / groups: {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="bench.capacity", description=__doc__)
    parser.add_argument("--groups-in-flight", type=int, default=4, help=f"groups of {GROUP_SIZE} (default 4)")
    parser.add_argument("--mean-tokens", type=float, default=64.0, help="mean length of a response (default 64)")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of a length (default 1)")
    parser.add_argument("--kv-cache-mib", type=float, default=256.0, help="a token takes 1 KiB (default 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up-seconds", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as folder:
        make_model(Path(folder))
        found = asyncio.run(measure(options, Path(folder)))
    print(table(found))


if __name__ == "__main__":
    main()
