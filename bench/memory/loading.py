"""The host's memory while ranks read a model under ZeRO-3: `python -m bench.memory.loading`.

A random Qwen2 of about a gigabyte is read by real ranks over gloo: whole by each, for DeepSpeed to partition it then,
and parameter by parameter. The kernel's count of each rank's private pages (RssAnon) is looked at every 10 ms; pages of
the model's files, which all ranks share, are not among them.
"""

import argparse
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from bench.memory.ranks import run_ranks
from learner.trainer.engine import join_ranks, local_device
from learner.weights.loading import loaded_model
from learner.weights.partitioning import read_model

MB = 1e6
DEADLINE = timedelta(minutes=30)
SHARED: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
CASES = (("dense", "bfloat16"), ("dense", "float32"), ("experts", "bfloat16"))
"""Models, which lie in their files in bfloat16, and the type in which they are trained."""


def main() -> None:
    """Start the ranks of each case; each case prints a line."""
    parser = argparse.ArgumentParser(prog="bench.memory.loading", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=36, help="of the dense model; that of experts has a sixth")
    parser.add_argument("--case", nargs=3, help="of a run of this program: folder, type, and how it is read")
    options = parser.parse_args()
    if options.case:
        measure(Path(options.case[0]), options.case[1], options.case[2])
        return
    print("model, type, read: model MB, private MB of each rank at its peak, of all at their ends, seconds", flush=True)
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as folder:
        make_models(Path(folder), options.layers)
        for model, dtype in CASES:
            for how in ("whole", "shares"):
                words = ["-m", "bench.memory.loading", "--case", str(Path(folder, model)), dtype, how]
                run_ranks(options.ranks, words)


def make_models(folder: Path, layers: int) -> None:
    """One whose tensors lie in its files as they are trained, and one whose experts are put together on reading."""
    torch.set_default_dtype(torch.bfloat16)
    dense = Qwen2Config(**SHARED, num_hidden_layers=layers, intermediate_size=2816)
    Qwen2ForCausalLM(dense).save_pretrained(folder / "dense")
    experts = Qwen2MoeConfig(
        **SHARED, num_hidden_layers=layers // 6, num_experts=16, moe_intermediate_size=1408,
        shared_expert_intermediate_size=1408,
    )  # fmt: skip
    Qwen2MoeForCausalLM(experts).save_pretrained(folder / "experts")
    torch.set_default_dtype(torch.float32)


def measure(folder: Path, dtype_name: str, how: str) -> None:
    """Read a model into this rank; the first prints what all have found."""
    join_ranks(DEADLINE)
    dtype: torch.dtype = getattr(torch, dtype_name)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    before, began = private_bytes(), time.monotonic()
    with Peak() as peak:
        if how == "shares":
            model = read_model(folder, dtype, settings, local_device())
        else:
            model = loaded_model(folder, dtype)
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
    found: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(found, (peak.value - before, private_bytes() - before))
    if dist.get_rank() == 0:
        size = sum(parameter.ds_numel for parameter in model.parameters()) * dtype.itemsize
        peaks = " and ".join(f"{at_peak / MB:.0f}" for at_peak, _ in found)
        print(
            f"{folder.name}, {dtype_name}, {how}: {size / MB:.0f}, {peaks}, {sum(end for _, end in found) / MB:.0f}, "
            f"{time.monotonic() - began:.1f}",
            flush=True,
        )
    dist.destroy_process_group()


class Peak:
    """The most private bytes of this process while it is entered, looked at by a thread.

    Attributes:
        value: in bytes.
    """

    def __init__(self) -> None:
        self.value = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.01):
            self.value = max(self.value, private_bytes())


def private_bytes() -> int:
    """Pages of this process that no file is behind; pages of a file that it has written to are among them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
