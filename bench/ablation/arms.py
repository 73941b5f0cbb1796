"""What is compared: each arm is the demo's run with another algorithm, or another lag."""

from dataclasses import dataclass
from pathlib import Path

from dcpo_async.config import AlgorithmSettings, RunConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo.toml"
UPDATES = 4
"""U of all arms: without lag, only a batch of several updates gives the clip something to do."""
OVERLONG_SHARE = 512 / 3072
"""DAPO's buffer as a share of the longest response, in configs/dapo.toml."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A configuration of the comparison.

    Attributes:
        preset: file in configs/ whose [algorithm] it takes.
        overrides: what differs besides, as words of the command line.
    """

    name: str
    preset: str
    overrides: tuple[str, ...] = ()


ALGORITHMS = (
    Arm("DCPO", "dcpo-qwen2.5-math-7b"),
    Arm("GRPO", "grpo"),
    Arm("DAPO", "dapo"),
    Arm("GSPO", "gspo"),
    Arm("DAC only", "dac-only"),
    Arm("SAS only", "sas-only"),
    Arm("OTM only", "otm-only"),
)


def _lagging(lag: int) -> tuple[Arm, ...]:
    words = ("--lag.max_lag", str(lag))
    single = (*words, "--algorithm.updates_per_batch", "1", "--lag.publish_interval", "1")
    double = (*words, "--algorithm.updates_per_batch", "2", "--lag.publish_interval", "2")
    proximal = (*double, "--algorithm.old", "proximal")
    return (
        Arm(f"lag {lag}, default", ALGORITHMS[0].preset, single),
        Arm(f"lag {lag}, proximal, none", ALGORITHMS[0].preset, (*proximal, "--algorithm.correction", "none")),
        Arm(f"lag {lag}, proximal, truncated", ALGORITHMS[0].preset, proximal),
        Arm(f"lag {lag}, proximal, masked", ALGORITHMS[0].preset, (*proximal, "--algorithm.correction", "masked")),
    )


SUITES = {"algorithms": ALGORITHMS, "lag": tuple(arm for lag in (0, 1, 4, 8) for arm in _lagging(lag))}


def settings_of(arm: Arm, folder: Path, start: Path, seed: int, steps: int, address: str) -> list[str]:
    """Overrides of the demo's configuration for one run of an arm.

    Args:
        folder: of the run.
        start: of the warm model and its problems.
        steps: optimizer steps of the run.
        address: where its learner listens.
    """
    words = ["--folder", str(folder), "--seed", str(seed), "--network.listen", address]
    words += ["--model.path", str(start / "model"), "--data.source", str(start / "train.jsonl")]
    words += ["--training.max_steps", str(steps), "--checkpoint.interval_steps", str(steps)]
    words += ["--sampling.group_size", "8", "--lag.keep_versions", str(steps + 2)]
    words += ["--algorithm.updates_per_batch", str(UPDATES), "--lag.publish_interval", str(UPDATES)]
    words += ["--lag.max_lag", "0"]
    return [*words, *_algorithm_words(arm.preset), *arm.overrides]


def _algorithm_words(preset: str) -> list[str]:
    """What a preset's [algorithm] says, with lengths in proportion to the demo's short responses."""
    demo: RunConfig = load_config(DEMO)
    values = load_config(CONFIGS / f"{preset}.toml").algorithm.model_dump(exclude_defaults=True)
    if "overlong_buffer_tokens" in values:
        values["overlong_buffer_tokens"] = int(OVERLONG_SHARE * demo.sampling.max_response_tokens)
    assert values.keys() <= AlgorithmSettings.model_fields.keys()
    return [word for name, value in values.items() for word in (f"--algorithm.{name}", str(value).lower())]
