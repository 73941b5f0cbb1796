"""What is compared: each arm is the demo's run with another algorithm, or another lag."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dcpo_async.config.loading import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo.toml"
Settings = Mapping[str, object]

UPDATES = 4
COMMON: Settings = {
    # The demo solves its task after two visits of each prompt; at this rate it takes all six.
    "training.learning_rate": 2e-4,
    "sampling.group_size": 8,
    # Without lag, only a batch of several updates gives the clip something to do.
    "algorithm.updates_per_batch": UPDATES,
    "lag.publish_interval": UPDATES,
    "lag.max_lag": 0,
}
OVERLONG_SHARE = 512 / 3072
"""DAPO's buffer as a share of the longest response, in configs/dapo.toml."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A configuration of the comparison.

    Attributes:
        preset: file in configs/ whose [algorithm] it takes.
        overrides: settings that differ besides, by their dotted names.
    """

    name: str
    preset: str = "dcpo-qwen2.5-math-7b"
    overrides: Settings = field(default_factory=dict)


ALGORITHMS = (
    Arm("DCPO"),
    Arm("GRPO", "grpo"),
    Arm("DAPO", "dapo"),
    Arm("GSPO", "gspo"),
    Arm("GSPO wider", "gspo", {"algorithm.epsilon_low": 0.03, "algorithm.epsilon_high": 0.04}),
    Arm("DAC only", "dac-only"),
    Arm("SAS only", "sas-only"),
    Arm("OTM only", "otm-only"),
)


def _proximal(lag: int, correction: str) -> Arm:
    """Anchored on the learner's own log-probs at the start of a batch of two updates; needs an even lag."""
    overrides: Settings = {
        "lag.max_lag": lag,
        "algorithm.updates_per_batch": 2,
        "lag.publish_interval": 2,
        "algorithm.old": "proximal",
        "algorithm.correction": correction,
    }
    return Arm(f"lag {lag} proximal {correction}", overrides=overrides)


LAGS = (
    *(
        Arm(f"lag {lag}", overrides={"lag.max_lag": lag, "algorithm.updates_per_batch": 1, "lag.publish_interval": 1})
        for lag in (0, 1, 4, 8)
    ),
    *(_proximal(lag, "none") for lag in (0, 4, 8)),
    *(_proximal(lag, "truncated") for lag in (4, 8)),
    _proximal(8, "masked"),
)
"""The default, which anchors on the engine's log-probs, and the corrections of the other anchor. Without lag these are
one and the same; with two updates to a batch there is no lag of 1."""

# Of 8 responses to each of two visits all are right, or none: the prompt rests.
RESTS: Settings = {"data.selection": "pass_rate", "data.selection_bound": 0.2}
SOLVED_REST: Settings = {**RESTS, "data.selection": "solved"}
SELECTIONS = (
    Arm("every prompt"),
    Arm("rests", overrides=RESTS),
    Arm("solved rest", overrides=SOLVED_REST),
    Arm("GRPO every prompt", "grpo"),
    Arm("GRPO rests", "grpo", RESTS),
    Arm("GRPO solved rest", "grpo", SOLVED_REST),
)
"""All prompts, and without those as good as solved, or those and the hopeless: DCPO learns a little of them."""

SUITES = {"algorithms": ALGORITHMS, "lag": LAGS, "selection": SELECTIONS}


def settings_of(arm: Arm, steps: int, others: Settings) -> dict[str, object]:
    """What an arm's runs set over configs/demo.toml, by dotted name; seed and places apart.

    Args:
        steps: optimizer steps of a run; every version that it publishes is kept.
        others: settings of all arms, which come last.
    """
    length = {"training.max_steps": steps, "checkpoint.interval_steps": steps, "lag.keep_versions": steps + 2}
    return {
        **COMMON,
        **length,
        **algorithm_of(arm, load_config(DEMO).sampling.max_response_tokens),
        **arm.overrides,
        **others,
    }


def algorithm_of(arm: Arm, max_response_tokens: int) -> dict[str, object]:
    """What an arm's preset says under [algorithm], by dotted name; lengths in proportion to the longest response."""
    preset = load_config(CONFIGS / f"{arm.preset}.toml")
    algorithm = preset.algorithm.model_dump(exclude_defaults=True)
    if "overlong_buffer_tokens" in algorithm:
        algorithm["overlong_buffer_tokens"] = int(OVERLONG_SHARE * max_response_tokens)
    return {f"algorithm.{name}": value for name, value in algorithm.items()}


def words(settings: Settings) -> list[str]:
    """Settings as words of the command line."""
    plain = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}
    return [word for name, value in plain.items() for word in (f"--{name}", value)]
