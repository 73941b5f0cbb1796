"""What is compared on chains: each arm is the run of configs/chains.toml with another algorithm, lag or selection."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.ablation.arms import CONFIGS, RESTS, SOLVED_REST, Arm, Settings, algorithm_of, words
from dcpo_async.config.loading import load_config
from dcpo_async.demo.chains import ChainSizes
from dcpo_async.demo.tasks import BEYOND_THE_CHAIN
from dcpo_async.errors import ConfigError

CONFIG = CONFIGS / "chains.toml"
SETTABLE = {
    "algorithm": frozenset[str](),
    "lag": frozenset({"max_lag", "publish_interval"}),
    "sampling": frozenset({"group_size", "max_response_tokens"}),
    "data": frozenset({"selection", "selection_bound", "selection_half_life_visits", "selection_look_again_epochs"}),
    "training": frozenset(
        {
            "groups_per_step",
            "warmup_steps",
            "schedule",
            "schedule_steps",
            "final_rate_share",
            "weight_decay",
            "betas",
            "gradient_clip",
            "measured_share",
        }
    ),
}
"""What can be set for all arms, by table; without names all of it. The rest shapes nothing here, or is an arm's own."""


@dataclass(frozen=True, slots=True)
class ChainArm(Arm):
    """A configuration of the comparison on chains.

    Attributes:
        tuned_as: arm of ALGORITHMS whose learning rate it takes; "" for its own.
        rate_factor: what that rate is multiplied by.
        sides: which bounds of the dynamic clip it has, "both", or "upper" or "lower" beside GRPO's fixed one.
    """

    tuned_as: str = ""
    rate_factor: float = 1.0
    sides: str = "both"


ALGORITHMS = (
    ChainArm("DCPO"),
    ChainArm("GRPO", "grpo"),
    ChainArm("SAS only", "sas-only"),
    ChainArm("DAC only", "dac-only"),
    ChainArm("DAPO", "dapo"),
    ChainArm("GSPO", "gspo", {"algorithm.epsilon_low": 0.03, "algorithm.epsilon_high": 0.04}),
    ChainArm("GSPO as published", "gspo"),
    ChainArm("CISPO", "cispo"),
    ChainArm("Dr. GRPO", "dr-grpo"),
    ChainArm("RLOO", "rloo"),
    ChainArm("fading 1", overrides={"algorithm.half_life_visits": 1.0}),
    ChainArm("fading 4", overrides={"algorithm.half_life_visits": 4.0}),
    ChainArm("SAS, upper side", sides="upper"),
    ChainArm("SAS, lower side", sides="lower"),
)
"""Fading is DCPO whose earlier visits weigh half as much after each visit, or after four."""


def _lag(lag: int, factor: int, correction: str | None) -> ChainArm:
    """Anchored on the engine's log-probs, or, where a correction is named, on the learner's own."""
    overrides: dict[str, object] = {"lag.max_lag": lag}
    if correction is not None:
        overrides |= {"algorithm.old": "proximal", "algorithm.correction": correction}
    anchor = "" if correction is None else f" proximal {correction}"
    rate = "" if factor == 1 else f" {factor}x rate"
    return ChainArm(f"lag {lag}{anchor}{rate}", overrides=overrides, tuned_as="DCPO", rate_factor=factor)


LAGS = tuple(
    _lag(lag, factor, correction)
    for factor in (1, 3)
    for lag in (0, 4, 16, 32)
    for correction in ((None,) if lag == 0 else (None, "none", "truncated", "masked"))
)
"""Without lag all anchors are one and the same."""

SELECTIONS = (
    ChainArm("DCPO every prompt", tuned_as="DCPO"),
    ChainArm("DCPO rests", overrides=RESTS, tuned_as="DCPO"),
    ChainArm("DCPO solved rest", overrides=SOLVED_REST, tuned_as="DCPO"),
    ChainArm("GRPO every prompt", "grpo", tuned_as="GRPO"),
    ChainArm("GRPO rests", "grpo", RESTS, tuned_as="GRPO"),
    ChainArm("GRPO solved rest", "grpo", SOLVED_REST, tuned_as="GRPO"),
)

SUITES: Mapping[str, tuple[ChainArm, ...]] = {"algorithms": ALGORITHMS, "lag": LAGS, "selection": SELECTIONS}


def settings_of(arm: ChainArm, sizes: ChainSizes, rate: float, others: Settings) -> dict[str, object]:
    """What an arm's runs set over configs/chains.toml, by dotted name; seed and places apart.

    Args:
        rate: the learning rate of the arm that it is tuned as.
        others: settings of all arms, which come last.
    """
    longest = sizes.longest + BEYOND_THE_CHAIN
    return {
        "sampling.max_response_tokens": longest,
        "training.learning_rate": rate * arm.rate_factor,
        **algorithm_of(arm, longest),
        **arm.overrides,
        **others,
    }


def check(arm: ChainArm, sizes: ChainSizes, others: Settings) -> None:
    """Raise ConfigError where an arm's settings cannot run on a task of these sizes, or would change nothing."""
    for name in others:
        table, _, setting = name.partition(".")
        if table not in SETTABLE or (SETTABLE[table] and setting not in SETTABLE[table]) or setting == "kl_coefficient":
            raise ConfigError(
                f"--{name}: it would change nothing here, where a model is sampled at temperature 1, is graded by its "
                "box and trains without a reference, or it is what arms and seeds differ in"
            )
    load_config(CONFIG, words(settings_of(arm, sizes, 1e-4, others))).require_window(sizes.prompts)
