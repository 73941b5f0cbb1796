"""How long a step waits for a publication: `python -m bench.publication --zero-stage 2`.

The ranks of a real engine hand their weights over as the trainer does; beside it, in turns: one copy of the same bytes
by one process, and what a step waited for before there was a publisher: weights gathered on rank 0, written, old ones
removed. Seconds of the slowest rank.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from statistics import median

import deepspeed
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dcpo_async.config import ModelSettings, RunConfig, TrainingSettings
from dcpo_async.devices import Devices
from dcpo_async.processes import module_argv
from dcpo_async.supervision import run_members
from dcpo_async.weights.store import prune, write_snapshot
from learner.ranks import rank_environments
from learner.trainer.engine import TrainEngine
from learner.trainer.publication import Publication

GB = 1e9
HIDDEN, VOCABULARY = 2048, 32000
LAYER_PARAMETERS = 4 * HIDDEN**2 + 3 * HIDDEN * 4 * HIDDEN


def make_model(folder: Path, gigabytes: float) -> None:
    """A random Llama in bfloat16 whose parameters take about so many bytes."""
    num_layers = round((gigabytes * GB / 2 - 2 * HIDDEN * VOCABULARY) / LAYER_PARAMETERS)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=num_layers,
        num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a").save_pretrained(folder)


def gathered(engine: TrainEngine, zero_stage: int) -> dict[str, Tensor]:
    """The weights whole on rank 0, a layer at a time, as they were published before."""
    weights: dict[str, Tensor] = {}
    named = engine.model.named_parameters()
    for _, layer in groupby(named, key=lambda pair: ".".join(pair[0].split(".")[:3])):
        pairs = list(layer)
        whole = deepspeed.zero.GatheredParameters([p for _, p in pairs]) if zero_stage == 3 else nullcontext()
        with whole:
            if engine.rank == 0:
                weights |= {name: p.detach().to("cpu", torch.bfloat16, copy=True) for name, p in pairs}
    return weights


def measure(folder: Path, zero_stage: int, repetitions: int) -> None:
    """Print seconds of each way, medians and spread, and ratios within each round."""
    config = RunConfig(
        folder=folder / "run",
        model=ModelSettings(path=str(folder / "model"), dtype="bfloat16"),
        training=TrainingSettings(zero_stage=zero_stage),
    )
    engine = TrainEngine(config)
    publication = Publication(engine, [folder / "buffer-0", folder / "buffer-1"], deadline_seconds=60)
    num_bytes = engine.schema.layout.num_bytes
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2)) if engine.rank == 0 else (None, None)

    def copied() -> None:
        if source is not None and target is not None:
            target.copy_(source)

    def written() -> None:
        weights = gathered(engine, zero_stage)
        if engine.rank == 0:
            # On the disk that holds temporary files, as a run folder would.
            store = Path(tempfile.gettempdir()) / folder.name
            write_snapshot(
                store, weights_version=round(time.time() * 1000), run_id="bench", incarnation=1, step=0,
                tensors=weights, skeleton_folder=folder / "model",
            )  # fmt: skip
            prune(store, 1)

    ways: dict[str, Callable[[], object]] = {
        "one copy of the bytes": copied,
        "hand over": lambda: publication.offer(0),
        "gather and write": written,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            dist.barrier()
            started = time.monotonic()
            way()
            taken = torch.tensor(time.monotonic() - started)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if repetition:
                seconds[name].append(float(taken))
    if engine.rank == 0:
        print(f"{num_bytes / GB:.3f} GB in bfloat16, {engine.num_ranks} ranks, ZeRO {zero_stage}")
        for name, values in seconds.items():
            ratios = [value / copy for value, copy in zip(values, seconds["one copy of the bytes"], strict=True)]
            print(
                f"{name:22} {median(values):7.3f} s [{min(values):.3f}, {max(values):.3f}]"
                f"  {median(ratios):6.2f} x one copy [{min(ratios):.2f}, {max(ratios):.2f}]"
            )
    engine.close()


def main() -> None:
    """Make a model, start the ranks, which measure."""
    parser = argparse.ArgumentParser(prog="bench.publication", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="of a run of this program that has started the ranks")
    options = parser.parse_args()
    if options.folder is not None:
        measure(options.folder, options.zero_stage, options.repetitions)
        return
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-", dir="/dev/shm") as scratch:
        folder = Path(scratch)
        make_model(folder / "model", options.gigabytes)
        for number in range(2):
            (folder / f"buffer-{number}").touch()
        words = module_argv("bench.publication", *sys.argv[1:], "--folder", str(scratch))
        members, log_file = rank_environments(options.ranks, Path(scratch)), Path(scratch) / "log"
        environment = {**Devices((), 1).environment(), "OMP_NUM_THREADS": "1"}
        code = asyncio.run(run_members(words, members, log_file, environment))
        print(log_file.read_text())
        shutil.rmtree(Path(tempfile.gettempdir()) / folder.name, ignore_errors=True)
        raise SystemExit(code)


if __name__ == "__main__":
    main()
