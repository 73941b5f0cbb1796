"""Bytes of a rank against those that were worked out by hand for the headline run."""

from dataclasses import replace

import pytest

from dcpo_async.config import ModelSettings, RunConfig
from learner.sizing.memory import (
    ModelSize,
    Plan,
    bucket_bytes,
    checkpoint_bytes,
    gradient_bytes,
    heap_bytes,
    optimizer_bytes,
    rank_memory,
    weight_bytes,
)
from learner.sizing.rehearsal import Rehearsal

GB = 1e9
QWEN_7B = ModelSize(parameters=7_615_616_512, largest=152_064 * 3584)


def headline(num_ranks: int = 4, **training: object) -> Plan:
    """The built-in defaults on GPUs."""
    return Plan.of(RunConfig(model=ModelSettings(dtype="bfloat16"), training=training), num_ranks, on_gpus=True)  # type: ignore[arg-type]


def static(plan: Plan) -> float:
    parts = (weight_bytes, gradient_bytes, optimizer_bytes, bucket_bytes)
    return sum(part(QWEN_7B, plan) for part in parts) / GB


def test_the_headline_run_has_the_static_bytes_that_were_worked_out_by_hand() -> None:
    plan = headline()
    assert weight_bytes(QWEN_7B, plan) / GB == pytest.approx(15.2, abs=0.1)
    assert gradient_bytes(QWEN_7B, plan) / GB == pytest.approx(7.6, abs=0.1)
    assert optimizer_bytes(QWEN_7B, plan) / GB == pytest.approx(22.8, abs=0.1)
    assert 46 <= static(plan) <= 50
    assert 38 <= static(headline(zero_stage=3)) <= 41


def test_one_rank_has_all_of_it_whatever_the_stage() -> None:
    for stage in (2, 3):
        plan = headline(num_ranks=1, zero_stage=stage)
        assert weight_bytes(QWEN_7B, plan) + gradient_bytes(QWEN_7B, plan) + optimizer_bytes(QWEN_7B, plan) == (
            QWEN_7B.parameters * 18
        )


def test_a_cpu_without_zero_has_no_master_weights() -> None:
    config = RunConfig(model=ModelSettings(dtype="float32"), training={"zero_stage": 0})  # type: ignore[arg-type]
    plan, size = Plan.of(config, 1, on_gpus=False), ModelSize(1000, 100)
    assert (weight_bytes(size, plan), gradient_bytes(size, plan), optimizer_bytes(size, plan)) == (4000, 4000, 8000)
    assert checkpoint_bytes(size, plan) == 12_000


def test_a_checkpoint_of_the_headline_run_is_master_weights_and_moments() -> None:
    assert checkpoint_bytes(QWEN_7B, headline()) / GB == pytest.approx(7.616 * 12, abs=0.1)


def test_buckets_fill_up_when_the_head_is_done_so_that_the_larger_counts() -> None:
    body = Rehearsal(peak=8_000_000_000, small_peak=0)
    for head, larger in ((1_000_000_000, 4_000_000_000), (9_000_000_000, 9_000_000_000)):
        whole = Rehearsal(peak=body.peak + head, small_peak=0)
        assert rank_memory(QWEN_7B, headline(), whole, body, whole).head_or_buckets == larger


@pytest.mark.parametrize(
    ("adapter", "zero_stage", "num_ranks", "small_peak", "expected_mb"),
    [
        # 90 + 100; without checkpointing 0.6 · (300 - 100) more, at most 350.
        (None, 0, 1, 100, 190),
        (None, 0, 1, 300, 310),
        (None, 0, 1, 900, 540),
        # 90 + 2 · 100.
        (1000, 0, 1, 100, 290),
        # With a flat copy of 4 bytes for each of 10 million trained elements, or for a rank's share of them.
        (None, 2, 1, 100, 230),
        (None, 1, 2, 100, 210),
        (None, 3, 1, 100, 190),
    ],
)
def test_what_a_process_on_a_cpu_takes_beside_its_tensors(
    adapter: int | None, zero_stage: int, num_ranks: int, small_peak: int, expected_mb: int
) -> None:
    training = {"zero_stage": zero_stage}
    config = RunConfig(model=ModelSettings(dtype="float32"), training=training)  # type: ignore[arg-type]
    plan, size = Plan.of(config, num_ranks, on_gpus=False), ModelSize(10_000_000, 100, adapter=adapter)
    whole, heap = (Rehearsal(peak=small * 10**6, small_peak=small * 10**6) for small in (small_peak, 100))
    assert heap_bytes(size, plan, whole, heap) / 1e6 == pytest.approx(expected_mb, abs=0.1)


def test_what_is_offloaded_is_not_on_the_gpu() -> None:
    zero = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    nothing = Rehearsal(0, 0)
    memory = rank_memory(QWEN_7B, headline(deepspeed=zero), nothing, nothing, nothing)
    assert memory.gradients == memory.optimizer == 0
    assert memory.offloaded == QWEN_7B.parameters * 16 // 4


def test_a_micro_batch_has_no_more_tokens_than_a_rank_is_given_and_never_less_than_the_longest_sequence() -> None:
    few = {"groups_per_step": 1, "micro_batch_tokens": 10**9}
    assert headline(**few).tokens == 4 * 4096
    assert headline(micro_batch_tokens=100).tokens == 4096
    assert headline().tokens == 16384
    assert headline(num_ranks=2, **few).with_ranks(8).tokens == 2 * 4096


def test_the_plan_reads_what_is_merged_over_our_own_deepspeed_options() -> None:
    plan = headline(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}})
    assert plan.bucket == 1000


def test_the_reference_of_a_kl_term_is_the_weights_once_more_and_listed() -> None:
    none = Rehearsal(0, 0)
    for stage in (2, 3):
        plain = headline(zero_stage=stage)
        with_kl = Plan.of(
            RunConfig(
                model=ModelSettings(dtype="bfloat16"),
                training={"zero_stage": stage},  # type: ignore[arg-type]
                algorithm={"kl_coefficient": 0.001},  # type: ignore[arg-type]
            ),
            4,
            on_gpus=True,
        )
        without, found = (rank_memory(QWEN_7B, plan, none, none, none) for plan in (plain, with_kl))
        assert found.total - without.total == found.parts["reference"] == weight_bytes(QWEN_7B, plain)
        assert "reference" not in without.parts


def test_below_an_adapter_there_are_weights_alone() -> None:
    size, plan = replace(QWEN_7B, adapter=20_000_000), headline()
    assert weight_bytes(size, plan) == weight_bytes(QWEN_7B, plan)
    assert gradient_bytes(size, plan) == 20_000_000 * 4 // 4
    assert optimizer_bytes(size, plan) == 20_000_000 * 12 // 4
    assert checkpoint_bytes(size, plan) == 20_000_000 * 12
    assert checkpoint_bytes(size, headline(zero_stage=0)) == 20_000_000 * 14
