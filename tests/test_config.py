"""Settings: defaults, bounds, unknown keys, and that every one of them is read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.errors import ConfigError

ROOT = Path(__file__).parents[1]


def sections(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every table of the configuration with its path."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, (*prefix, name))


SECTIONS = list(sections(RunConfig))
LEAVES = [
    (*path, name)
    for path, model in SECTIONS
    for name, field in model.model_fields.items()
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
]


PROXIMAL = ["--algorithm.old", "proximal", "--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2"]


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_the_papers_headline_run() -> None:
    config = load_config()
    assert config.model.path == "Qwen/Qwen2.5-Math-7B"
    assert config.data.source == "dapo-math-17k"
    assert (config.sampling.group_size, config.sampling.temperature) == (16, 1.0)
    assert (config.data.max_prompt_tokens, config.sampling.max_response_tokens) == (1024, 3072)
    algorithm, training = config.algorithm, config.training
    assert (algorithm.epsilon_low, algorithm.epsilon_high, algorithm.max_ratio) == (0.16, 0.20, 10.0)
    assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (1e-6, 10, 0.1)
    assert (training.groups_per_step, training.gradient_clip) == (64, 1.0)
    assert (config.lag.max_lag, config.lag.publish_interval, algorithm.updates_per_batch) == (4, 1, 1)


@pytest.mark.parametrize(
    "name", ["grpo", "dapo", "gspo", "dr-grpo", "rloo", "cispo", "dac-only", "sas-only", "otm-only"]
)
def test_a_rivals_run_differs_from_the_headline_run_in_the_algorithm_alone(name: str) -> None:
    rival, headline = load_config(ROOT / f"configs/{name}.toml"), load_config()
    same_algorithm = {"algorithm": headline.algorithm, "folder": headline.folder}
    assert rival.algorithm != headline.algorithm
    assert rival.model_copy(update=same_algorithm) == headline


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("dac-only", {"clip": "dynamic", "epsilon_low": 0.16}),
        ("sas-only", {"advantage": "smooth"}),
        ("otm-only", {"otm_scale": "sum"}),
    ],
)
def test_an_ablation_is_grpo_with_one_part_of_dcpo(name: str, differing: dict[str, object]) -> None:
    grpo = load_config(ROOT / "configs/grpo.toml").algorithm
    assert load_config(ROOT / f"configs/{name}.toml").algorithm == grpo.model_copy(update=differing)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["--algorithm.ratio", "sequence"], "needs algorithm.clip = fixed"),
        (["--algorithm.advantage", "group", "--algorithm.half_life_visits", "8"], "needs algorithm.advantage = smooth"),
        (["--algorithm.loss_mean", "token", "--algorithm.otm_scale", "sum"], "set it to mean"),
        (["--algorithm.overlong_buffer_tokens", "4000"], "at most sampling.max_response_tokens"),
        (["--algorithm.advantage", "centered", "--algorithm.half_life_visits", "8"], "algorithm.advantage = smooth"),
        (["--algorithm.loss_mean", "constant", "--algorithm.otm_scale", "sum"], "constant set it to mean"),
        (
            ["--algorithm.loss", "weighted", "--algorithm.ratio", "sequence", "--algorithm.clip", "fixed"],
            "ratio = token",
        ),
        (["--training.schedule", "cosine"], "set training.schedule_steps, or training.max_steps"),
        (["--training.schedule", "linear", "--training.max_steps", "10"], "come to its end by step 10"),
        (["--training.schedule_steps", "100"], "would not be read"),
        (["--adapter.alpha", "16"], "adapter.alpha would not be read, it needs adapter.rank"),
        (["--adapter.target_modules", '["q_proj"]'], "adapter.target_modules would not be read, it needs adapter.rank"),
        (["--adapter.rank", "513"], "adapter.rank: Input should be less than or equal to 512"),
        (["--adapter.rank", "8", "--adapter.target_modules", '["q proj"]'], "adapter.target_modules.0: "),
        (["--adapter.rank", "8", "--adapter.dropout", "0.1"], "adapter.dropout"),
        (["--training.final_rate_share", "0.5"], "would not be read"),
    ],
)
def test_parts_of_an_algorithm_that_do_not_fit_are_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(None, overrides)


@pytest.mark.parametrize("path", [path for path, _ in SECTIONS], ids=".".join)
def test_an_unknown_key_is_an_error_at_every_level(tmp_path: Path, path: tuple[str, ...]) -> None:
    table = f"[{'.'.join(path)}]\n" if path else ""
    with pytest.raises(ConfigError, match=re.escape(".".join((*path, "no_such_key")) + ": unknown setting")):
        load_config(written(tmp_path, f"{table}no_such_key = 1\n"))


def test_an_unknown_setting_on_the_command_line_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"training\.lr"):
        load_config(overrides=["--training.lr", "1e-5"])


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[training]\nlearning_rate = 1e-4\nmax_steps = 7\n")
    config = load_config(path, ["--training.learning_rate", "1e-5"])
    assert (config.training.learning_rate, config.training.max_steps) == (1e-5, 7)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--lag.max_lag", "-1"], "lag.max_lag: .*greater than or equal to 0, found '-1'"),
        (["--training.learning_rate", "fast"], "training.learning_rate: .*valid number.*found 'fast'"),
        (["--training.learning_rate", "nan"], "training.learning_rate: .*finite"),
        (["--sampling.group_size", "1"], "sampling.group_size: .*greater than or equal to 2"),
        (["--training.zero_stage", "4"], "training.zero_stage: .* less than or equal to 3 or 'auto', found '4'$"),
        (["--lag.publish_interval", "6"], "lag.max_lag 4 is less than"),
        (
            ["--algorithm.correction", "masked"],
            "correction = masked would not be read, it needs algorithm.old = proximal",
        ),
        (["--algorithm.correction", "none"], "correction = none would not be read"),
        (["--algorithm.importance_cap", "7"], "importance_cap = 7.0 would not be read, it needs algorithm.correction"),
        ([*PROXIMAL, "--algorithm.importance_mask", "[0.2, 4]"], "it needs algorithm.correction = masked"),
        ([*PROXIMAL, "--algorithm.correction", "none", "--algorithm.importance_cap", "7"], "correction = truncated"),
        (
            [*PROXIMAL, "--algorithm.correction", "masked", "--algorithm.importance_mask", "[5, 0.5]"],
            "the first must not be above the second",
        ),
        (["--algorithm.old", "proximal"], "needs algorithm.updates_per_batch > 1"),
        (["--algorithm.updates_per_batch", "2"], "must be a multiple of algorithm.updates_per_batch 2"),
        (
            ["--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2", "--training.max_steps", "5"],
            "max_steps 5",
        ),
        (["--checkpoint.interval_steps", "null"], "both none: .*set one"),
        (
            ["--checkpoint.interval_minutes", "30", "--checkpoint.keep_every_steps", "100"],
            "keep_every_steps 100 needs checkpoint.interval_steps",
        ),
        (["--checkpoint.interval_minutes", "0"], "interval_minutes: .*greater than 0"),
        (["--network.silence_seconds", "4"], "at least twice network.heartbeat_seconds"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(overrides=words)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_malformed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such configuration file"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(written(tmp_path, "training = ["))


@pytest.mark.parametrize(
    ("words", "steps", "minutes"),
    [
        ([], 10, None),
        (["--checkpoint.interval_minutes", "30"], None, 30.0),
        (["--checkpoint.interval_minutes", "30", "--checkpoint.interval_steps", "100"], 100, 30.0),
    ],
)
def test_minutes_alone_replace_the_steps_between_checkpoints(
    words: list[str], steps: int | None, minutes: float | None
) -> None:
    config = load_config(overrides=words)
    for found in (config, RunConfig.model_validate_json(config.model_dump_json())):
        assert (found.checkpoint.interval_steps, found.checkpoint.interval_minutes) == (steps, minutes)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_can_be_loaded(path: Path) -> None:
    assert load_config(path).digest()


def test_the_digest_follows_the_result_and_not_the_place() -> None:
    digest = load_config().digest()
    assert load_config(overrides=["--folder", "elsewhere"]).digest() == digest
    assert load_config(overrides=["--seed", "1"]).digest() != digest


@pytest.mark.parametrize("leaf", LEAVES, ids=".".join)
def test_every_setting_is_read_by_somebody(leaf: tuple[str, ...]) -> None:
    sources = [path for part in ("dcpo_async", "actor", "learner") for path in (ROOT / part).rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources if path.name != "config.py")
    assert re.search(rf"\.{leaf[-1]}\b", text), f"nobody reads {'.'.join(leaf)}"


@pytest.mark.parametrize(("updates", "max_lag", "window"), [(1, 0, 2), (1, 4, 10), (4, 0, 8), (4, 3, 8), (4, 5, 16)])
def test_the_admission_window_is_of_whole_batches(updates: int, max_lag: int, window: int) -> None:
    words = ["--training.groups_per_step", "2", "--lag.max_lag", str(max_lag), "--checkpoint.interval_steps", "4"]
    words += ["--algorithm.updates_per_batch", str(updates), "--lag.publish_interval", str(updates)]
    config = load_config(overrides=words)
    assert config.admission_window == window


TWO_SOURCES = '[[data.sources]]\nsource = "gsm8k"\nweight = 2\n[[data.sources]]\nsource = "math"\nlevels = [5]\n'


def test_several_sources_are_tables_of_their_own(tmp_path: Path) -> None:
    data = load_config(written(tmp_path, TWO_SOURCES.replace("weight = 2", 'system_prompt = ""'))).data
    assert [(source.source, source.levels, source.system_prompt) for source in data.each_source] == [
        ("gsm8k", (), ""),
        ("math", (5,), None),
    ]
    (alone,) = load_config(overrides=["--data.source", "math", "--data.levels", "[3]"]).data.each_source
    assert (alone.source, alone.levels, alone.weight) == ("math", (3,), None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TWO_SOURCES, "data: sources: gsm8k has a weight and math has none; give each one, or none"),
        ('[data]\nlanguage = "en"\n' + TWO_SOURCES, "data: language would not be read beside sources; set it in each"),
        (TWO_SOURCES + "no_such_key = 1\n", "data.sources.1.no_such_key: unknown setting"),
        (TWO_SOURCES + "weight = 0\n", "data.sources.1.weight: Input should be greater than 0"),
        ("[[data.sources]]\nweight = 1\n", "data.sources.0.source: Field required"),
        (
            "[data]\nselection_bound = 0.2\n",
            "data: selection_bound would not be read, it needs selection = solved or",
        ),
    ],
)
def test_what_of_several_sources_would_not_be_read_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(written(tmp_path, text))


OWN = 'reward = "a:b"\n'


def test_a_source_is_graded_as_it_says_itself_and_else_as_the_run_is(tmp_path: Path) -> None:
    text = '[grading]\nextraction = "boxed"\n' + TWO_SOURCES.replace("weight = 2", 'name = "one"\nreward = "a:b"')
    config = load_config(written(tmp_path, text + 'name = "two"\nextraction = "last_number"\n'))
    one, two = config.grading_of("one"), config.grading_of("two")
    assert (one.reward, one.reward_range, two.reward) == ("a:b", (0, 1), None)
    assert (one.extraction, two.extraction, config.grading_of("").extraction) == ("boxed", "last_number", "boxed")
    assert config.has_own_reward
    alike = load_config(written(tmp_path, TWO_SOURCES.replace("weight = 2\n", "")))
    assert not alike.grading_by_source


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("reward_repeats = false\n", "data.sources: reward_repeats of math would not be read, it needs reward in its"),
        (OWN + 'extraction = "boxed"\n', "data.sources: extraction of math would not be read: its reward is given"),
        ('metadata_fields = ["level"]\n', "it needs reward in its table, or grading.reward"),
        ("gym_seed = 3\n", "data.sources: gym_seed would not be read, source is math"),
        (OWN + "[grading]\nreward_range = [-1, 1]\n", "which grades another source of this run, gives 0 and 1"),
        ("[grading]\nreward_range = [-1, 1]\n", "grading.reward_range would not be read, it needs grading.reward"),
        (OWN + "[grading]\nreward_repeats = false\n", "grading.reward_repeats would not be read, it needs"),
        (
            '[[data.sources]]\nsource = "reasoning-gym:chain_sum"\n[grading]\nreward = "a:b"\n',
            "say which of them grades it with reward = in its table",
        ),
        (
            OWN + '[[data.sources]]\nsource = "reasoning-gym:chain_sum"\nlanguage = "en"\n',
            "data.sources: language would not be read, source is reasoning-gym:chain_sum",
        ),
    ],
)
def test_rewards_of_sources_that_contradict_each_other_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    sources = TWO_SOURCES.replace("weight = 2\n", "")
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(written(tmp_path, sources + text))


def test_a_reward_that_grades_no_source_is_refused(tmp_path: Path) -> None:
    text = f'[[data.sources]]\nsource = "math"\n{OWN}[grading]\nreward = "a:c"\n'
    with pytest.raises(ConfigError, match=r"grading\.reward would not be read: every one of data\.sources has"):
        load_config(written(tmp_path, text))


def test_every_setting_says_what_it_does() -> None:
    assert all(model.model_fields[leaf[-1]].description for leaf in LEAVES for model in [dict(SECTIONS)[leaf[:-1]]])


def test_a_profile_of_some_steps_is_no_other_run() -> None:
    profiled = RunConfig(training={"profile": "3:5"})  # type: ignore[arg-type]
    assert profiled.digest() == RunConfig().digest()
    for steps in ("0", "3:", "a", "3-5"):
        with pytest.raises(ValidationError):
            RunConfig(training={"profile": steps})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"sequence_parallel_size": 2}, "sequence_parallel_size is not for this table; set training.sequence_parallel"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage .* set training.zero_stage instead"),
        ({"train_micro_batch_size_per_gpu": 4}, "set training.micro_batch_tokens instead"),
        ({"gradient_accumulation_steps": 4}, "set training.micro_batch_tokens"),
        ({"gradient_clipping": 0.5}, "set training.gradient_clip instead"),
        ({"gradient_allreduce_op": "sum"}, "gradients are summed over ranks"),
        ({"optimizer": {"type": "SGD"}}, "set training.learning_rate, training.betas and training.weight_decay"),
        ({"bf16": {"enabled": False}}, "bf16.enabled .* set model.dtype instead"),
        ({"activation_checkpointing": {}}, "set model.gradient_checkpointing instead"),
    ],
)
def test_what_the_run_decides_is_not_for_deepspeeds_table(options: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValidationError, match=setting):
        RunConfig(training={"deepspeed": options})  # type: ignore[arg-type]
    other = {"zero_optimization": {"reduce_bucket_size": 9}, "steps_per_print": 9, "bf16": {}}
    assert RunConfig(training={"deepspeed": other}).training.deepspeed == other  # type: ignore[arg-type]
