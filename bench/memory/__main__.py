"""What `dcpo-learner --check` says a rank takes, and what it takes on a CPU: `python -m bench.memory [MODEL ...]`.

Each case trains two real steps in a process of its own, whose peak of resident memory, above what it has once all is
imported, is compared with the estimate; beside it stands the processor time of the second step. Without models: three
random ones, and SmolLM2-135M where `make smollm2` was run. `--adapter-rank 8` trains an adapter instead of all weights.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dcpo_async.config import AdapterSettings, ModelSettings, RunConfig, TrainingSettings
from dcpo_async.devices import Devices
from dcpo_async.records import TrainingSample
from learner.ranks import rank_environments
from learner.sizing.memory import Plan
from learner.sizing.model import SizedModel
from learner.trainer.engine import TrainEngine
from learner.trainer.trainer import Trainer

MB = 1e6
STEPS, MICRO_BATCHES, SEQUENCES = 2, 3, 8
PROMPT_SHARE = 4
SMOLLM2 = Path("models/smollm2-135m-instruct")
CASES = ((2048, True, 0), (2048, False, 0), (2048, True, 2))
"""Tokens of a micro-batch, whether activations are computed again, ZeRO stage."""


def main() -> None:
    """Start a process for each case, and print what they find."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--adapter-rank", type=int, help="train an adapter of this rank to all linear layers")
    parser.add_argument(
        "--case",
        nargs=3,
        type=int,
        action="append",
        metavar=("TOKENS", "CHECKPOINTING", "ZERO"),
        help="in place of the usual ones, may be given several times: 2048 1 0",
    )
    parser.add_argument("--measured", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measured:
        tokens, checkpointing, zero_stage = options.measured
        with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as folder:
            measure(options.models[0], Path(folder), tokens, bool(checkpointing), zero_stage, options.adapter_rank)
        return
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as scratch:
        models = options.models or [*make_models(Path(scratch)), *([SMOLLM2] if SMOLLM2.is_dir() else [])]
        print(
            "model, parameters, tokens, checkpointing, ZeRO: measured MB, estimated MB, estimated / measured, seconds",
            flush=True,
        )
        for model in models:
            for case in options.case or CASES:
                words = ["-m", "bench.memory", str(model), "--measured", *(str(int(item)) for item in case)]
                if options.adapter_rank is not None:
                    words += ["--adapter-rank", str(options.adapter_rank)]
                with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as meeting:
                    (rank,) = rank_environments(1, Path(meeting))
                    environment = {**os.environ, **rank, **Devices((), 1).environment(), "OMP_NUM_THREADS": "1"}
                    subprocess.run([sys.executable, *words], env=environment, check=True)


def make_models(folder: Path) -> list[Path]:
    """Three random models that differ in where their memory is: the head, the layers, or activations alone."""
    shared: dict[str, Any] = {"max_position_embeddings": 8192, "tie_word_embeddings": False}
    models = {
        "llama-256x6": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
                **shared,
            )
        ),
        "qwen2-512x8": Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
                num_key_value_heads=2, **shared,
            )
        ),
        "llama-512x6": LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64, hidden_size=512, intermediate_size=1152, num_hidden_layers=6, num_attention_heads=8,
                **shared,
            )
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
        words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a").save_pretrained(folder / name)
    return [folder / name for name in models]


def measure(
    model: Path, folder: Path, tokens: int, checkpointing: bool, zero_stage: int, adapter_rank: int | None
) -> None:
    """Train, and print the peak beside the estimate; the folder is for what a run with an adapter writes down."""
    # Resets the peak: from here on it is that of the training alone.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    adapter = AdapterSettings(rank=adapter_rank)
    config = RunConfig(
        folder=folder,
        adapter=adapter,
        model=ModelSettings(path=str(model), dtype="float32", gradient_checkpointing=checkpointing),
        training=TrainingSettings(zero_stage=zero_stage, micro_batch_tokens=tokens),
    )
    engine = TrainEngine(config)
    # Neither a coordinator nor a publisher is asked for anything by the steps themselves.
    trainer = Trainer(config, engine, SimpleNamespace(tell=None), None)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    length = tokens // SEQUENCES
    for _ in range(STEPS):
        began = time.process_time()
        trainer.train_step(samples(generator, engine.model.config.vocab_size, length))
        seconds = time.process_time() - began
    measured = _status("VmHWM") - before
    engine.close()
    plan = Plan(
        num_ranks=1, on_gpus=False, value_bytes=4, zero_stage=zero_stage, checkpointing=checkpointing,
        micro_batch_tokens=tokens, length=length, rank_tokens=tokens * MICRO_BATCHES,
    )  # fmt: skip
    sized = SizedModel(model, 4, adapter if adapter_rank is not None else None)
    memory = sized.memory(plan, rows=tokens - tokens // PROMPT_SHARE)
    parts = ", ".join(f"{name} {value / MB:.0f}" for name, value in memory.parts.items())
    print(
        f"{model.name}, {sized.size.parameters / 1e6:.1f} M, {tokens}, {checkpointing}, {zero_stage}: "
        f"{measured / MB:.0f}, {memory.total / MB:.0f}, {memory.total / measured:.3f}, {seconds:.2f} ({parts})",
        flush=True,
    )


def samples(generator: np.random.Generator, vocab_size: int, length: int) -> list[TrainingSample]:
    """As many as fill the micro-batches of a step, all with a gradient."""
    prompt, response = length // PROMPT_SHARE, length - length // PROMPT_SHARE
    number = SEQUENCES * MICRO_BATCHES
    return [
        TrainingSample(
            position=index,
            index=0,
            prompt_token_ids=generator.integers(0, vocab_size, prompt, dtype=np.int32),
            token_ids=generator.integers(0, vocab_size, response, dtype=np.int32),
            behavior_logprobs=np.full(response, -10, dtype=np.float32),
            old_logprobs=np.full(response, np.nan, dtype=np.float32),
            token_lags=np.zeros(response, dtype=np.int32),
            advantage=float(generator.normal()),
            token_weight=1 / (response * number),
        )
        for index in range(number)
    ]


def _status(name: str) -> int:
    """Bytes that the kernel has for this process under a name of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
