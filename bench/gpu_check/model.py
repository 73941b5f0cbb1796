"""The model that is checked: the widths of Qwen2.5-Math-7B with 6 layers, or tiny; and samples for it."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from bench.gpu_check.findings import Place
from dcpo_async.config import RunConfig
from dcpo_async.records import TrainingSample

SHAPES = {
    "cuda": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 6,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "cpu": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
MICRO_BATCH_TOKENS = {"cuda": 16384, "cpu": 512}


def model_folder(place: Place) -> Path:
    """A Hugging Face folder with random weights of bfloat16, made once for all checks."""
    folder = place.folder / f"model-{place.device}"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = Qwen2Config(**SHAPES[place.device], max_position_embeddings=4096, eos_token_id=2)
        with torch.device(place.device):
            model = Qwen2ForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(folder)
        del model
        words = {f"w{number}": number for number in range(16)}
        tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({"truncation": None, "padding": None, "added_tokens": [], **tokenizer}))
        PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="w2").save_pretrained(folder)
    return folder


def run_config(place: Place, zero_stage: int, name: str) -> RunConfig:
    """Settings of a run that trains this model in bfloat16 with checkpointing of activations."""
    return RunConfig(
        folder=place.folder / name,
        model={"path": str(model_folder(place)), "dtype": "bfloat16", "gradient_checkpointing": True},
        training={
            "zero_stage": zero_stage,
            "micro_batch_tokens": MICRO_BATCH_TOKENS[place.device],
            "learning_rate": 1e-5 if place.is_gpu else 1e-3,
            "warmup_steps": 2,
        },
    )


def made_samples(place: Place, step: int, num_tokens: int) -> list[TrainingSample]:
    """Samples of mixed lengths, `num_tokens` in all, with advantages of both signs; a function of the step alone."""
    chance = np.random.default_rng(step)
    longest = 2048 if place.is_gpu else 64
    vocab_size = SHAPES[place.device]["vocab_size"]
    samples: list[TrainingSample] = []
    while num_tokens > 8:
        prompt = int(chance.integers(4, max(5, min(num_tokens - 2, longest // 8))))
        length = min(num_tokens - prompt, int(chance.integers(1, longest - prompt)))
        num_tokens -= prompt + length
        logprobs = np.minimum(chance.normal(-np.log(vocab_size), 0.3, length), 0).astype(np.float32)
        samples.append(
            TrainingSample(
                position=len(samples),
                index=0,
                prompt_token_ids=chance.integers(3, vocab_size, prompt, dtype=np.int32),
                token_ids=chance.integers(3, vocab_size, length, dtype=np.int32),
                behavior_logprobs=logprobs,
                old_logprobs=logprobs,
                token_lags=np.zeros(length, dtype=np.int32),
                advantage=float(chance.normal()),
                token_weight=1 / length,
            )
        )
    return samples
