"""The tasks that the demo can train on: what each begins with, and how long it trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.demo.chains import ChainSizes
from dcpo_async.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
CHAIN_WARM_UP_STEPS = 800
BEYOND_THE_CHAIN = 5
"""Tokens of the longest response beside one for each state: a box, the end, and two for a model that errs."""


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One task.

    Attributes:
        config: of its run.
        settings: words of the run that the file does not have.
        warm_up: module that writes problems and model, and its words beside folder, seed and steps.
        warm_up_steps: optimizer steps of the supervised warm-up, where nothing else is asked for.
        has_facts: what was learned can be asked for fact by fact.
    """

    config: Path
    settings: tuple[str, ...]
    warm_up: tuple[str, ...]
    warm_up_steps: int
    has_facts: bool


def demo_task(name: str, sizes: Sequence[str]) -> DemoTask:
    """A task by its name, with sizes as NAME=VALUE; raises ConfigError for sizes that it does not have."""
    if name == "chains":
        chosen = ChainSizes.read(sizes)
        longest = str(chosen.longest + BEYOND_THE_CHAIN)
        return DemoTask(
            config=CONFIGS / "chains.toml",
            # Each of the 640 problems comes back about 17 times.
            settings=("--training.max_steps", "700", "--sampling.max_response_tokens", longest),
            warm_up=("dcpo_async.demo.chain_model", "--sizes", *chosen.words),
            warm_up_steps=CHAIN_WARM_UP_STEPS,
            has_facts=True,
        )
    if sizes:
        raise ConfigError(f"--sizes {' '.join(sizes)}: only --task chains has sizes")
    return DemoTask(CONFIGS / "demo.toml", (), ("dcpo_async.demo.warmup",), 250, has_facts=False)
