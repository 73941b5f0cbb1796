"""What a person sees while a run trains: one live table, fed by the files that the learner writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.run_folder import RunFolder

SPARKS = "▁▂▃▄▅▆▇█"
LATE_SECONDS = 10.0
"""After which a batch that waits is told of."""
ROWS = (
    ("reward", "reward", "mean reward of the step's responses", "{:.3f}"),
    ("rur", "RUR", "responses with a non-zero advantage", "{:.1%}"),
    ("tcr", "TCR", "tokens whose loss the clip bound changed", "{:.3%}"),
    ("lag_mean", "lag", "optimizer steps between sampling and training", "{:.2f}"),
    ("response_length", "length", "tokens of a response", "{:.1f}"),
    ("entropy", "entropy", "nats per token", "{:.3f}"),
    ("actor_tokens_per_second", "actor tokens/s", "generated", "{:.0f}"),
    ("tokens_per_second", "learner tokens/s", "trained, prompt and response", "{:.0f}"),
)


def read_status(folder: Path) -> dict[str, Any]:
    """The learner's newest status; empty while there is none."""
    path = RunFolder(folder).status
    return json.loads(path.read_text()) if path.exists() else {}


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """The last values as a line of blocks between their smallest and largest: `sparkline([0, 1])` is `▁█`."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in shown)


def run_table(title: str, folder: Path) -> RenderableType:
    """The state of a run as one panel."""
    status, metrics = read_status(folder), read_metrics(folder)
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("metric", "now", "so far", "what it is"):
        table.add_column(name, no_wrap=True, ratio=3 if name == "what it is" else None)
    for key, name, meaning, form in ROWS:
        values = [step[key] for step in metrics if key in step]
        table.add_row(name, form.format(values[-1]) if values else "–", sparkline(values), f"[dim]{meaning}")
    step, last = status.get("step", 0), status.get("max_steps") or 0
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"step {step}" + (f" of {last}" if last else ""),
        ProgressBar(total=last or 1, completed=step, width=40),
    )
    return Panel(Group(head, table, _foot(status)), title=title, title_align="left")


def _foot(status: Mapping[str, Any]) -> str:
    if not status:
        return "[dim]the learner is starting"
    actors = status["actors_connected"]
    names = ", ".join(f"{actor['session']} at version {actor['weights_version']}" for actor in actors)
    waiting = "" if actors else " [dim](vLLM takes half a minute to start)"
    counts = f"groups counted: {status['groups_counted']}; newest weights version: {status['weights_version']}"
    waits = status.get("waiting_for") or {"seconds": 0.0}
    for_whom = "the next batch waits since {seconds:.0f} s"
    if waits.get("holder"):
        for_whom += ": lease {position} of {holder}, {lease_seconds:.0f} s old, {tokens} tokens so far"
    late = for_whom.format(**waits) if waits["seconds"] >= LATE_SECONDS else ""
    lines = [f"actors connected: {len(actors)} {names}{waiting}", counts, late, status.get("advice", "")]
    lines += _of_evaluation(status.get("evaluation") or {})
    lines += [f"quarantined: prompt {row['prompt_id']} {row['reason']}" for row in status.get("quarantined", [])[:5]]
    return "\n".join(filter(None, lines))


def _of_evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    """What the run's own evaluations stand at."""
    lines, running, last = [], evaluation.get("running"), evaluation.get("last")
    if running:
        form = "step {step} is measured: {answered} of {problems} problems answered, {actors} actors stay with it"
        lines.append(form.format(**running))
    if last and last["state"] == "complete":
        figures = last["figures"].items()
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures if "@" in name and "," not in name)
        lines.append(f"step {last['step']} measured: {shown}")
    elif last:
        lines.append(f"step {last['step']} has no accuracy: {last['reason']}")
    return lines
