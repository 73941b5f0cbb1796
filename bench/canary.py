"""What a canary sees: `python -m bench.canary [MODEL] --dtype bfloat16 --versions 1000`.

First the differences that rounding alone leaves: version after version with a small random update is adopted, and the
engine's log-probs are compared with those of transformers under the same weights. Then what corruptions leave: the
engine is given weights that are not those of the canary. Without a model, a tiny random one is made.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actor.engine.interface import UpdateTiming
from actor.engine.vllm import VllmEngine
from dcpo_async.model_folder import context_tokens
from dcpo_async.weights.canary import Canary
from learner.trainer.canary import canary_tokens

Tensors = dict[str, Tensor]

UNBOUNDED = 1e9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RESPONSES = 8


class Versions:
    """Weights in float32 that walk, and versions of them in the type of the forward pass.

    Args:
        model: folder of the weights to begin with.
        folder: where versions are written, each over the one before.
        step_size: of an update, for each element up or down.
    """

    def __init__(self, model: Path, folder: Path, dtype: torch.dtype, num_tokens: int, step_size: float) -> None:
        self._scorer = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        masters = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.masters: Tensors = {name: tensor.detach() for name, tensor in masters.named_parameters()}
        self.folder, self._dtype, self._step_size = folder, dtype, step_size
        self._random = torch.Generator().manual_seed(0)
        vocab_size = self._scorer.get_input_embeddings().weight.shape[0]
        self.token_ids = canary_tokens(vocab_size, num_tokens, seed=0)
        for path in model.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())

    def step(self, step_size: float | None = None) -> None:
        """Update every element."""
        for tensor in self.masters.values():
            signs = torch.randint(0, 2, tensor.shape, generator=self._random) * 2 - 1
            tensor.add_(signs, alpha=step_size or self._step_size)

    def published(self) -> Tensors:
        """The weights in the type of the forward pass."""
        return {name: tensor.to(self._dtype, copy=True) for name, tensor in self.masters.items()}

    def canary(self, tensors: Tensors) -> Canary:
        """What transformers says of the sequence under these weights."""
        with torch.no_grad():
            for name, parameter in self._scorer.named_parameters():
                parameter.copy_(tensors[name])
            tokens = torch.tensor(self.token_ids)
            logits = self._scorer(tokens[None], use_cache=False).logits[0, :-1].float()
        logprobs = logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].clamp(max=0)
        return Canary(token_ids=self.token_ids, logprobs=tuple(logprobs.tolist()), bound=UNBOUNDED)

    def write(self, tensors: Tensors) -> Path:
        """Write a version; returns its folder."""
        save_file(tensors, self.folder / "model.safetensors", {"format": "pt"})
        return self.folder


async def measure(versions: Versions, dtype: str, num_versions: int) -> None:
    """Adopt and compare, and print what was found."""
    length = min(256, context_tokens(versions.folder) or 256)
    engine = VllmEngine(dtype=dtype, device="cpu", max_model_tokens=length, max_responses=RESPONSES, kv_cache_gib=0.5)
    tensors = versions.published()
    found = [await engine.start(versions.write(tensors), 1, versions.canary(tensors)) or 0.0]
    timings: list[UpdateTiming] = []
    for version in range(2, num_versions + 1):
        versions.step()
        tensors = versions.published()
        timings.append(await engine.adopt(versions.write(tensors), version, versions.canary(tensors)))
        found.append(timings[-1].canary_difference or 0.0)
    mean = -sum(versions.canary(tensors).logprobs) / (len(versions.token_ids) - 1)
    print(f"{dtype}: {len(found)} versions, mean log-prob of a token of the canary {-mean:.2f}")
    print(f"right weights: largest difference {max(found):.3g} nats, median of the largest {median(found):.3g}")
    if timings:
        stages = {name: median(t.stage_seconds[name] for t in timings) for name in timings[0].stage_seconds}
        print("pause, s:", json.dumps({name: round(seconds, 4) for name, seconds in stages.items()}))
    canary = versions.canary(tensors)
    for number, (name, wrong) in enumerate(corruptions(versions, tensors), start=num_versions + 1):
        timing = await engine.adopt(versions.write(wrong), number, canary)
        print(f"{timing.canary_difference:10.3g} nats  {name}")
    await engine.close()


def corruptions(versions: Versions, right: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Wrong weights for the canary of the right ones, by name."""
    names = list(right)
    layers = [name for name in names if ".layers." in name]
    middle = f".layers.{max(int(name.split('.layers.')[1].split('.')[0]) for name in layers) // 2}."
    chosen = [names[0], *(name for name in names if middle in name and right[name].ndim == 2), names[-1]]
    for name in chosen:
        yield f"{name} times 1.01", {**right, name: right[name] * 1.01}
    for name in chosen:
        yield f"{name} zero", {**right, name: torch.zeros_like(right[name])}
    for name in chosen[1:2]:
        wrong = right[name].clone()
        wrong[0, 0] += 1.0
        yield f"{name}, one element plus 1", {**right, name: wrong}
        yield f"{name}, halves exchanged", {**right, name: right[name].roll(right[name].shape[0] // 2, 0)}
    kept = {name: tensor.clone() for name, tensor in versions.masters.items()}
    for step_size in (1e-6, 1e-5, 1e-4, 1e-3):
        for name, tensor in kept.items():
            versions.masters[name].copy_(tensor)
        versions.step(step_size)
        stale = versions.published()
        one_layer = {name: stale[name] if middle in name else right[name] for name in right}
        yield f"one layer off by one update of {step_size:g}", one_layer
        yield f"{names[0]} off by one update of {step_size:g}", {**right, names[0]: stale[names[0]]}
        yield f"everything off by one update of {step_size:g}", stale


def make_random_model(folder: Path) -> Path:
    """A Llama of 2 layers with a vocabulary of 512, and a tokenizer that nobody asks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"truncation": None, "padding": None, "added_tokens": [], **tokenizer}))
    PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="w2").save_pretrained(folder)
    return folder


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a model; without one a tiny one is made")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--step-size", type=float, default=1e-4, help="of each update, for every element")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, folder = options.model or make_random_model(Path(scratch)), Path(scratch) / "version"
        folder.mkdir()
        versions = Versions(model, folder, DTYPES[options.dtype], options.tokens, options.step_size)
        asyncio.run(measure(versions, options.dtype, options.versions))


if __name__ == "__main__":
    main()
