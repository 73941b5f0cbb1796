"""What vLLM is told on a CPU, and what its processes use of one."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GIB = 1 << 30
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
LATENT_ATTENTION: dict[str, Any] = {
    # vLLM's rotary kernel for CPUs misreads queries that come as [tokens, heads, size], as they do here.
    "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
    # What it takes by itself where a CPU has AMX knows no float32.
    "attention_backend": "CPU_MLA",
}
"""More arguments, of models with latent attention."""


def cpu_arguments(kv_cache_gib: float) -> dict[str, Any]:
    """Arguments of an engine on a CPU."""
    return {
        "kv_cache_memory_bytes": int(kv_cache_gib * GIB),
        "enforce_eager": True,
        # A group's responses share its prompt by whole blocks, and many a prompt is shorter than vLLM's 128 tokens.
        "block_size": 32,
        # In the EngineCore process itself: another one would spin on its queue, on a core that others need.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
        # A prompt in chunks would wind back a response's random generator, which ends vLLM on a CPU.
        "enable_chunked_prefill": False,
    }


def set_cpu_environment(threads: int) -> None:
    """What the EngineCore process inherits."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # vLLM compiles one tiny function even when it runs eagerly, which needs a C++ compiler and many seconds.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def processor_seconds(process_ids: Iterable[int]) -> float:
    """Processor time that processes have used; those that have ended count nothing."""
    ticks = 0
    for process_id in process_ids:
        try:
            # The name, in brackets, may have spaces in it.
            _, _, fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")
        except OSError:
            continue
        ticks += sum(map(int, fields.split()[11:13]))
    return ticks / TICKS_PER_SECOND
