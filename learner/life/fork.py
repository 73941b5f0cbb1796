"""`dcpo fork`: a new run that goes on from a checkpoint of another."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.processes import be_private
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import complete_steps, described_checkpoint, step_folder, verified_checkpoint
from learner.ledger.copy import new_tables, open_copy
from learner.life.backup import new_folder
from learner.life.cut import Cut, write_cut
from learner.life.held import HeldFiles
from learner.life.restore import name_folder, new_run_id


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, 1 on a failure."""
    parser = argparse.ArgumentParser(
        prog="dcpo fork",
        description="Make a run of its own that goes on from a checkpoint of another, with the ledger as it was at "
        "that step. The other one stays as it is; its learner may be at work.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("new", type=Path, help="run folder, which is made, and never replaced")
    parser.add_argument("--step", type=int, required=True, help="whose checkpoint stands")
    options = parser.parse_args(argv)
    be_private()
    try:
        run_id = fork(options.run, options.new, options.step)
    except DcpoError as error:
        print(f"dcpo fork: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(f"{options.new}: run {run_id}, which goes on after step {options.step}")
    print(f"start it with: dcpo-learner CONFIG --folder {options.new}, on ports of its own beside the other")


def fork(run: Path, new: Path, step: int) -> str:
    """Make the folder of a run that goes on from a checkpoint of another; returns its id.

    Args:
        run: of the other run; a learner may work on it.
        new: is made; an empty one may be there.
        step: whose checkpoint stands.

    Raises:
        ConfigError: there is no such checkpoint, or something stands at the new folder.
        LedgerError, CheckpointError: the other run is damaged.
    """
    source = RunFolder(run)
    _require_checkpoint(source, step)
    with new_folder(new) as writing, contextlib.closing(HeldFiles(run)) as held:
        made = RunFolder(writing)
        try:
            held.hold_all(source.checkpoints / step_folder(step))
            for path in (source.config, source.data, *run.glob("reasoning-gym-*.jsonl")):
                if path.exists():
                    held.hold(path)
            made.ledger.mkdir()
            run_id = _fork_ledger(source, made, Cut(step, new_run_id(new), _generated_tokens(run, step)))
            held.copy(writing)
        except FileNotFoundError:
            _require_checkpoint(source, step)
            raise
        layout = described_checkpoint(made.checkpoints, step).layout
        verified_checkpoint(made.checkpoints, step, layout)
        lines = [json.dumps(line) + "\n" for line in read_metrics(run) if line["step"] <= step]
        made.metrics.write_text("".join(lines))
        name_folder(made, new)
    return run_id


def _require_checkpoint(source: RunFolder, step: int) -> None:
    steps = complete_steps(source.checkpoints)
    if step not in steps:
        there = f"those of steps {', '.join(map(str, steps))} do" if steps else "none does"
        raise ConfigError(
            f"{source.path}: no checkpoint of step {step} stands; {there} (checkpoint.keep_last and "
            "keep_every_steps say which stay)"
        )


def _fork_ledger(source: RunFolder, made: RunFolder, cut: Cut) -> str:
    with open_copy(source.ledger, is_checked=True) as reader, new_tables(made.ledger) as rows:
        write_cut(reader, rows, cut)
    return cut.run_id


def _generated_tokens(run: Path, step: int) -> int | None:
    """As the metrics of a step say; None where they do not."""
    found = next((line.get("generated_tokens") for line in read_metrics(run) if line["step"] == step), None)
    return None if found is None else int(found)


if __name__ == "__main__":
    main()
