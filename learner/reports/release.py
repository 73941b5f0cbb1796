"""`dcpo release`: which prompts of a stopped run are quarantined, and why; and the end of their quarantine."""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.ledger import Ledger
from learner.ledger.reader import QuarantineRow, quarantined
from learner.ledger.schema import QUARANTINES
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
                for row in quarantined(reader):
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
        rows = quarantined(reader)
    chosen = rows if everything else [_only(rows, prefix) for prefix in prefixes]
    release_prompts(RunFolder(run).ledger, [row.prompt_id for row in chosen])
    return chosen


class ReleasingLedger(Ledger):
    """A ledger whose quarantines can be lifted."""

    def release_prompts(self, prompt_ids: Collection[str]) -> None:
        """Let prompts be leased again; what was quarantined, and why, stays."""
        for row in quarantined(self):
            if row.prompt_id in prompt_ids:
                self._rows.put(QUARANTINES, row.position, row.prompt_id, row.reason, 1)


def release_prompts(folder: Path, prompt_ids: Collection[str]) -> None:
    """Let prompts be leased again, each at its next regular visit, from the next start of the learner on.

    Raises:
        LedgerError: a learner is running on the folder, or the ledger is damaged or cannot be written.
    """
    ledger = ReleasingLedger(folder)
    ledger.release_prompts(prompt_ids)
    ledger.close()


def _only(rows: Sequence[QuarantineRow], prefix: str) -> QuarantineRow:
    found = [row for row in rows if row.prompt_id.startswith(prefix)]
    exact = [row for row in found if row.prompt_id == prefix] or found
    if len(exact) != 1:
        several = f"several begin so ({', '.join(row.prompt_id for row in found[:4])}); give more of it"
        raise ConfigError(f"prompt {prefix}: {several if found else 'no quarantined prompt has an id that begins so'}")
    return exact[0]


if __name__ == "__main__":
    main()
