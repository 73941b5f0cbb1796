"""The comparison on chains: its arms, its sampler, and which prompts it visits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.ablation.arms import words
from bench.chains.arms import ALGORITHMS, CONFIG, LAGS, SELECTIONS, ChainArm, check, settings_of
from bench.chains.command import parser_of, plan_of
from bench.chains.plan import RATES_NAME, SET
from bench.chains.run.__main__ import train
from bench.chains.run.clips import one_sided
from bench.chains.run.measuring import encoded
from bench.chains.run.policy import Policy
from bench.chains.run.rollout import Rollout, Visits
from bench.chains.run.sampling import reader_of, sampled_groups
from bench.chains.table import Found
from dcpo_async.algorithm import clip_bounds
from dcpo_async.comparison.runs import ComparedRun, read_run
from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.demo.chain_model import write_start
from dcpo_async.demo.chains import ChainSizes, ChainTask
from dcpo_async.demo.imitation import example_encoder
from dcpo_async.errors import ConfigError
from learner.coordinator.shards import step_samples
from learner.trainer.passes import Passes

SIZES = ChainSizes(states=4, operations=3, longest=2, prompts=16, held_out=4)
TASK = ChainTask.drawn(SIZES, 0)
FEW = ("--training.groups_per_step", "2", "--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(TASK, folder, steps=2)
    return folder


def small(start: Path, *more: str) -> RunConfig:
    config = ["--model.path", str(start / "model"), "--checkpoint.interval_steps", "2", *FEW, *more]
    return load_config(CONFIG, config)


def test_sampled_log_probs_are_those_of_the_policy_that_trains(start: Path) -> None:
    config = small(start)
    policy = Policy(config)
    prompts = encoded(config, TASK.train, policy.tokenizer)
    rollout = Rollout(config, prompts, reader_of(policy.tokenizer), policy.tokenizer.eos_token_id)
    samples = step_samples(rollout.batch(policy.sampler, 0), 0, config, {0: 0})
    found = Passes(config.algorithm, policy).logprobs(samples)  # type: ignore[arg-type]
    assert len(samples) == 4 * 8
    for sample, logprobs in zip(samples, found, strict=True):
        np.testing.assert_allclose(sample.behavior_logprobs, logprobs, atol=1e-5)
    spent = rollout.spent()
    assert spent["generated_responses"] == 32
    assert spent["generated_tokens"] == sum(len(sample.token_ids) for sample in samples)


def test_prompts_are_those_that_the_warm_start_was_taught(start: Path) -> None:
    policy = Policy(small(start))
    encode = example_encoder(policy.tokenizer)
    for prompt in encoded(small(start), TASK.train, policy.tokenizer):
        assert list(prompt.token_ids) == encode((prompt.problem, ""))[0]


def test_a_response_ends_with_its_first_end_token_or_is_cut(start: Path) -> None:
    policy = Policy(small(start))
    end, generator = policy.tokenizer.eos_token_id, torch.Generator().manual_seed(0)
    groups = sampled_groups(policy.sampler, [[5, 6], [7], [6, 5]], 40, max_tokens=6, end_id=end, generator=generator)
    responses = [response for group in groups for response in group]
    assert [len(group) for group in groups] == [40, 40, 40]
    for response in responses:
        assert (response.token_ids[:-1] != end).all()
        assert response.is_cut == (response.token_ids[-1] != end)
        assert len(response.token_ids) == 6 or not response.is_cut
        assert len(response.logprobs) == len(response.token_ids)
    assert {response.is_cut for response in responses} == {True, False}


def test_an_update_of_the_policy_is_one_of_the_model_that_samples(start: Path) -> None:
    policy = Policy(small(start))
    before = policy.sampler.get_input_embeddings().weight.detach().clone()
    rows = torch.tensor([[5, 6, 7]])
    policy.sampler(input_ids=rows).logits.sum().backward()
    policy.update(step=0)
    assert not torch.equal(policy.sampler.get_input_embeddings().weight, before)


def test_a_step_without_a_gradient_goes_on_by_momentum_as_a_rank_that_has_nothing_to_train(start: Path) -> None:
    policy = Policy(small(start))
    policy.sampler(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    policy.update(step=0)
    before = policy.sampler.get_input_embeddings().weight.detach().clone()
    norm, _ = policy.update(step=1)
    assert norm == 0
    assert not torch.equal(policy.sampler.get_input_embeddings().weight, before)


def test_batches_are_as_old_as_the_lag_and_no_two_measurements_have_cost_the_same(start: Path, tmp_path: Path) -> None:
    config = small(start, "--folder", str(tmp_path), "--lag.max_lag", "4")
    # 4 groups of 8 to a batch: six batches of two steps, the last two of which train when all is generated.
    train(start, config, responses=6 * 32, every=2, samples=1, last_samples=2)
    run = read_run("lag 4", tmp_path)
    assert [line["lag_mean"] for line in run.metrics] == [0, 0, 2, 2, *[4] * 8]
    assert [line["generated_responses"] for line in run.metrics] == [96, 96, 128, 128, 160, 160, *[192] * 6]
    assert [point.step for point in run.held_out] == [0, 2, 4, 6, 12]
    costs = run.accuracy(SET, "sampled", "responses").x
    assert costs == (0, 96, 128, 160, 192)


def test_a_prompt_that_is_solved_rests_until_it_is_looked_at_again(start: Path) -> None:
    config = small(start, "--data.selection", "pass_rate", "--data.selection_bound", "0.3")
    visits = Visits(config, num_prompts=8)
    for _ in range(8):
        _, index, visit = visits.next()
        visits.counted(index, visit, (1.0,) * 8 if index == 3 else (1.0, 0.0) * 4)
    second = [visits.next()[1] for _ in range(7)]
    assert sorted(second) == [0, 1, 2, 4, 5, 6, 7]
    assert visits.num_rested <= 1


@pytest.mark.parametrize("sides", ["upper", "lower"])
def test_a_clip_of_one_side_is_dynamic_there_and_fixed_on_the_other(sides: str) -> None:
    old = torch.tensor([0.01, 0.5, 0.9]).log()
    bounds = one_sided(sides, load_config(CONFIG).algorithm)
    assert bounds is not None
    low, high = bounds(old)
    dynamic_low, dynamic_high = clip_bounds(old)
    expected = (torch.full((3,), 0.8), dynamic_high) if sides == "upper" else (dynamic_low, torch.full((3,), 1.2))
    torch.testing.assert_close((low, high), expected)


@pytest.mark.parametrize("arm", [*ALGORITHMS, *LAGS, *SELECTIONS], ids=lambda arm: arm.name)
def test_every_arm_can_run_on_the_task_as_it_is(arm: ChainArm) -> None:
    check(arm, ChainSizes(), {})


def test_arms_of_lag_have_the_lag_the_rate_and_the_correction_of_their_names() -> None:
    assert len({arm.name for arm in LAGS}) == len(LAGS) == 26
    for arm in LAGS:
        config = load_config(CONFIG, words(settings_of(arm, ChainSizes(), 2e-4, {})))
        assert config.lag.max_lag == int(arm.name.split()[1])
        assert config.training.learning_rate == pytest.approx(6e-4 if "3x" in arm.name else 2e-4)
        assert ("proximal" in arm.name) == (config.algorithm.old == "proximal")
        assert "proximal" not in arm.name or config.algorithm.correction in arm.name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--only PPO", "no such arm: PPO"),
        ("--every 6", "give a multiple of 4"),
        ("--last-samples 8", "pass@32 needs at least 32"),
        ("--seeds 1 100", "none may be among --rate-seeds"),
        ("--rates 0", "a learning rate is above 0"),
        ("--sizes prompts=40", "fewer than the admission window of 64"),
    ],
)
def test_a_comparison_that_cannot_be_carried_out_is_refused_before_it_begins(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(parser_of().parse_args(line.split()), {})


@pytest.mark.parametrize(
    "name",
    [
        "sampling.temperature",
        "grading.format_penalty",
        "algorithm.kl_coefficient",
        "data.system_prompt",
        "training.learning_rate",
        "seed",
    ],
)
def test_a_setting_that_no_run_would_heed_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}: it would change nothing"):
        plan_of(parser_of().parse_args([]), {name: "0.5"})


def test_settings_that_shape_all_runs_can_be_set() -> None:
    overrides = {"training.gradient_clip": "0.5", "algorithm.ddof": "0", "lag.max_lag": "4"}
    assert plan_of(parser_of().parse_args([]), overrides).overrides == overrides


def test_a_folder_of_runs_that_another_revision_made_is_refused(tmp_path: Path) -> None:
    plan = plan_of(parser_of().parse_args(["--out", str(tmp_path)]), {})
    plan.settle()
    plan.settle()
    noted = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(noted | {"revision": noted["revision"] - 1}))
    with pytest.raises(ConfigError, match="choose another --out"):
        plan.settle()


def test_what_dynamic_sampling_discards_counts_among_what_was_generated(tmp_path: Path) -> None:
    lines = ({"rur": 1.0, "responses": 16.0, "generated_responses": 48.0},) * 2
    run = ComparedRun("DAPO", tmp_path, "run", True, RunConfig(folder=tmp_path), lines, (), ())
    assert Found(run, [], {}).useful == pytest.approx(32 / 48)


def test_arms_whose_rate_is_at_an_end_of_those_tried_are_named(tmp_path: Path) -> None:
    plan = plan_of(parser_of().parse_args(["--out", str(tmp_path), "--only", "GRPO", "DAPO"]), {})
    (tmp_path / RATES_NAME).write_text(json.dumps({"GRPO": 2e-4, "DAPO": 4e-4, "DCPO": 1e-4}))
    assert plan.at_the_edge() == {"DAPO": 4e-4}
