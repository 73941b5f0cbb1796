"""What a step's parts, peaks and arithmetic are counted as."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.timing.step_clock import StepClock, flops_per_token, pair_cost, peak_flops, peak_resident
from tests.tiny_families import ALL, FAMILIES


def model_of(family: str, **settings: object) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ALL | FAMILIES[family] | settings))


def test_each_weight_that_a_token_meets_is_six_operations() -> None:
    untied, tied = model_of("llama"), model_of("llama", tie_word_embeddings=True)
    layers = sum(p.numel() for name, p in untied.named_parameters() if "layers" in name or name == "model.norm.weight")
    assert flops_per_token(untied) == 6 * (layers + 128 * 64)
    assert flops_per_token(tied) == flops_per_token(untied)


def test_the_cost_of_a_pair_is_that_of_attention_beside_the_weights() -> None:
    model = model_of("llama")
    config = model.config
    size = config.num_attention_heads * config.hidden_size // config.num_attention_heads
    assert pair_cost(model) == pytest.approx(config.num_hidden_layers * size * 6 / flops_per_token(model))


def test_of_experts_those_count_that_a_token_is_sent_to() -> None:
    model = model_of("mixtral")
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert experts > 0
    rest = sum(p.numel() for p in model.parameters()) - experts - 128 * 64
    assert flops_per_token(model) == 6 * (rest + experts * 2 / 4)


def test_a_device_is_known_by_a_part_of_its_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("Tesla T4") is None


def test_the_largest_resident_set_is_read() -> None:
    assert peak_resident("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n") == 2048 * 1024


def test_parts_add_up_and_begin_anew_with_each_step() -> None:
    model = model_of("llama")
    clock = StepClock(torch.device("cpu"), model)
    for _ in range(2):
        clock.start()
        for _ in range(3):
            with clock.part("forward"):
                pass
        with clock.part("optimizer"):
            pass
        found = clock.summary(tokens=1000, num_ranks=2)
    assert found.keys() == {"step_seconds", "forward_seconds", "optimizer_seconds", "tokens_per_second", "model_tflops"}
    assert 0 < found["forward_seconds"] + found["optimizer_seconds"] <= found["step_seconds"]
    assert found["model_tflops"] == pytest.approx(flops_per_token(model) * 1000 / found["step_seconds"] / 1e12)
    assert clock.peaks()["peak_host_bytes"] > 0


def test_a_frozen_weight_is_four_operations() -> None:
    model = model_of("llama")
    trained = flops_per_token(model)
    model.requires_grad_(False)
    assert flops_per_token(model) == trained * 4 / 6
