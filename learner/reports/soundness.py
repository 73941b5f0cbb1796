"""Whether a run's ledger is whole: its rows in a copy, and the arrays not yet trained, by their digests."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import DcpoError, ReleasedError
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; says nothing of a ledger that is whole, and exits 1 with what is damaged."""
    parser = argparse.ArgumentParser(prog="dcpo doctor", description="Read a run's ledger, and change nothing.")
    parser.add_argument("run", type=Path, help="run folder")
    options = parser.parse_args(argv)
    try:
        with open_copy(RunFolder(options.run).ledger, is_checked=True) as reader:
            for visit in reader.visits("accepted", is_open=True):
                # It may have been trained meanwhile, and be in every checkpoint.
                with contextlib.suppress(ReleasedError):
                    reader.read_group(visit.position)
    except DcpoError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
