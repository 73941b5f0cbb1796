"""G7 and G8: what rounding of logits does to ratios; vLLM's sampler for GPUs by itself."""

import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu_check.findings import Finding, Place, SkippedError, at_most, holds, sync
from bench.gpu_check.model import SHAPES
from dcpo_async.algorithm import clip_bounds

LOGIT_SPREAD = 6.0
"""Standard deviation of made logits: the largest of a vocabulary are some 4 times as far out, as a trained model's."""
ROWS = {"cuda": 16384, "cpu": 512}
CHUNK_ROWS = 1024
SAMPLER_FILES = ("gumbel.py", "logprob.py")
DRAWS = {"cuda": 2_000_000, "cpu": 2_000}
DRAWN_TOKENS = 32
CHI_SQUARED_31 = 61.1
"""Exceeded once in a thousand draws with 31 degrees of freedom."""


def rounding(place: Place) -> Iterator[Finding]:
    """G7: log-probs by logits of bfloat16 and of float32 from the same states, and what DCPO makes of the difference.

    Tokens are drawn by the rounded logits, as an engine does; the learner's ratio is 1 but for the rounding.
    """
    shape, device = SHAPES[place.device], torch.device(place.device)
    generator = torch.Generator(device=device).manual_seed(0)
    size, vocabulary = shape["hidden_size"], shape["vocab_size"]
    head = torch.randn(vocabulary, size, generator=generator, device=device).mul_(LOGIT_SPREAD / math.sqrt(size))
    head = head.to(torch.bfloat16)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(0, ROWS[place.device], CHUNK_ROWS):
        rows = min(CHUNK_ROWS, ROWS[place.device])
        states = torch.randn(rows, size, generator=generator, device=device).to(torch.bfloat16)
        rounded = (states @ head.T).float().log_softmax(1)
        exact = (states.float() @ head.float().T).log_softmax(1)
        drawn = torch.multinomial(rounded.exp(), 1, generator=generator)
        found.append((rounded.gather(1, drawn)[:, 0], exact.gather(1, drawn)[:, 0]))
    behavior, policy = (torch.cat(parts) for parts in zip(*found, strict=True))
    difference = (policy - behavior).abs()
    for share in (0.5, 0.9, 0.99, 1.0):
        yield Finding(f"nats between the two heads, quantile {share}", f"{float(difference.quantile(share)):.4f}")
    low, high = clip_bounds(behavior, epsilon_low=0.16, epsilon_high=0.20, max_ratio=10.0)
    ratio = (policy - behavior).exp()
    clipped = ((ratio < low) | (ratio > high)).float().mean()
    yield Finding("tokens whose ratio leaves DCPO's bounds by rounding alone", f"{float(clipped):.4%}")


class Sampler(NamedTuple):
    """Two modules of vLLM."""

    gumbel: Any
    logprob: Any


def sampler(place: Place) -> Iterator[Finding]:
    """G8: log-probs against float64, draws against their probabilities, and the same draw for the same seed and place.

    On a CPU Triton's interpreter runs the kernels; it has to be chosen before Triton is imported.
    """
    modules, device = loaded_sampler(place), torch.device(place.device)
    generator = torch.Generator(device=device).manual_seed(0)
    rows, vocabulary = (1024, 152064) if place.is_gpu else (4, 3000)
    logits = torch.randn(rows, vocabulary, generator=generator, device=device).mul_(4).to(torch.bfloat16)
    tokens = torch.randint(0, vocabulary, (rows, 1), generator=generator, device=device)
    found = modules.logprob.compute_token_logprobs(logits, tokens)
    exact = logits.double().log_softmax(1).gather(1, tokens)
    yield at_most("log-probs against float64, nats", float((found.double() - exact).abs().max()), 1e-5)
    yield from draws(place, modules)
    if place.is_gpu:
        for name, work in (
            ("log-probs of [1024, 152064]", lambda: modules.logprob.compute_token_logprobs(logits, tokens)),
            ("a draw from [1024, 152064]", lambda: drawn(modules, logits, torch.zeros(rows, device=device))),
        ):
            yield Finding(name, f"{milliseconds(work, device):.2f} ms")


