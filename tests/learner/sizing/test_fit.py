"""What fits a machine, and what is said of a run that does not; sizes as rehearsed for Qwen2.5-7B and 14B."""

from dataclasses import replace

import pytest

from dcpo_async.config import ModelSettings, RunConfig
from dcpo_async.errors import ConfigError
from learner.ranks import require_sequence_parallel
from learner.sizing.fit import needs, shortfall, smallest_change, told
from learner.sizing.machine import Machine
from learner.sizing.memory import ModelSize, Plan, RankMemory, rank_memory
from learner.sizing.rehearsal import Rehearsal

H100 = 83_000_000_000
LARGE = 1 << 60
MACHINE = Machine(gpu=H100, host=LARGE, shared=LARGE, disk=LARGE)
QWEN_7B = ModelSize(7_615_616_512, 152_064 * 3584)
QWEN_14B = ModelSize(14_770_033_664, 152_064 * 5120)
CONFIG = RunConfig(model=ModelSettings(dtype="bfloat16"))


def memory_of(size: ModelSize, plan: Plan) -> RankMemory:
    """With activations that grow with the tokens: 0.5 and 0.9 MB a token with checkpointing, seven times without."""
    per_token = (500_000 if size is QWEN_7B else 915_000) * (1 if plan.checkpointing else 7)
    body = Rehearsal(plan.own_tokens * per_token, 0)
    whole = Rehearsal(body.peak + 1_900_000_000, 0)
    return rank_memory(size, plan, whole, body, whole)


def refusal(size: ModelSize, num_ranks: int, machine: Machine = MACHINE, config: RunConfig = CONFIG) -> str | None:
    plan = Plan.of(config, num_ranks, on_gpus=True)
    return told(config, size, plan, machine, lambda changed: memory_of(size, changed))


def test_the_headline_run_fits_four_cards_of_80_gb() -> None:
    assert refusal(QWEN_7B, 4) is None


def test_14b_does_not_fit_them_and_the_line_names_the_number_and_the_smallest_change() -> None:
    line = refusal(QWEN_14B, 4)
    assert line is not None
    assert line.startswith("14.8 B parameters need 110.5 GB of each of 4 GPUs (weights 29.5, gradients 14.8, optimizer")
    assert "and 83.0 GB are there; " in line
    assert line.endswith("; --training.micro_batch_tokens 8192 --training.zero_stage 3 (82.0 GB each) would fit")
    assert "\n" not in line
    assert refusal(QWEN_14B, 8) is None


def test_one_setting_is_a_smaller_change_than_two_and_settings_come_before_gpus() -> None:
    assert (line := refusal(QWEN_7B, 2, replace(MACHINE, gpu=89 * 10**9)))
    assert line.endswith("; --training.micro_batch_tokens 8192 (86.6 GB each) would fit")
    assert (line := refusal(QWEN_7B, 2, replace(MACHINE, gpu=81 * 10**9)))
    assert line.endswith("; --training.micro_batch_tokens 8192 --training.zero_stage 3 (80.0 GB each) would fit")
    without = CONFIG.model_copy(update={"model": ModelSettings(dtype="bfloat16", gradient_checkpointing=False)})
    assert (line := refusal(QWEN_7B, 4, config=without))
    assert line.endswith("; --training.micro_batch_tokens 8192 (81.9 GB each) would fit")


def test_where_no_setting_helps_more_gpus_are_named_and_the_optimizer_off_them() -> None:
    line = refusal(QWEN_14B, 1)
    assert line is not None
    words = '--training.deepspeed \'{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}\''
    assert "; 5 GPUs --training.zero_stage 3 (" in line
    assert f" or {words} (" in line


def test_a_model_that_is_too_large_for_everything_is_said_to_be() -> None:
    assert (line := refusal(ModelSize(10**13, 10**9), 4))
    assert line.endswith("no setting would fit: take a smaller model or another machine")


def test_a_gpu_of_unknown_size_is_not_judged() -> None:
    assert refusal(QWEN_14B, 4, replace(MACHINE, gpu=None)) is None


def test_the_disk_is_judged_and_fewer_checkpoints_are_the_smaller_change() -> None:
    plan = Plan.of(CONFIG, 4, on_gpus=True)
    need = needs(CONFIG, QWEN_7B, plan, memory_of(QWEN_7B, plan))
    assert need.disk == 3 * need.checkpoint + 5 * need.version
    assert (line := refusal(QWEN_7B, 4, replace(MACHINE, disk=need.disk - 1)))
    assert "of the disk of the run folder, and " in line
    assert "; --checkpoint.keep_last 1 (" in line


