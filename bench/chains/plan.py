"""What is compared, and where it lies: the warm starts, the runs that choose a learning rate, and those that count."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.ablation.arms import Settings
from bench.chains.arms import ALGORITHMS, ChainArm
from dcpo_async.demo.chains import ChainSizes
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.run_folder import RunFolder

REVISION = 2
"""Of what a run does: one more where the same settings give another run, so that those of before do not go with it."""
RATES_NAME = "rates.json"
START_NAME = "start.json"
"""What was measured of a warm start; written last."""
FACTS_NAME = "facts.json"
"""Beside a run's evaluation: the facts that are known, and the entropy of held-out responses."""
SET = "held_out"
TENTHS = 10
"""Of the old probability q: metric `tokens_q0` is of the tokens with q below 0.1."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an arm.

    Attributes:
        rate: the learning rate of the arm that it is tuned as.
        folder: of the run.
    """

    arm: ChainArm
    seed: int
    rate: float
    folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison.

    Attributes:
        out: folder of everything.
        suite: name of what is compared, for the report's file.
        sizes: of the task.
        warm_up_steps: of the supervised training before.
        responses: that each run generates.
        every: optimizer steps between two measurements.
        samples, last_samples: responses to each held-out problem, and at the beginning and the end.
        rates: learning rates to choose among; with a single one there is no choice.
        rate_seeds: of the runs that choose, which count for nothing else.
        at_once: runs that share the machine.
        overrides: settings of all runs, by their dotted names.
    """

    out: Path
    suite: str
    arms: tuple[ChainArm, ...]
    seeds: tuple[int, ...]
    sizes: ChainSizes
    warm_up_steps: int
    responses: int
    every: int
    samples: int
    last_samples: int
    rates: tuple[float, ...]
    rate_seeds: tuple[int, ...]
    at_once: int
    overrides: Settings

    def start(self, seed: int) -> Path:
        """Folder of the warm start that all arms share under a seed."""
        return self.out / f"start-seed{seed}"

    def log(self, name: str) -> Path:
        """What a process prints."""
        return self.out / "logs" / f"{name}.log"

    @property
    def tuned(self) -> tuple[ChainArm, ...]:
        """The arms whose learning rate is chosen."""
        names = {arm.tuned_as or arm.name for arm in self.arms}
        return tuple(arm for arm in ALGORITHMS if arm.name in names)

    def trials(self, seed: int) -> list[Run]:
        """The runs that choose learning rates, under one of their seeds; none where there is one rate alone."""
        rates = self.rates if len(self.rates) > 1 else ()
        return [
            Run(arm, seed, rate, self.out / "rates" / f"{_slug(arm.name)}-{rate:g}-seed{seed}")
            for arm in self.tuned
            for rate in rates
        ]

    def runs(self, seed: int) -> list[Run]:
        """The runs that count, under a seed; raises ConfigError while the learning rate of an arm is not chosen."""
        rates = self.chosen_rates()
        if open_arms := [arm.name for arm in self.tuned if arm.name not in rates]:
            raise ConfigError(
                f"the learning rates of {', '.join(open_arms)} are not chosen yet: run without --report-only"
            )
        return [
            Run(arm, seed, rates[arm.tuned_as or arm.name], self.out / f"{_slug(arm.name)}-seed{seed}")
            for arm in self.arms
        ]

    def at_the_edge(self) -> dict[str, float]:
        """The arms whose learning rate was chosen from an end of those tried: a better one may lie beyond it."""
        ends = {min(self.rates), max(self.rates)} if len(self.rates) > 1 else set[float]()
        chosen, names = self.chosen_rates(), {arm.name for arm in self.tuned}
        return {name: rate for name, rate in chosen.items() if name in names and rate in ends}

    def chosen_rates(self) -> dict[str, float]:
        """The learning rate of each tuned arm, by its name."""
        if len(self.rates) == 1:
            return dict.fromkeys((arm.name for arm in self.tuned), self.rates[0])
        path = self.out / RATES_NAME
        found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def settle(self) -> None:
        """Note what shapes all runs of the folder, or hold a later call to it; raises ConfigError where they differ."""
        path = self.out / "plan.json"
        wanted = {
            "revision": REVISION,
            "sizes": self.sizes.words,
            "warm_up_steps": self.warm_up_steps,
            "responses": self.responses,
            "every": self.every,
            "samples": [self.samples, self.last_samples],
            "rates": list(self.rates),
            "rate_seeds": list(self.rate_seeds),
            "overrides": dict(self.overrides),
        }
        if path.exists() and (found := json.loads(path.read_text())) != wanted:
            raise ConfigError(f"{self.out} holds runs of {found}, now it is {wanted}: choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end there: its status is written last."""
    return RunFolder(folder).status.exists()


def _slug(name: str) -> str:
    return name.replace(",", "").replace(".", "").replace(" ", "-").lower()
