"""One optimizer step of TRL's GRPOTrainer: `python theirs.py MODEL SAMPLES BATCH CHECKPOINTING`, by a Python with TRL.

TRL's fused head scores padding too where there is no GPU; it is told to leave it out, as it does on one.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Measure
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import trl.trainer.utils
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    """A short step to warm up, then the timed one."""
    torch.set_num_threads(1)
    trl.trainer.utils._use_triton = lambda _device: True
    path, samples = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    batch, checkpointing = int(sys.argv[3]), sys.argv[4] == "1"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    measure, num_steps = Measure(), 0

    def rollout(_prompts: list[str], _trainer: GRPOTrainer) -> dict[str, Any]:
        nonlocal num_steps
        num_steps += 1
        chosen = samples
        if num_steps == 1:
            chosen = [{"prompt": [10, 11], "response": sample["response"][:8]} for sample in samples]
        else:
            measure.start()
        return {
            "prompt_ids": [sample["prompt"] for sample in chosen],
            "completion_ids": [sample["response"] for sample in chosen],
            "logprobs": [[-10.8] * len(sample["response"]) for sample in chosen],
        }

    class Report(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if num_steps == 2:
                print(measure.report(), flush=True)

    numbers = iter(range(10**9))
    with tempfile.TemporaryDirectory() as folder:
        GRPOTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(path),
            reward_funcs=lambda completions, **_: [float(next(numbers) % 2) for _ in completions],
            rollout_func=rollout,
            train_dataset=Dataset.from_list([{"prompt": str(group)} for group in range(len(samples) // 8 * 2)]),
            callbacks=[Report()],
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=len(samples) // batch,
                num_generations=8,
                max_completion_length=1024,
                max_steps=2,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=checkpointing,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                shuffle_dataset=False,
                learning_rate=1e-6,
            ),
        ).train()


if __name__ == "__main__":
    main()