def test_the_memory_of_the_machine_counts_every_process_two_versions_and_a_snapshot() -> None:
    config = RunConfig(model=ModelSettings(dtype="float32"))
    plan = Plan.of(config, 2, on_gpus=False)
    memory = memory_of(QWEN_7B, plan)
    need = needs(config, QWEN_7B, plan, memory)
    assert need.host == 4 * 450_000_000 + 2 * memory.total + 2 * need.version + need.checkpoint
    small = shortfall(need, plan, replace(MACHINE, gpu=None, host=need.host - 1))
    assert small is not None
    assert small.what == "the memory of this machine"


def test_of_several_machines_this_one_has_its_ranks_and_its_part_of_a_checkpoint() -> None:
    config = RunConfig(model=ModelSettings(dtype="float32"))
    plans = [Plan.of(config, 4, num_machines, on_gpus=False) for num_machines in (1, 2)]
    alone, shared = (needs(config, QWEN_7B, plan, memory_of(QWEN_7B, plan)) for plan in plans)
    two_ranks = 2 * (450_000_000 + memory_of(QWEN_7B, plans[0]).total)
    assert alone.host - shared.host == two_ranks + alone.checkpoint // 2


def test_a_best_version_that_is_kept_takes_room_twice() -> None:
    plan = Plan.of(CONFIG, 4, on_gpus=True)
    evaluation = CONFIG.evaluation.model_copy(update={"every_steps": 5})
    measuring = CONFIG.model_copy(update={"evaluation": evaluation})
    plain, found = (needs(config, QWEN_7B, plan, memory_of(QWEN_7B, plan)) for config in (CONFIG, measuring))
    assert found.disk - plain.disk == 2 * found.version


@pytest.mark.parametrize(("stage", "expected"), [(2, "--training.zero_stage 3"), (3, "--training.micro_batch_tokens")])
def test_a_change_starts_from_what_is_set(stage: int, expected: str) -> None:
    plan = replace(Plan.of(CONFIG, 4, on_gpus=True), zero_stage=stage)
    words = smallest_change(CONFIG, QWEN_14B, plan, MACHINE, lambda changed: memory_of(QWEN_14B, changed))
    assert expected in words


def test_versions_and_checkpoints_of_an_adapter_are_small_and_its_model_is_kept() -> None:
    size, plan = replace(QWEN_7B, adapter=20_000_000), Plan.of(CONFIG, 4, on_gpus=True)
    need = needs(CONFIG, size, plan, memory_of(size, plan))
    whole = QWEN_7B.parameters * 2
    assert (need.version, need.checkpoint, need.frozen) == (40_000_000, 240_000_000, whole)
    # Its own copy, that of the store, and the export.
    assert need.disk == 3 * 240_000_000 + 4 * 40_000_000 + 3 * whole
    assert needs(CONFIG, QWEN_7B, plan, memory_of(QWEN_7B, plan)).frozen == 0


def test_ranks_that_share_a_long_response_have_their_part_of_it() -> None:
    sampling = CONFIG.sampling.model_copy(update={"max_response_tokens": 31_744})
    config = CONFIG.model_copy(update={"sampling": sampling})
    size = replace(QWEN_7B, heads=28)
    plan = Plan.of(config, 4, on_gpus=True)
    assert (plan.length, plan.tokens, plan.own_tokens) == (32_768, 32_768, 32_768)
    shared = replace(plan, sequence_parallel=2)
    assert (shared.tokens, shared.own_tokens) == (32_768, 16_384)
    assert (line := refusal(size, 4, replace(MACHINE, gpu=70 * 10**9), config))
    assert line.endswith("; --training.sequence_parallel 2 (67.5 GB each) would fit")


def test_the_number_of_ranks_that_share_divides_ranks_and_heads() -> None:
    with pytest.raises(ConfigError, match=r"sequence_parallel = 3 does not divide 4 ranks; take 1, 2 or 4$"):
        require_sequence_parallel(3, 4, "ranks")
    require_sequence_parallel(1, 1, "ranks")


def test_on_a_cpu_fewer_tokens_than_the_least_of_a_gpu_are_named() -> None:
    config = RunConfig.model_validate(
        {
            "model": {"dtype": "float32", "gradient_checkpointing": False},
            "data": {"max_prompt_tokens": 100},
            "sampling": {"max_response_tokens": 200},
        }
    )
    plan = Plan.of(config, 1, on_gpus=False)
    small = ModelSize(100_000_000, 10_000_000)
    half = replace(plan, micro_batch_tokens=512)
    machine = replace(MACHINE, gpu=None, host=needs(config, small, half, memory_of(small, half)).host)
    line = told(config, small, plan, machine, lambda changed: memory_of(small, changed))
    assert line is not None
    assert line.endswith("; --training.micro_batch_tokens 512 would fit")
