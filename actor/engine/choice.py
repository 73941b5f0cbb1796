"""Makes the engine that the command line asks for."""

import argparse
from typing import Any

from actor.engine.interface import Engine
from actor.engine.scripted import ScriptedEngine

ENGINE_NAMES = ("vllm", "scripted")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that launcher, engine process and evaluation share."""
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="vllm", help="scripted makes up answers: for tests")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that one engine spans (default 1)")
    parser.add_argument("--kv-cache-gib", type=float, default=2.0, help="KV cache of a CPU engine (default 2)")
    parser.add_argument(
        "--memory-share", type=float, default=0.9, help="share of GPU memory of an engine (default 0.9)"
    )
    parser.add_argument("--cpu-threads", type=int, default=1, help="compute threads of a CPU engine (default 1)")
    parser.add_argument("--tokens-per-second", type=float, help="speed of a response of the scripted engine")
    parser.add_argument(
        "--hang-after-groups", type=int, help="the scripted engine stands still when it is asked for one group more"
    )
    parser.add_argument("--nan-after-groups", type=int, help="log-probs of the scripted engine are NaN after so many")


def engine_words(options: argparse.Namespace) -> list[str]:
    """The options again as command-line words, for a child process."""
    words = ["--engine", options.engine, "--device", options.device, "--tensor-parallel", str(options.tensor_parallel)]
    words += ["--kv-cache-gib", str(options.kv_cache_gib), "--memory-share", str(options.memory_share)]
    words += ["--cpu-threads", str(options.cpu_threads)]
    for name in ("tokens_per_second", "hang_after_groups", "nan_after_groups"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def make_engine(options: argparse.Namespace, **of_the_run: Any) -> Engine:
    """The engine of these options.

    Args:
        options: as `add_engine_arguments` defines them.
        of_the_run: dtype, max_model_tokens, max_responses, kv_after_update, as the learner says; start_folder and
            keeps_metrics.
    """
    if options.engine == "scripted":
        return ScriptedEngine(
            tokens_per_second=options.tokens_per_second,
            hang_after_groups=options.hang_after_groups,
            nan_after_groups=options.nan_after_groups,
        )
    # vLLM takes seconds to import, and grading workers, which import this module again, must not pay for it.
    from actor.engine.vllm import VllmEngine

    return VllmEngine(
        device=options.device,
        tensor_parallel=options.tensor_parallel,
        kv_cache_gib=options.kv_cache_gib,
        memory_share=options.memory_share,
        cpu_threads=options.cpu_threads,
        **of_the_run,
    )