def draws(place: Place, modules: Sampler) -> Iterator[Finding]:
    """Counts of many draws from few tokens, by chi squared."""
    device, count = torch.device(place.device), DRAWS[place.device]
    generator = torch.Generator(device=device).manual_seed(1)
    row = torch.randn(DRAWN_TOKENS, generator=generator, device=device)
    logits = row.expand(count, -1).contiguous()
    positions = torch.arange(count, device=device, dtype=torch.int64)
    found = drawn(modules, logits, positions)
    counts = torch.bincount(found, minlength=DRAWN_TOKENS).double()
    expected = row.double().softmax(0) * count
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    yield at_most(f"χ² of {count} draws from {DRAWN_TOKENS} tokens", chi_squared, CHI_SQUARED_31)
    again = drawn(modules, logits, positions)
    is_same = torch.equal(found, again)
    yield holds("the same seed and position", "the same token" if is_same else "another", "the same token", is_same)


def drawn(modules: Sampler, logits: Tensor, positions: Tensor) -> Tensor:
    """One token for each row, by one seed and the row's own position."""
    rows, device = len(logits), logits.device
    states = torch.zeros(rows, dtype=torch.int32, device=device)
    tokens: Tensor = modules.gumbel.gumbel_sample(
        logits,
        states,
        temperature=torch.ones(1, device=device),
        seed=torch.full((1,), 1234567, dtype=torch.int64, device=device),
        pos=positions.to(torch.int64),
        apply_temperature=True,
        is_drafting=False,
    )
    return tokens.view(-1).long()


def loaded_sampler(place: Place) -> Sampler:
    """vLLM's own files, without vLLM: what they import of it is stood in for."""
    folder = sampler_folder(place)
    if importlib.util.find_spec("triton") is None:
        raise SkippedError("triton is not installed")
    triton = importlib.import_module("triton")
    stand_ins: dict[str, dict[str, Any]] = {
        "vllm": {"__path__": []},
        "vllm.triton_utils": {"triton": triton, "tl": importlib.import_module("triton.language")},
        "vllm.sampling_params": {"MAX_LOGPROB_TOKEN_IDS": 128, "SamplingParams": object},
        "vllm.v1": {"__path__": []},
        "vllm.v1.outputs": {"LogprobsTensors": tuple},
        "vllm.v1.worker": {"__path__": []},
        "vllm.v1.worker.gpu": {"__path__": []},
        "vllm.v1.worker.gpu.buffer_utils": {"StagedWriteTensor": object, "UvaBackedTensor": object},
    }
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
    loaded = []
    for file_name in SAMPLER_FILES:
        spec = importlib.util.spec_from_file_location(f"vllm_{file_name.removesuffix('.py')}", folder / file_name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        loaded.append(module)
    return Sampler(*loaded)


def sampler_folder(place: Place) -> Path:
    """Where vLLM's files are: carried, or of an installed vLLM."""
    spec = importlib.util.find_spec("vllm")
    installed = Path(spec.origin).parent / "v1/worker/gpu/sample" if spec is not None and spec.origin else None
    for folder in (place.packages / "vllm_sampler", installed):
        if folder is not None and all((folder / name).exists() for name in SAMPLER_FILES):
            return folder
    raise SkippedError(f"vLLM is not installed, and {place.packages / 'vllm_sampler'} has not {SAMPLER_FILES}")


def milliseconds(work: Any, device: torch.device, repetitions: int = 20) -> float:
    """Of one call, after a first one."""
    work()
    sync(device)
    began = time.perf_counter()
    for _ in range(repetitions):
        work()
    sync(device)
    return (time.perf_counter() - began) / repetitions * 1e3
