"""`dcpo history`: what has happened to a run, from its ledger: starts, settings, stops, evaluations, by step."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dcpo_async.errors import DcpoError
from dcpo_async.metrics.live_table import plain_table
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.reader import LedgerReader, evaluations, first_steps
from learner.life.events import Event, events, in_words


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a run's history.

    Attributes:
        step: optimizer steps that the state had behind it; None of a start whose trainer never came up.
        at: UTC, as ISO 8601 writes it; empty where it was not kept.
        what: a word for its kind.
        detail: the rest, for people.
    """

    step: int | None
    at: str
    what: str
    detail: str


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="dcpo history",
        description="What has happened to a run: starts, settings that were changed, stops, evaluations. Works beside "
        "a learner and after it.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each entry")
    options = parser.parse_args(argv)
    try:
        with open_copy(RunFolder(options.run).ledger) as reader:
            found = history(reader)
    except DcpoError as error:
        print(f"dcpo history: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if options.json:
        for entry in found:
            print(json.dumps({"step": entry.step, "at": entry.at, "what": entry.what, "detail": entry.detail}))
        return
    table = plain_table("step", "when (UTC)", "what", "", right=("step",))
    for entry in found:
        table.add_row("" if entry.step is None else str(entry.step), entry.at, entry.what, entry.detail)
    Console(soft_wrap=False).print(table)


def history(reader: LedgerReader) -> list[Entry]:
    """Everything that the ledger has of it, as it happened; evaluations, of which it keeps no time, by their step."""
    begun = first_steps(reader)
    happened = [_of_event(event) for event in events(reader)]
    for number, start in enumerate(reader.starts()):
        detail = "; ".join(start.changes) or ("no setting changed" if number else "the first")
        entry = Entry(
            begun.get(start.incarnation), start.began_at, "start", f"{start.incarnation} ({start.release}): {detail}"
        )
        happened.append(entry)
    happened.sort(key=lambda entry: entry.at)
    for row in evaluations(reader):
        detail = f"version {row.weights_version}, {row.num_problems} problems, {row.state}"
        place = next((i for i, entry in enumerate(happened) if (entry.step or 0) > row.step), len(happened))
        happened.insert(place, Entry(row.step, "", "evaluation", f"{detail} {row.reason}".rstrip()))
    return happened


def _of_event(event: Event) -> Entry:
    content = event.content
    details = {
        "set": lambda: f"{in_words(content['settings'])} from step {event.step + 1} on, by {content['by']}",
        "stopped": lambda: f"{content['unsaved']} steps without a checkpoint",
        "restored": lambda: f"from a backup of run {content['run_id']}, made {content['made_at']}",
        "forked": lambda: f"from run {content['run_id']}",
    }
    return Entry(event.step, event.at, event.kind, details[event.kind]())


if __name__ == "__main__":
    main()
