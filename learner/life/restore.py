"""`dcpo restore`: a run folder from a backup, every byte of which is checked before."""

import argparse
import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.durable import write_json
from dcpo_async.errors import DcpoError
from dcpo_async.processes import be_private
from dcpo_async.run_folder import RunFolder
from learner.ledger.ledger import Ledger
from learner.life.backup import Backup, new_folder, told, verified
from learner.life.events import write_event


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, 1 on a failure."""
    parser = argparse.ArgumentParser(
        prog="dcpo restore",
        description="Make a run folder of a backup, after all of it was checked. The run gets a name of its own: what "
        "the learner and its actors did after the backup is not in it, and must not be taken for its own.",
    )
    parser.add_argument("backup", type=Path, help="folder that dcpo backup has made; it stays as it is")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="RUN", help="run folder, which is made, and never replaced")
    what.add_argument("--check", action="store_true", help="read the backup and say whether it is whole")
    options = parser.parse_args(argv)
    be_private()
    try:
        if options.check:
            print(told(options.backup, *verified(options.backup)))
        else:
            backup, run_id = restore(options.backup, options.to)
            print(f"{options.to}: run {run_id}, from step {backup.step} of run {backup.run_id} on")
            print(f"go on with: dcpo-learner CONFIG --folder {options.to}; actors of {backup.run_id} are started anew")
    except DcpoError as error:
        print(f"dcpo restore: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def restore(folder: Path, to: Path) -> tuple[Backup, str]:
    """Make a run folder of a backup; returns what the backup was, and the id of the run by now.

    Args:
        folder: of the backup.
        to: is made; an empty one may be there.

    Raises:
        ConfigError: something stands there, or the backup is not as it was written.
        LedgerError, CheckpointError: what is in it does not fit together.
    """
    with new_folder(to) as writing:
        backup, _ = verified(folder)
        for name in backup.files:
            (writing / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, writing / name)
        ledger = Ledger(RunFolder(writing).ledger)
        run_id = new_run_id(to)
        ledger.set_meta("run_id", run_id)
        write_event(ledger, backup.step, "restored", run_id=backup.run_id, made_at=backup.made_at)
        ledger.close()
        name_folder(RunFolder(writing), to)
    return backup, run_id


def new_run_id(folder: Path) -> str:
    """A name for a run that no run has had: actors and caches must not take its versions for another's."""
    return f"{folder.name}-{secrets.token_hex(4)}"


def name_folder(run: RunFolder, folder: Path) -> None:
    """Let the settings of the last start name the folder where they are now."""
    if run.config.exists():
        write_json(run.config, {**json.loads(run.config.read_text()), "folder": str(folder)})


if __name__ == "__main__":
    main()
