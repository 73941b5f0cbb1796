"""Size and speed of sparse patches on a real trajectory: `python -m bench.weight_patches MODEL --problems FILE`.

AdamW on float32 masters, weights published in bfloat16, a policy-like loss: each sequence's mean log-prob, up or down.
Every patch is applied and compared bit for bit; speeds are those of one core, in GB of dense weights a second.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.prompts import load, problem_source
from dcpo_async.weights.patch import apply_patch, encode_patch
from learner.trainer.engine import learning_rate

T = TypeVar("T")
WARMUP_STEPS = 10
BATCH_SIZE, MAX_TOKENS = 4, 192
GB = 1e9


def main() -> None:
    """Train, publish after every step, print a line for each and the medians."""
    parser = argparse.ArgumentParser(prog="bench.weight_patches", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--problems", required=True, help="as data.source names them")
    parser.add_argument("--steps", type=int, default=12, help="measured after the warm-up")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [problem.problem for problem in load(problem_source(options.problems)).problems]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.1)
    base = published(model)
    dense = sum(tensor.nbytes for tensor in base.values())
    print(f"{len(base)} tensors, {dense / GB:.3f} GB in bfloat16")
    ratios, speeds = [], []
    for step in range(WARMUP_STEPS + options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.learning_rate, WARMUP_STEPS)
        first = BATCH_SIZE * step
        take_step(model, tokenizer, texts[first : first + BATCH_SIZE], optimizer)
        new = published(model)
        line = measured(base, new, dense)
        print(f"step {step + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)
        if step >= WARMUP_STEPS:
            ratios.append(line["dense / patch"])
            speeds.append(line)
        base = new
    print(f"after warm-up: dense / patch {median(ratios):.0f} [{min(ratios):.0f}, {max(ratios):.0f}]")
    for name in ("encode GB/s", "apply GB/s", "memcpy GB/s"):
        values = [line[name] for line in speeds]
        print(f"{name}: {median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")


def take_step(model: nn.Module, tokenizer: object, texts: list[str], optimizer: torch.optim.Optimizer) -> None:
    """One update of the mean log-prob of each text, up for every other one and down for the rest."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS)  # type: ignore[operator]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logprobs = logits.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    advantages = torch.tensor([1.0, -1.0]).repeat(len(texts))[: len(texts)]
    loss = -(advantages * logprobs.sum(1) / mask[:, 1:].sum(1)).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def published(model: nn.Module) -> dict[str, Tensor]:
    """What a learner would publish: a copy in bfloat16."""
    return {name: parameter.detach().to(torch.bfloat16) for name, parameter in model.named_parameters()}


def measured(base: dict[str, Tensor], new: dict[str, Tensor], dense: int) -> dict[str, float]:
    """Encode, apply, compare; processor seconds of this process, which computes in one thread meanwhile."""
    patch, encoding = timed(lambda: encode_patch(base, new))
    patched, applying = timed(lambda: apply_patch(base, patch))
    _, copying = timed(lambda: {name: tensor.clone() for name, tensor in new.items()})
    assert_equal_bits(patched, new)
    changed = sum(int((base[name].view(torch.int16) != new[name].view(torch.int16)).sum()) for name in new)
    return {
        "changed %": 100 * changed / (dense / 2),
        "dense / patch": dense / len(patch),
        "encode GB/s": dense / GB / encoding,
        "apply GB/s": dense / GB / applying,
        "memcpy GB/s": dense / GB / copying,
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result and the processor seconds it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    torch.set_num_threads(threads)
    return result, seconds


def assert_equal_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Stop where a single bit differs."""
    for name, tensor in expected.items():
        if not torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)):
            raise AssertionError(f"{name} differs after its patch")


if __name__ == "__main__":
    main()
