"""`dcpo release`: which prompts of a stopped run are quarantined, and why; and the end of their quarantine."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.quarantine import release_prompts
from learner.ledger.reader import QuarantineRow
from learner.reports.show import readable


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input, a run that a learner works on among it."""
    parser = argparse.ArgumentParser(
        prog="dcpo release",
        description="Let quarantined prompts be leased again, from the next start of the run on. "
        "Without a prompt, it lists them with the reasons.",
    )
    parser.add_argument("run", type=Path, help="run folder; its learner is stopped before prompts are released")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT_ID", help="the beginning of an id is enough")
    parser.add_argument("--all", action="store_true", help="release every prompt that is quarantined")
    options = parser.parse_args(argv)
    try:
        if options.all or options.prompts:
            for row in release(options.run, options.prompts, everything=options.all):
                print(f"released: prompt {row.prompt_id}, which {readable(row.reason)}")
        else:
            with open_copy(RunFolder(options.run).ledger) as reader:
                for row in reader.quarantined():
                    print(f"prompt {row.prompt_id}, position {row.position}: {readable(row.reason)}")
    except DcpoError as error:
        print(f"dcpo release: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def release(run: Path, prefixes: Sequence[str], *, everything: bool = False) -> list[QuarantineRow]:
    """Lift the quarantine of the prompts whose ids begin so, or of all; returns what they were quarantined for.

    Raises:
        ConfigError: no quarantined prompt has such an id, or several have.
        LedgerError: a learner is running on the folder, or it holds no run.
    """
    with open_copy(RunFolder(run).ledger) as reader:
        rows = reader.quarantined()
    chosen = rows if everything else [_only(rows, prefix) for prefix in prefixes]
    release_prompts(RunFolder(run).ledger, [row.prompt_id for row in chosen])
    return chosen


def _only(rows: Sequence[QuarantineRow], prefix: str) -> QuarantineRow:
    found = [row for row in rows if row.prompt_id.startswith(prefix)]
    exact = [row for row in found if row.prompt_id == prefix] or found
    if len(exact) != 1:
        several = f"several begin so ({', '.join(row.prompt_id for row in found[:4])}); give more of it"
        raise ConfigError(f"prompt {prefix}: {several if found else 'no quarantined prompt has an id that begins so'}")
    return exact[0]


if __name__ == "__main__":
    main()
