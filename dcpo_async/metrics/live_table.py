"""What a person sees while a run trains: one live table, fed by the files that the learner writes."""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dcpo_async.metrics.health import Health, duration, health_of, is_running, told_changes
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.run_folder import RunFolder

SHARES = ("rur", "tcr")
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


def sparkline(values: Sequence[float], width: int = 32, *, is_share: bool = False) -> str:
    """The last values as a line of blocks between their smallest and largest: `sparkline([0, 1])` is `▁█`.

    Shares go from 0 to 1 whatever they are; others that are all the same stand at half the height.
    """
    shown, top = values[-width:], len(SPARKS) - 1
    low, high = (0.0, 1.0) if is_share else (min(shown, default=0.0), max(shown, default=0.0))
    if low == high:
        return SPARKS[top // 2] * len(shown)
    return "".join(SPARKS[round(min(1.0, max(0.0, (value - low) / (high - low))) * top)] for value in shown)


def plain_table(*names: str, right: Collection[str] = ()) -> Table:
    """A table as all commands show one: no lines, and each heading over its column.

    Args:
        names: of the columns, none of which is cut but the last, which may take several lines.
        right: those of numbers.
    """
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=name != names[-1], justify="right" if name in right else "left")
    return table


def run_table(title: str, folder: Path) -> RenderableType:
    """The state of a run as one panel."""
    status = read_status(folder)
    return status_table(title, status, read_metrics(folder), health_of(status, time.time(), is_running(status)))


def status_table(
    title: str, status: Mapping[str, Any], metrics: Sequence[Mapping[str, float]], health: Health
) -> RenderableType:
    """The same from what was read, of a folder or over the network."""
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("metric", "now", "so far", "what it is"):
        table.add_column(name, no_wrap=True, ratio=3 if name == "what it is" else None)
    for key, name, meaning, form in ROWS:
        values = [step[key] for step in metrics if key in step]
        table.add_row(
            name,
            form.format(values[-1]) if values else "–",
            sparkline(values, is_share=key in SHARES),
            f"[dim]{meaning}",
        )
    step, last = status.get("step", 0), status.get("max_steps") or 0
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"step {step}" + (f" of {last}" if last else ""),
        ProgressBar(total=last or 1, completed=step, width=40),
    )
    parts: list[RenderableType] = [head, table]
    if not status:
        parts.append(Text("the learner is starting", style="dim"))
    else:
        parts = [_state(status, health), *parts, Text(_counts(status, health))]
        if status.get("actors_connected"):
            parts.append(_actors(status, health))
        parts += [Text(line) for line in _foot(status, health)]
    return Panel(Group(*parts), title=title, title_align="left")


def _state(status: Mapping[str, Any], health: Health) -> Text:
    """The state in one word, why, and how fast it goes."""
    color = {0: "green", 1: "yellow"}.get(health.exit_code, "red")
    words = [f"● {health.state}", health.why]
    if health.is_live:
        if status.get("last_step_at"):
            usual = status.get("seconds_per_step")
            ago = max(0.0, status["written_at"] - status["last_step_at"])
            words.append(f"last step {duration(ago)} ago" + (f", one each {usual:.3g} s" if usual else ""))
        if status.get("eta_seconds") is not None:
            words.append(f"{duration(status['eta_seconds'])} to go")
        words.append(f"started {duration(max(0.0, status['written_at'] - status['started_at']))} ago")
    elif status.get("written_at"):
        words.append(time.strftime("ended %Y-%m-%d %H:%M:%S", time.localtime(status["written_at"])))
    return Text(" · ".join(filter(None, words)), style=color)


def _counts(status: Mapping[str, Any], health: Health) -> str:
    connected = status["actors_connected"]
    if health.is_live or not status.get("written_at"):
        waiting = "" if connected else " (vLLM takes half a minute to start)"
        actors = f"actors connected: {len(connected)}{waiting}"
    else:
        actors = f"actors at the end: {len(connected)}"
    return f"{actors}; groups counted: {status['groups_counted']}; newest weights version: {status['weights_version']}"


def _actors(status: Mapping[str, Any], health: Health) -> Table:
    """A row for each actor, the slowest first."""
    numbers = ("version", "tokens/s", "groups", "leases", "oldest", "in flight", "heard")
    table = plain_table("actor", "host", "does", *numbers, right=numbers)
    for actor in sorted(status["actors_connected"], key=_slowness):
        speed, behind = actor.get("tokens_per_second"), status["weights_version"] - actor["weights_version"]
        in_flight, capacity = actor.get("responses_in_flight", 0), actor.get("response_capacity", 0)
        oldest = actor.get("oldest_lease_seconds")
        table.add_row(
            *(Text(str(word)) for word in (actor["session"], actor.get("host", ""), actor.get("activity", ""))),
            f"{actor['weights_version']}" + (f" (−{behind})" if behind > 0 else ""),
            "–" if speed is None else f"{speed:.3g}",
            str(actor.get("groups_accepted", 0)),
            str(actor.get("leases", 0)),
            duration(oldest) if oldest else "–",
            f"{in_flight}/{capacity}" if capacity else str(in_flight),
            duration(actor.get("heard_seconds_ago", 0.0)) if health.is_live else "–",
        )
    return table


def _slowness(actor: Mapping[str, Any]) -> float:
    speed = actor.get("tokens_per_second")
    return float("inf") if speed is None else float(speed)


def _foot(status: Mapping[str, Any], health: Health) -> Iterator[str]:
    waits = status.get("waiting_for") or {"seconds": 0.0}
    if health.is_live and waits["seconds"] >= LATE_SECONDS:
        for_whom = "the next batch waits since {seconds:.0f} s"
        if waits.get("holder"):
            for_whom += ": lease {position} of {holder}, {lease_seconds:.0f} s old, {tokens} tokens so far"
        yield for_whom.format(**waits)
    for evaluator in status.get("evaluators_connected", []):
        yield f"evaluator {evaluator['session']} at version {evaluator['weights_version']}"
    if status.get("advice"):
        yield status["advice"]
    for change in told_changes(status):
        yield f"set while it went on: {change}"
    yield from _of_evaluation(status.get("evaluation") or {})
    for row in status.get("quarantined", [])[:5]:
        yield f"quarantined: prompt {row['prompt_id']} {row['reason']}"


def _of_evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """What the run's own evaluations stand at."""
    running, last = evaluation.get("running"), evaluation.get("last")
    if running:
        form = "step {step} is measured: {answered} of {problems} problems answered, {actors} actors stay with it"
        yield form.format(**running)
    if last and last["state"] == "complete":
        figures = last["figures"].items()
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures if "@" in name and "," not in name)
        yield f"step {last['step']} measured: {shown}"
    elif last:
        yield f"step {last['step']} has no accuracy: {last['reason']}"
