"""`dcpo demo`: from nothing to a model that DCPO has made better, with the two real services."""

import asyncio
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from dcpo_async.config.loading import load_config
from dcpo_async.demo.services import free_address, measure, run_to_end, train, warm_up
from dcpo_async.demo.tasks import demo_task
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.curves import plot_curves
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.live_table import read_status, run_table
from dcpo_async.processes import module_argv
from dcpo_async.run_folder import RunFolder

EVALUATION_SAMPLES = 8
MARKER = ".dcpo-demo"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line chose.

    Attributes:
        out: folder for everything that the demo makes; it must be new or an earlier demo's.
        engine: "vllm", or "scripted" for a look at the plumbing without a model's answers.
        with_control: run a second time with every advantage set to zero.
        seed: of problems, warm-up and run.
        warm_up_steps: optimizer steps of the supervised warm-up; None for those of the task.
        overrides: settings of the run by their dotted names.
        task: "largest" or "chains".
        sizes: of the task, NAME=VALUE.
    """

    out: Path
    engine: str
    with_control: bool
    seed: int
    warm_up_steps: int | None
    overrides: tuple[str, ...]
    task: str = "largest"
    sizes: tuple[str, ...] = ()


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the demo and return what `summary.json` holds.

    Raises:
        ConfigError: the output folder holds something else, or a setting is wrong.
        TrainerError, EngineError: a service failed; the message holds the end of its log.
    """
    return asyncio.run(Demo(options).run())


class Demo:
    """The stages of the demo, in order."""

    def __init__(self, options: DemoOptions) -> None:
        self.options, self.out, self.console = options, options.out, Console()
        self.started, self.task = time.monotonic(), demo_task(options.task, options.sizes)
        _prepare(self.out)
        self.words = self._settings("run", zero_advantages=False)
        # Checked before anything slow begins.
        self.config = load_config(self.task.config, self.words)

    async def run(self) -> dict[str, Any]:
        """Warm up, train, measure, and write down."""
        self._say(
            "1/4", "writing problems, and warming up a tiny model on guesses: it learns the format, not the answers"
        )
        await self._make_model()
        self._say(
            "2/4",
            f"training with DCPO for {self.config.training.max_steps} steps; services log to {self.out / 'logs'}",
        )
        await self._train(self.words, "DCPO")
        training_seconds = time.monotonic() - self.started
        models = {"before": self.out / "model", "after": RunFolder(self.config.folder).export}
        if self.options.with_control:
            self._say("2b", "control: the same run with every advantage set to zero")
            words = self._settings("control", zero_advantages=True)
            await self._train(words, "control, zero advantages")
            models["control"] = RunFolder(load_config(self.task.config, words).folder).export
        self._say(
            "3/4",
            f"measuring on held-out problems, {EVALUATION_SAMPLES} responses each, same sampling for all",
        )
        accuracies = await self._evaluate(models)
        facts = await self._read_facts(models) if self.task.has_facts else {}
        self._say("4/4", "writing curves and summary")
        return self._finish(accuracies, facts, training_seconds)

    def _say(self, stage: str, text: str) -> None:
        self.console.print(f"[bold]{stage}[/bold] [{time.monotonic() - self.started:5.0f} s] {text}", highlight=False)

    async def _make_model(self) -> None:
        with self.console.status("warm-up …"):
            options, log = self.options, self.out / "logs" / "warm-up.log"
            steps = options.warm_up_steps or self.task.warm_up_steps
            await warm_up(self.out, options.seed, steps, log, self.task.warm_up)

    def _settings(self, name: str, zero_advantages: bool) -> list[str]:
        """Overrides of the demo's configuration for one run."""
        return [
            *("--folder", str(self.out / name)),
            *("--seed", str(self.options.seed)),
            *("--model.path", str(self.out / "model")),
            *("--data.source", str(self.out / "train.jsonl")),
            *("--network.listen", free_address()),
            *("--algorithm.zero_advantages", str(zero_advantages).lower()),
            *self.task.settings,
            *self.options.overrides,
        ]

    async def _train(self, words: list[str], title: str) -> None:
        """Start the two services as any user would, watch them, and wait for the run's end."""
        with Live(console=self.console, refresh_per_second=2) as live:
            await train(
                self.task.config,
                words,
                self.out / "logs",
                ("--engine", self.options.engine),
                watch=lambda config: live.update(run_table(title, config.folder)),
            )

    async def _evaluate(self, models: dict[str, Path]) -> dict[str, float]:
        out, problems = self.out / "evaluation", self.out / "held_out.jsonl"
        engine, log = self.options.engine, self.out / "logs" / "evaluation.log"
        with self.console.status("evaluation …"):
            await measure(models, problems, out, self.config, engine=engine, samples=EVALUATION_SAMPLES, log=log)
        summary = json.loads((out / "summary.json").read_text())
        return {name: summary[name]["sets"]["held_out"]["sampled"]["accuracy"]["mean"] for name in models}

    async def _read_facts(self, models: dict[str, Path]) -> dict[str, dict[str, float]]:
        """Ask each model for every fact of the task."""
        path, log = self.out / "facts.json", self.out / "logs" / "facts.log"
        argv = module_argv("dcpo_async.demo.chain_reading", str(self.out), *(f"{k}={v}" for k, v in models.items()))
        await run_to_end("reading of facts", [*argv, "--out", str(path)], log)
        found: dict[str, dict[str, float]] = json.loads(path.read_text())
        for name, facts in found.items():
            self.console.print(
                f"facts {name:8} known of those taught {facts['known']:6.1%}, of the others {facts['learned']:6.1%}",
                highlight=False,
            )
        return found

    def _finish(
        self, accuracies: dict[str, float], facts: dict[str, dict[str, float]], training_seconds: float
    ) -> dict[str, Any]:
        status = read_status(self.config.folder)
        metrics = read_metrics(self.config.folder)
        plot = self.out / "curves.png"
        plot_curves(metrics, plot)
        shutil.copyfile(RunFolder(self.config.folder).metrics, self.out / "metrics.jsonl")
        summary = {
            **{f"accuracy_{name}": value for name, value in accuracies.items()},
            **({"facts": facts} if facts else {}),
            "steps": status["step"],
            "seconds": round(time.monotonic() - self.started, 1),
            "training_seconds": round(training_seconds, 1),
            "engine": self.options.engine,
            "weights_versions": status["weights_version"],
            "groups_counted": status["groups_counted"],
            "held_out_problems": sum(1 for _ in (self.out / "held_out.jsonl").open()),
            "samples_per_problem": EVALUATION_SAMPLES,
            "temperature": self.config.sampling.temperature,
            "seed": self.options.seed,
            "checkpoint": str(RunFolder(self.config.folder).export),
        }
        write_json(self.out / "summary.json", summary)
        for name, value in accuracies.items():
            self.console.print(f"held-out accuracy {name:8} [bold]{value:6.1%}[/bold]", highlight=False)
        self.console.print(
            f"trained model: {summary['checkpoint']}\ncurves: {plot}\nsummary: {self.out / 'summary.json'}\n"
            f"TensorBoard: tensorboard --logdir {RunFolder(self.config.folder).tensorboard}",
            highlight=False,
        )
        return summary


def _prepare(out: Path) -> None:
    """Make the output folder; an earlier demo in it is replaced, anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise ConfigError(f"--out {out}: the folder holds something that no demo wrote; choose a new one")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
